"""Detect residual people in cleaned clips, with confidence bounds."""
