"""How long a control table will take: maps and forward passes counted beforehand, one of each timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch
from torch import nn

from softgate.errors import SoftgateError, SoftgateWarning
from softgate.explainers.base import Explainer
from softgate.explainers.pullback import predict
from softgate.metrics.control_table import Probe
from softgate.metrics.counterfactual import counterfactuals
from softgate.metrics.faithfulness import Infidelity, InsertionDeletion

TIMED = 8
"""Images whose maps are timed."""


@dataclass(frozen=True)
class Workload:
    """What one explainer's column of a control table takes.

    Attributes:
        maps: Of one image each.
        passes: Forward passes of one image each, beside those of the maps.
    """

    maps: int
    passes: int


def workload(images: int, few: int, classes: int, draws: int) -> Workload:
    """Counts what `control_table` does for one explainer.

    Args:
        images: Of the probe.
        few: Of them, for the metrics of many passes.
        classes: That are compared with each other.
        draws: Noisy copies of each of the few.
    """
    noisy = 2 * (draws + 1)  # noise_cosine and max_sensitivity: the copies and the image itself
    randomized = 3 * 2  # from the head, from the top, all: before and after
    steps = _default(counterfactuals, "steps")
    levels, samples = _default(InsertionDeletion, "steps"), _default(Infidelity, "count")
    each = classes + noisy + randomized + 1 + 1 + (steps + 1)
    mosaics = 4 * max(1, few // 4)
    outputs = 2 + 3 + 2 + 1  # of stability, the randomizations, counterfactuals, and the images' own
    passes = few * (3 * (levels + 1) + (samples + 1) + outputs)  # insertion, deletion and a random order; infidelity
    return Workload(images + few * each + mosaics, passes)


def _default(function: object, name: str) -> int:
    value: int = signature(function).parameters[name].default  # type: ignore[arg-type]  # a class or a function
    return value


def expected(
    model: nn.Module, explainers: Mapping[str, Explainer], probe: Probe, few: int, draws: int
) -> dict[str, float]:
    """Seconds that each explainer's column will take, from the time of a few of its maps; those that fail are left out.

    Args:
        model: The network.
        explainers: As for `control_table`.
        probe: As there.
        few: Its `dear`.
        draws: As there.
    """
    part = probe.first(TIMED)
    outputs = predict(model, part.images)
    classes = outputs.shape[1] if probe.classes is None else len(probe.classes)
    todo = workload(len(probe.images), min(few, len(probe.images)), classes, draws)
    forward = _seconds(partial(predict, model, part.images)) / len(part.images)
    found = {}
    for name, explainer in explainers.items():
        try:
            # Of what a map warns, and of what is wrong with it, one hears when it is measured.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SoftgateWarning)
                explainer(model, part.images[:2], part.labels[:2])  # what is built once
                took = _seconds(partial(explainer, model, part.images, part.labels)) / len(part.images)
        except (SoftgateError, RuntimeError):
            continue
        found[name] = todo.maps * took + todo.passes * forward
    return found


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
