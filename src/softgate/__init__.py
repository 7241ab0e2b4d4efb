"""softgate: exact forward pass, surrogate gradients in the backward pass.

>>> import torch, torchvision, softgate as sg
>>> model = torchvision.models.resnet18().eval()
>>> rule = sg.Surrogate(gate=sg.gates.Sigmoid(temperature=0.3), pool=sg.pools.LSE(temperature=0.3))
>>> sg.pullback(model, torch.randn(2, 3, 64, 64), target=7, rule=rule).shape
torch.Size([2, 3, 64, 64])

Importing `softgate` brings in torch and numpy only: no Lightning, no Hydra, no W&B.
"""

from softgate import functional, gates, paths, pools
from softgate.calibration import calibrate
from softgate.callsites import Site
from softgate.diagnostics import SiteDiagnosis, diagnose, revived
from softgate.errors import Diverged, NoCallSites, SoftgateError, SoftgateWarning, UnreachableSites
from softgate.pullback import Ascent, ascend, pullback
from softgate.representation import representation
from softgate.schedule import Ramp, Schedule, Window
from softgate.selection import Select
from softgate.sites import Sites, attach, detach
from softgate.surrogate import Surrogate

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
    "functional",
    "gates",
    "paths",
    "pools",
    "pullback",
    "representation",
    "revived",
]
