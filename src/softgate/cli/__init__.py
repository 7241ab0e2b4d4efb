"""Runs: what the commands do, from a composed config to files on disk."""
