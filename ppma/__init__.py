"""ppma: pre-train action-recognition models on video without showing them a single real human.

The package is imported by every loader worker, so this file imports nothing.
"""

__version__ = "0.1.0"
