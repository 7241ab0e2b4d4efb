"""Sweeps: every job its own process and its own single Hydra run."""
