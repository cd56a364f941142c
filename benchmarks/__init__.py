"""Benchmarks and their baselines. Only tests import this package."""
