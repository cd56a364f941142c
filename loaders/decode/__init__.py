"""Turn files into views: read and decode windows with PyAV, DALI or FFCV, then crop and augment them."""
