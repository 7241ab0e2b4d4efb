"""Whose class is it? What data sets and networks call their classes, and which of one are which of the other."""

from softgate.classes.matching import Classes, Match, match

__all__ = ["Classes", "Match", "match"]
