"""Packets to frames: fetch from a source, decode and augment with DALI, FFCV or PyAV, hand over to the training device."""
