"""softgate: exact forward pass, surrogate gradients in the backward pass.

>>> import torch, torchvision, softgate as sg
>>> model = torchvision.models.resnet18().eval()
>>> rule = sg.Surrogate(gate=sg.gates.Sigmoid(temperature=0.3), pool=sg.pools.LSE(temperature=0.3))
>>> sg.pullback(model, torch.randn(2, 3, 64, 64), target=7, rule=rule).shape
torch.Size([2, 3, 64, 64])

Importing `softgate` brings in torch and numpy only: no Lightning, no Hydra, no W&B.
"""

from importlib import import_module
from types import ModuleType

from softgate import paths
from softgate.errors import Diverged, NoCallSites, SoftgateError, SoftgateWarning, UnreachableSites
from softgate.explainers.pullback import Ascent, ascend, pullback
from softgate.explainers.representation import representation
from softgate.sites import Site, SiteDiagnosis, Sites, attach, calibrate, detach, diagnose, follow_scales, revived
from softgate.surrogate import Ramp, Schedule, Select, Surrogate, Window, functional, gates, pools

__all__ = [
    "Ascent",
    "Diverged",
    "NoCallSites",
    "Ramp",
    "Schedule",
    "Select",
    "Site",
    "SiteDiagnosis",
    "Sites",
    "SoftgateError",
    "SoftgateWarning",
    "Surrogate",
    "UnreachableSites",
    "Window",
    "ascend",
    "attach",
    "calibrate",
    "detach",
    "diagnose",
    "follow_scales",
    "functional",
    "gates",
    "paths",
    "pools",
    "pullback",
    "representation",
    "revived",
]

_ON_DEMAND = ("explainers", "figures", "grids", "metrics")
"""Packages that bring in matplotlib, torchmetrics and the like: imported when they are first asked for."""


def __getattr__(name: str) -> ModuleType:
    if name in _ON_DEMAND:
        return import_module(f"softgate.{name}")
    raise AttributeError(f"module 'softgate' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
