"""Benchmarks: ours and its peers, side by side, on one machine. README.md has the commands."""

NAMES = ("features", "retrieval", "serving", "training", "growth")
