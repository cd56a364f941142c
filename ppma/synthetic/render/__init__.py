"""Render virtual humans and the scenes around them."""
