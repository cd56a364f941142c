"""Helpers that know no model: files, parallel work, progress, statistics, video files, plots, package versions."""
