"""Backward rules: gates for ReLU, weights for max pooling, and everything about when, where and how strongly."""

from softgate.surrogate import activations, attentions, functional, gates, pools
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.schedule import Ramp, Schedule, Window
from softgate.surrogate.selection import Select

__all__ = [
    "Ramp",
    "Schedule",
    "Select",
    "Surrogate",
    "Window",
    "activations",
    "attentions",
    "functional",
    "gates",
    "pools",
]
