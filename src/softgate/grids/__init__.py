"""Grids of pullbacks: read out of a network, drawn as pictures, and strung together over epochs."""

from softgate.grids.drawing import Block, pullback_grid
from softgate.grids.film import animation, film_strip
from softgate.grids.reading import KINDS, Grid, Reading, read
from softgate.grids.scaling import SCALES, peak, scale_each, scale_shared, seismic
from softgate.grids.sheet import CELL, Sheet

__all__ = [
    "CELL",
    "KINDS",
    "SCALES",
    "Block",
    "Grid",
    "Reading",
    "Sheet",
    "animation",
    "film_strip",
    "peak",
    "pullback_grid",
    "read",
    "scale_each",
    "scale_shared",
    "seismic",
]
