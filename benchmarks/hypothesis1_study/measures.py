"""What is measured on the recorded runs: swaps with all controls, combined patterns, kernel prediction."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import softgate as sg
from softgate.explainers.pullback import predict
from softgate.paths import Recording
from softgate.paths.patterns import PATTERNS
from softgate.paths.similarity import cosine_kernel
from softgate.paths.swapping import CONTROLS

from .training import Setting, network

IMAGES = 100
"""Probe images of a swap, ten of each class."""

KERNEL_IMAGES = 60
KERNEL_EPOCHS = (0.0, 0.25, 1.0, 3.0)
"""Of the shorter horizon; twice these of the longer one."""

RULE = sg.Surrogate(sg.gates.Sigmoid(0.3), sg.pools.LSE(0.3))
"""Of the soft gates Gamma."""

Row = tuple[float, str, float]
"""Epoch s, what was measured, its value."""


def swapped(setting: Setting, recording: Recording) -> Iterator[Row]:
    """Swaps into the last network within classes and pooled, hard gates, and the best combinations of k patterns."""
    net = network(setting.seed)
    swaps = sg.paths.swap(net, recording, {"hard": None}, images=IMAGES, later=True, chunk=IMAGES)
    epochs = [point.epoch for point in swaps.points]
    for within, name in ((True, "within"), (False, "pooled")):
        every = {"swap": swaps.curve("hard", within, 1)[0]}
        every |= {control: swaps.control("hard", control, within) for control in CONTROLS}
        for measure, values in every.items():
            for epoch, value in zip(epochs, values, strict=True):
                yield epoch, f"{name}: {measure}", value
    for s, epoch in enumerate(epochs[:-1]):
        for count in PATTERNS:
            if count <= s + 1:
                for name, found in sg.paths.combined_patterns(swaps, "hard", s, count).items():
                    yield epoch, f"{count} patterns: {name}", found.within
    for epoch, value in zip(epochs, swaps.correct.tolist(), strict=True):
        yield epoch, "accuracy", value


def predicted(setting: Setting, recording: Recording) -> Iterator[Row]:
    """How well kernel machines of epoch s predict the logits of the last network on images that they have not seen."""
    net = network(setting.seed).eval()
    x, labels = recording.images[:KERNEL_IMAGES], recording.labels[:KERNEL_IMAGES]
    net.load_state_dict(recording.weights(recording.points[-1])["net"])
    outputs = predict(net, x)
    wanted = [epoch * setting.epochs / 5 for epoch in KERNEL_EPOCHS]
    pixels = torch.nn.functional.normalize(x.double().flatten(1))
    for point in recording.points[:-1]:
        if point.epoch not in wanted:
            continue
        net.load_state_dict(recording.weights(point)["net"])
        features = torch.nn.functional.normalize(sg.paths.deep_features(net, x).double())
        kernels = {"deep features": features @ features.T, "pixels": pixels @ pixels.T}
        for name, rule in (("K_G", None), ("K_Gamma", RULE)):
            kernels[name] = cosine_kernel(*sg.paths.kernel(net, x, None, rule, log=True))
        for name, kernel in kernels.items():
            r2, within = sg.paths.kernel_prediction(kernel, outputs, labels)
            yield point.epoch, f"{name}: R2", r2
            yield point.epoch, f"{name}: within", within
