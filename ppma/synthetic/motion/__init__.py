"""Move virtual humans: recordings, key poses, motion capture."""
