"""A finished run in use: predict, embeddings, export, convert, inspect."""
