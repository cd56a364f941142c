"""Models that find people."""
