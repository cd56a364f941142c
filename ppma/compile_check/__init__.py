"""Compile whole training steps for a GPU that is not present."""
