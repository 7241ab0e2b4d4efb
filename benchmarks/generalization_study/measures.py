"""What is measured of a final run, once, at its last epoch; in float32 and eval mode, under the true gradient."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import softgate as sg
from softgate.data import ImageData
from softgate.evaluation.generalization import scores, sharpness
from softgate.evaluation.generalization.attacks import PGD
from softgate.explainers import ExcitationPullback, gradient
from softgate.explainers.adversarial import NORMS, in_pixels, scaled_l2
from softgate.explainers.noise import draws
from softgate.explainers.pullback import predict
from softgate.metrics import high_frequency, noise_cosine
from softgate.metrics.corruptions import FAMILIES, corrupt
from softgate.training import SoftgateModule

NOISE = 0.02
"""Standard deviation of the noise of `noise_cosine`, in units of the normalised input; that of the metric."""


class Images:
    """The images of a cell: all test images, the training images as they are, without augmentation."""

    def __init__(self, data: ImageData) -> None:
        self.test = ImageData(data.options, splits=("train", "val"))
        self.still = ImageData(data.options, splits=("train", "val"))
        self.still.listings["val"] = self.still.listings["train"]  # shown as validation images are, and kept decoded
        self.test.setup("validate")
        self.still.setup("validate")
        self._corrupted: dict[str, Tensor] = {}

    def corrupted(self, family: str, severity: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """The same corrupted test images for every network, as the network takes them, and their labels."""
        x, labels = self.test.sample(count, seed)
        mean, std = self.test.mean, self.test.std
        if family not in self._corrupted:
            pixels = in_pixels(x, mean, std)[0]
            self._corrupted[family] = (corrupt(pixels, family, severity, seed) * 255).round().to(torch.uint8)
        pixels = self._corrupted[family].float() / 255
        return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1), labels


def final(module: SoftgateModule, images: Images, asked: Mapping[str, Any]) -> dict[str, Any]:
    """All measures of a final run, and `bits`: which of the test images were right.

    Args:
        module: In eval mode.
        images: Of its cell.
        asked: The plan's `measures`.
    """
    net, device, seed = module.net, module.device, asked["seed"]
    logits, labels = _all(net, images.test.val_dataloader(), device)
    right = scores.correct(logits, labels)
    found: dict[str, Any] = {
        "acc": float(right.mean()),
        "nll": float(scores.nll(logits, labels).mean()),
        "brier": float(scores.brier(logits, labels).mean()),
        "ece": scores.ece(logits, labels),
        "bits": packed(right.numpy() > 0),
    }
    logits, labels = _all(net, images.still.val_dataloader(), device)
    found |= {"train_acc": float(scores.correct(logits, labels).mean())}
    found |= {"train_nll": float(scores.nll(logits, labels).mean()), "gap": found["train_acc"] - found["acc"]}
    found |= _diagnosed(module, images, asked["diagnosis"]["images"], seed)
    found |= _aligned(net, images, device, seed, **asked["alignment"])
    found |= _robust(net, images, device, seed, asked)
    x, labels = (part.to(device) for part in images.still.sample(asked["sharpness"]["images"], seed))
    found["sharpness"] = sharpness.largest_eigenvalue(net, x, labels, asked["sharpness"]["iterations"], seed)
    found["ascent_gap"] = sharpness.ascent_gap(net, x, labels)
    return found


def _all(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    parts = [(predict(net, x.to(device)).float().cpu(), labels.cpu()) for x, labels in batches]
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _diagnosed(module: SoftgateModule, images: Images, count: int, seed: int) -> dict[str, float]:
    """Share of dead units of the whole network; medians over the call sites of surrogate against true gradient."""
    x, labels = (part.to(module.device) for part in images.test.sample(count, seed))
    sites = sg.diagnose(module.net, x, labels, module.rule)
    units = sum(site.units for site in sites)
    found = {"dead": sum(len(site.dead_units) for site in sites) / units}
    for key in ("cosine", "norm_ratio"):
        values = [getattr(site, key) for site in sites]
        found[f"surrogate_{key}"] = float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")
    return found


def _aligned(
    net: nn.Module, images: Images, device: torch.device, seed: int, *, count: int, noisy: int
) -> dict[str, float]:
    """How stable and how smooth the pullbacks of the labels' logits are, read out through hard and soft gates."""
    x, labels = (part.to(device) for part in images.test.sample(count, seed))
    noise = NOISE * draws(x, noisy, seed)
    found = {}
    for name, explain in (("hard", gradient), ("soft", ExcitationPullback())):
        maps = explain(net, x, labels)
        beside = torch.stack([explain(net, x + one, labels) for one in noise])
        found[f"noise_cosine_{name}"] = float(noise_cosine(maps, beside).nanmean())
        found[f"high_frequency_{name}"] = float(high_frequency(maps).nanmean())
    return found


def _robust(
    net: nn.Module, images: Images, device: torch.device, seed: int, asked: Mapping[str, Any]
) -> dict[str, float]:
    """Top-1 under corruptions and under attacks."""
    found, mine = {}, asked["corruptions"]
    each = []
    for family in FAMILIES:
        x, labels = images.corrupted(family, mine["severity"], mine["images"], seed)
        each.append(float(scores.correct(predict(net, x.to(device)).float().cpu(), labels).mean()))
    found["corrupted"] = float(np.mean(each))
    mine = asked["attack"]
    x, labels = (part.to(device) for part in images.test.sample(mine["images"], seed))
    for norm in NORMS:
        test = images.test
        radius = mine[norm] if norm == "linf" else scaled_l2(mine[norm], test.size, test.config.channels)
        standing, _ = PGD(norm, radius, mine["steps"], 1, seed)(net, x, labels, test.mean, test.std)
        found[f"pgd_{norm}"] = float(standing.double().mean())
    return found


def packed(right: np.ndarray) -> str:
    """Booleans [N] as base64: eight to a byte, the first in the highest bit, zeros at the end."""
    return base64.b64encode(np.packbits(right)).decode()


def unpacked(bits: str, count: int) -> np.ndarray:
    """The first `count` booleans of what `packed` wrote."""
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))[:count].astype(bool)
