"""Where clips come from: manifests, the data catalog, container formats, probing, packed stores."""
