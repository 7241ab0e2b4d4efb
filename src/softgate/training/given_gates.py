"""`gates_from=`: weights of a recorded epoch, and the gates that they are trained on with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from softgate.errors import SoftgateError, require
from softgate.paths import Point, Recording
from softgate.training import networks
from softgate.training.gates_config import RECORDINGS, GatesFromConfig
from softgate.training.module import SoftgateModule

NEAR = 0.005
"""How far a typed epoch may be from a recorded one: tables show two digits."""


def begin(module: SoftgateModule, options: GatesFromConfig, size: int, channels: int) -> None:
    """Puts the weights of the recorded epoch into the network, and others into the one whose gates are taken.

    Args:
        module: The module, built with these options.
        options: Those of `gates_from`, with a run.
        size: Pixels a side of the images.
        channels: Of the images.

    Raises:
        SoftgateError: If the run's recording is of another architecture, has no weights or not that epoch, or the
            network is not linear with its gates given.
    """
    recording = opened(options)
    recording.check_model(module.net)
    kept = recording.weights(point_of(recording, options))
    module.net.load_state_dict(kept["net"])
    module.sites.scales.load_state_dict(kept["scales"])
    module.epochs_before = whole_epochs(options)
    if module.gates is None:
        return
    if options.gates == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            state: Any = networks.build(module.architecture, len(module.classes)).state_dict()
        first = recording.weights(recording.points[0])["net"]
        require(
            not all(torch.equal(state[name], value) for name, value in first.items()),
            f"gates_from.seed={options.seed}: these are the initial weights of the run itself; choose another.",
        )
    else:
        state = kept["net"] if options.gates == "epoch" else recording.weights(recording.points[-1])["net"]
    module.gates.load_state_dict(state)
    like = next(module.net.parameters())
    module.gates.check(torch.zeros(1, channels, size, size, dtype=like.dtype, device=like.device))


def opened(options: GatesFromConfig) -> Recording:
    """The recording of the run.

    Raises:
        SoftgateError: If it is damaged or without weights.
    """
    assert options.run is not None
    place = Path(options.run).expanduser()
    found = next(place / name for name in RECORDINGS if (place / name / "header.json").is_file())
    recording = Recording(found, "gates_from.run")
    said = f"gates_from.run={options.run}: it was recorded with callbacks.paths.weights=false; weights are needed."
    require(recording.header.weights, said)
    return recording


def point_of(recording: Recording, options: GatesFromConfig) -> Point:
    """The recorded moment of the epoch that was asked for."""
    assert options.epoch is not None
    nearest = min(recording.points, key=lambda point: abs(point.epoch - float(options.epoch or 0)))
    if abs(nearest.epoch - options.epoch) > NEAR:
        every = ", ".join(f"{point.epoch:.4g}" for point in recording.points)
        raise SoftgateError(f"gates_from.epoch={options.epoch}: not recorded; one of {every} is needed.")
    return nearest


def whole_epochs(options: GatesFromConfig) -> int:
    """How many whole epochs the weights have behind them; an epoch that they were in the midst of is trained anew."""
    return 0 if options.run is None or options.epoch is None else math.floor(options.epoch + NEAR)
