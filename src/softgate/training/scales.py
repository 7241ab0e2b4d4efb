"""Per-channel scales around training: before it, for pretrained weights, and for read-outs by another rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from softgate.data import ImageData
from softgate.sites.calibration import calibrate
from softgate.surrogate.rule import Surrogate
from softgate.training.module import SoftgateModule
from softgate.training.probe import spread

BATCHES = 4
"""How many batches a calibration takes."""

IMAGES = 64
"""How many validation images a read-out is calibrated on where training does not estimate its scales."""


def calibrate_for_training(module: SoftgateModule, data: ImageData) -> None:
    """Calibrates on a few training batches, where the rule of training needs it; draws no random number.

    Fresh networks need none: their first training batch is their first estimate. A pretrained one is read out and
    validated before that.
    """
    if module.rule.scale == "channel":
        calibrate(module.net, data.train_dataloader(), module.rule, batches=BATCHES)


@contextmanager
def scaled(module: SoftgateModule, data: ImageData, rule: Surrogate | None) -> Iterator[None]:
    """Runs the block with scales for a read-out by `rule`.

    They are the running ones of training where it estimates them at every site of the rule, else found anew on
    validation images of all classes, and dropped afterwards.
    """
    if rule is None or rule.scale != "channel" or _estimated(module, rule):
        yield
        return
    scales = module.sites.scales
    former = scales.state_dict()
    try:
        calibrate(module.net, [spread(data, IMAGES)[0]], rule)
        yield
    finally:
        scales.load_state_dict(former)


def _estimated(module: SoftgateModule, rule: Surrogate) -> bool:
    own = module.rule
    return own.scale == "channel" and bool(module.sites.scales) and (own.sites.everything or own.sites == rule.sites)
