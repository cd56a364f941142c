"""Helpers that know no model: parallel work, progress, statistics, plots."""
