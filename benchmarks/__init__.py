"""Comparisons to run by hand, each `python -m benchmarks.NAME`. No test depends on their times."""
