"""Tensors to pictures: pullback grids, film strips, animations and curves. Pictures come back as PIL images."""

from softgate.figures.curves import curves
from softgate.figures.film import animation, film_strip
from softgate.figures.grid import Block, pullback_grid
from softgate.figures.scaling import SCALES, peak, scale_each, scale_shared, seismic
from softgate.figures.sheet import CELL, Sheet

__all__ = [
    "CELL",
    "SCALES",
    "Block",
    "Sheet",
    "animation",
    "curves",
    "film_strip",
    "peak",
    "pullback_grid",
    "scale_each",
    "scale_shared",
    "seismic",
]
