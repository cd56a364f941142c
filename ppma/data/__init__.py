"""Index any layout of clips into a manifest, and pack it into a store."""
