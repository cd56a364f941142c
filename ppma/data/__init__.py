"""Any layout of clips to a manifest and a packed store."""
