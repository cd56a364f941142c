"""List the clips of a source: folder and list formats, probing, manifests, the data catalog, packed stores."""
