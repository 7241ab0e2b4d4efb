"""Evaluating trained networks and comparing runs: what `evaluate.py` does."""
