"""Callbacks: what happens beside training. None of them changes a weight."""

from softgate.training.callbacks.alignment import AlignmentCurves
from softgate.training.callbacks.diagnostics import SiteDiagnostics
from softgate.training.callbacks.grids import PullbackGrids
from softgate.training.callbacks.guard import DivergenceGuard
from softgate.training.callbacks.interrupt import MovingAverage, SaveOnException
from softgate.training.callbacks.last import BestCheckpoint, LastCheckpoint
from softgate.training.callbacks.paths import PathRecorder
from softgate.training.callbacks.preparation import Checks, Prepares
from softgate.training.callbacks.progress import ProgressBar, ProgressFile, Throughput

__all__ = [
    "AlignmentCurves",
    "BestCheckpoint",
    "Checks",
    "DivergenceGuard",
    "LastCheckpoint",
    "MovingAverage",
    "PathRecorder",
    "Prepares",
    "ProgressBar",
    "ProgressFile",
    "PullbackGrids",
    "SaveOnException",
    "SiteDiagnostics",
    "Throughput",
]
