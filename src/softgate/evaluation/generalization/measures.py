"""What is measured of every run of a comparison, on images that are the same for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softgate import memory
from softgate.classes import Classes, Match, match
from softgate.data import ImageData
from softgate.data.config import DataConfig
from softgate.data.datamodule import CACHE_LIMIT, say_left_out
from softgate.data.images import Listing
from softgate.data.sources import class_folders
from softgate.errors import require
from softgate.evaluation.config import CompareConfig
from softgate.evaluation.confusion import tallied
from softgate.evaluation.generalization import attacks, scores, sharpness
from softgate.evaluation.generalization.attacks import PGD
from softgate.evaluation.generalization.statistics import Array
from softgate.explainers.adversarial import NORMS, in_pixels, scaled_l2
from softgate.explainers.pullback import predict
from softgate.metrics.corruptions import corrupt
from softgate.training import SoftgateModule


@dataclass(frozen=True)
class Measure:
    """What a number says.

    Attributes:
        title: For tables.
        better: Whether more of it is better.
        percent: Whether it is a share.
        note: One line for the reader of a report.
    """

    title: str
    better: bool
    percent: bool
    note: str


MEASURES: Mapping[str, Measure] = {
    "acc": Measure("top-1", True, True, "share of the test images whose class is named; the measure claims rest on"),
    "nll": Measure("NLL", False, False, "cross entropy on the test images, in nats"),
    "brier": Measure("Brier", False, False, "squared distance of the probabilities to the truth, 0 to 2"),
    "ece": Measure("ECE", False, True, "expected calibration error, 15 bins"),
    "train_acc": Measure("train top-1", True, True, "on the training images, not augmented"),
    "gap": Measure(
        "train gap", False, True, "top-1 on the training images minus top-1 on the images that are measured"
    ),
    "corrupted": Measure("corrupted", True, True, "top-1 under corruptions as in ImageNet-C, all severities"),
    "pgd_linf": Measure("PGD Linf", True, True, "top-1 under an attack within a cube, true gradient"),
    "pgd_l2": Measure("PGD L2", True, True, "top-1 under an attack within a ball, true gradient"),
    "auto_linf": Measure("AutoAttack Linf", True, True, "top-1 under AutoAttack within a cube"),
    "auto_l2": Measure("AutoAttack L2", True, True, "top-1 under AutoAttack within a ball"),
    "shifted": Measure("shifted", True, True, "top-1 on another test set of the same classes"),
    "sharpness": Measure("sharpness", False, False, "largest eigenvalue of the training loss's Hessian, true gradient"),
    "ascent_gap": Measure("SAM gap", False, False, "rise of the training loss one step of length 0.05 uphill"),
}
"""In the order of the report; a run has those that its comparison asks for."""

PRIMARY = "acc"

BACKWARD = 2.0
"""A backward pass to the input, in forward passes."""

HESSIAN_PRODUCT = 10.0
"""A product of the loss's Hessian with a vector, in forward passes; measured."""


@dataclass
class Measured:
    """The numbers of one run.

    Attributes:
        values: Measure to value; also `corrupted/FAMILY`.
        examples: Measure to its value for each test image, for those that have one.
        left: A line on each group of measures that memory was too short for.
        confusion: [K, K + 1] counts of true and predicted classes, as `Tally.counts` gives them.
    """

    values: dict[str, float] = field(default_factory=dict)
    examples: dict[str, Array] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    confusion: Tensor | None = None

    def spared(self, what: str, lower: str) -> AbstractContextManager[None]:
        """Leaves out what is measured within if memory runs out, and notes it."""
        return memory.spared(lambda why: self.left.append(f"no {what}: {why}; set {lower} lower."))

    def add(self, key: str, each: Tensor) -> None:
        """Takes a number for each test image [N]; their mean is the value."""
        self.examples[key] = each.double().cpu().numpy()
        self.values[key] = float(self.examples[key].mean())


def check(options: CompareConfig) -> None:
    """Raises `SoftgateError` for a package or a folder that is asked for and not there."""
    if options.attack.auto:
        attacks.require_auto_attack()
    shifted = options.shifted
    fine = shifted is None or Path(shifted).expanduser().is_dir()
    require(fine, f"compare.shifted={shifted}: there is no such folder; one folder of images for each class is needed.")


class Bench:
    """Measures networks, one after the other, on images that are made once.

    Args:
        data: The test images.
        options: Of the comparison.

    Attributes:
        notes: Lines on what a reader must know.

    Raises:
        SoftgateError: If the shifted test set has a class that the data does not have.
    """

    def __init__(self, data: ImageData, options: CompareConfig) -> None:
        self.data, self.options = data, options
        data.setup("validate")
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._samples: dict[int, tuple[Tensor, Tensor]] = {}
        self.notes: list[str] = []
        self._shifted = None if options.shifted is None else self._other_set(options.shifted)
        self._training: dict[str, ImageData] = {}

    def _other_set(self, folder: str) -> Listing:
        """The images of `compare.shifted`: a folder for each class."""
        option = f"compare.shifted={folder}"
        listing = class_folders(Path(folder).expanduser(), option)
        say_left_out(option, listing)
        made, found = of_classes(listing, self.data, option)
        self.notes.append(f"{option}: {found}.")
        return made

    def seconds_of_a_pass(self, module: SoftgateModule) -> float:
        """Seconds that a network, on its device, takes for the logits of one test image; the second batch is timed."""
        x, _ = self._sample(min(self.data.batch_size, len(self.data.val_listing)))
        for _ in range(2):
            begun = time.perf_counter()
            predict(module.net, x.to(module.device)).cpu()
        return (time.perf_counter() - begun) / len(x)

    def work(self, options: DataConfig) -> dict[str, float]:
        """What `measure` is made of: parts to forward passes of one image; 0 for what is not asked for.

        Args:
            options: Of the data that the network was trained on.
        """
        asked, test, train = self.options, len(self.data.val_listing), len(self._trained_on(options).train_listing)
        corrupted, attack, sharp = asked.corruptions, asked.attack, asked.sharpness
        kinds = len(corrupted.families) * len(corrupted.severities)
        kinds = sum(attack.radius(norm) is not None for norm in NORMS)
        curved = min(train, train if sharp.images is None else sharp.images)
        return {
            "top-1": test,
            "train-test gap": min(train, asked.train_images or train),
            "sharpness": curved * (sharp.iterations * HESSIAN_PRODUCT + 2 + BACKWARD),
            "corruptions": kinds * min(test, corrupted.images or test),
            "attacks": kinds * min(test, attack.images or test) * attack.restarts * attack.steps * (1 + BACKWARD),
            "shifted": 0 if self._shifted is None else len(self._shifted),
        }

    def subset(self) -> list[str]:
        """A line on what is measured on some of the test images only; none where all are."""
        asked, test = self.options, len(self.data.val_listing)
        parts = {"corruptions": asked.corruptions.images, "attacks": asked.attack.images}
        fewer = [f"{name} on {few}" for name, few in parts.items() if few is not None and few < test]
        return [f"to be quick, {' and '.join(fewer)} of the {test} images; compare=full takes all."] if fewer else []

    def measure(
        self, module: SoftgateModule, options: DataConfig, begin: Callable[[str], None] = lambda part: None
    ) -> Measured:
        """Measures a network, which is in eval mode and on its device.

        Args:
            module: The network.
            options: Of the data that it was trained on.
            begin: Is called with each part of `work` as it begins.

        Returns:
            Its numbers.
        """
        found = Measured()
        device = module.device
        net = module.net
        begin("top-1")
        logits, labels = self._all(net, self.data.val_dataloader(), device)
        for key, score in (("acc", scores.correct), ("nll", scores.nll), ("brier", scores.brier)):
            found.add(key, score(logits, labels))
        found.values["ece"] = scores.ece(logits, labels)
        found.confusion = tallied(logits, labels)
        begin("train-test gap")
        with found.spared("measures on training images", "compare.train_images or data.batch_size"):
            self._on_training_images(found, net, self._trained_on(options), device)
        begin("sharpness")
        with found.spared("sharpness", "compare.sharpness.images"):
            self._sharpness(found, net, self._trained_on(options), device)
        begin("corruptions")
        with found.spared("corrupted", "compare.corruptions.images or data.batch_size"):
            self._corrupted(found, net, device)
        begin("attacks")
        with found.spared("attacks", "data.batch_size"):
            self._attacked(found, net, device)
        if self._shifted is not None:
            begin("shifted")
            with found.spared("shifted", "data.batch_size"):
                batches = self.data.still(self._shifted, len(self._shifted), 0)
                found.add("shifted", scores.correct(*self._all(net, batches, device)))
        return found

    def _all(self, net: nn.Module, batches: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        parts = [(predict(net, x.to(device)).float().cpu(), labels) for x, labels in batches]
        logits, labels = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def _trained_on(self, options: DataConfig) -> ImageData:
        key = repr(options)
        if key not in self._training:
            self._training = {key: ImageData(options, splits=("train", "val"))}
        return self._training[key]

    def _on_training_images(self, found: Measured, net: nn.Module, data: ImageData, device: torch.device) -> None:
        listing, seed = of_classes(data.train_listing, self.data, data.config.option)[0], self.options.seed
        count = self.options.train_images or len(listing)
        right = scores.correct(*self._all(net, data.still(listing, count, seed), device))
        found.values["train_acc"] = float(right.mean())
        found.values["gap"] = found.values["train_acc"] - found.values["acc"]

    def _sharpness(self, found: Measured, net: nn.Module, data: ImageData, device: torch.device) -> None:
        listing, seed = data.train_listing, self.options.seed
        few = self.options.sharpness.images
        if few == 0:
            return
        parts = list(data.still(listing, few or len(listing), seed))
        x, labels = (torch.cat(tensors).to(device) for tensors in zip(*parts, strict=True))
        iterations = self.options.sharpness.iterations
        found.values["sharpness"] = sharpness.largest_eigenvalue(net, x, labels, iterations, seed)
        found.values["ascent_gap"] = sharpness.ascent_gap(net, x, labels)

    def _corrupted(self, found: Measured, net: nn.Module, device: torch.device) -> None:
        asked = self.options.corruptions
        families, severities = asked.families, asked.severities
        if not families or not severities:
            return
        count = asked.images or len(self.data.val_listing)
        kept = len(families) * len(severities) * count * self.data.config.channels * self.data.size**2 <= CACHE_LIMIT
        every = []
        for family in families:
            right = []
            for severity in severities:
                batches = self._batches(family, severity, count, kept)
                right.append(scores.correct(*self._all(net, batches, device)))
            found.values[f"corrupted/{family}"] = float(torch.stack(right).mean())
            every += right
        found.add("corrupted", torch.stack(every).mean(0))

    def _batches(self, family: str, severity: int, count: int, kept: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The same corrupted images for every network; made once where they fit in memory."""
        seed, size = self.options.seed, self.data.batch_size
        x, labels = self._sample(count)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.data.mean, self.data.std))
        for start in range(0, len(x), size):
            part, place = x[start : start + size], (f"{family}-{severity}", start)
            stored = self._kept.get(place)
            if stored is None:
                pixels = in_pixels(part, self.data.mean, self.data.std)[0]
                stored = (corrupt(pixels, family, severity, seed) * 255).round().to(torch.uint8)
                if kept:
                    self._kept[place] = stored
            yield (stored / 255 - mean) / std, labels[start : start + size]

    def _attacked(self, found: Measured, net: nn.Module, device: torch.device) -> None:
        options = self.options.attack
        x, labels = self._sample(options.images or len(self.data.val_listing))
        pixels = self.data.mean, self.data.std
        for norm in NORMS:
            given = options.radius(norm)
            if given is None:
                continue
            radius = given if norm == "linf" else scaled_l2(given, self.data.size, self.data.config.channels)
            attack = PGD(norm, radius, options.steps, options.restarts, self.options.seed)
            standing: dict[str, list[Tensor]] = {"pgd": [], "auto": []}
            size = self.data.batch_size
            for start in range(0, len(x), size):
                part, mine = (t[start : start + size].to(device) for t in (x, labels))
                standing["pgd"].append(attack(net, part, mine, *pixels)[0])
                if options.auto:
                    whole = attacks.auto_attack(net, part, mine, *pixels, attack)
                    standing["auto"].append(whole)
            for name, parts in standing.items():
                if parts:
                    found.add(f"{name}_{norm}", torch.cat(parts))

    def _sample(self, count: int) -> tuple[Tensor, Tensor]:
        if count not in self._samples:
            self._samples[count] = self.data.sample(count, self.options.seed)
        return self._samples[count]


def of_classes(listing: Listing, data: ImageData, option: str) -> tuple[Listing, Match]:
    """Images of another set, labelled as the data's classes are numbered, and how these were found.

    Args:
        listing: Its images; its classes are some of the data's or all.
        data: The data.
        option: What named the set, and its value, for the error.

    Raises:
        SoftgateError: If a class is not among the data's.
    """
    found = match(Classes.of(listing.classes, listing.folders), data.identity, option, "the data")
    return Listing(listing.items, torch.tensor(found.indexes)[listing.labels], data.classes), found


def stacked(runs: list[Measured], key: str) -> Array:
    """Scores of several runs on a measure: [runs, images] where every one of them has them by image, else [runs]."""
    if all(key in run.examples for run in runs):
        return np.stack([run.examples[key] for run in runs])
    return np.array([run.values.get(key, np.nan) for run in runs])
