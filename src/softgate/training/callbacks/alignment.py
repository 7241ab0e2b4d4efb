"""Alignment over epochs: the same probe images, read out hard and soft, scored after every epoch.

The cheap metrics share their passes: one forward and one backward for all images, and for a few images one backward
per class and one noisy copy per draw, the same noise for both read-outs and for all metrics that need noise. The dear
metrics run at a few epochs only. Training is bit-identical with and without it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from softgate import memory, metrics
from softgate.classes import Classes, match
from softgate.data import ImageData
from softgate.errors import SoftgateError, SoftgateWarning
from softgate.explainers.gradients import Pullback
from softgate.explainers.noise import draws
from softgate.explainers.representation import read
from softgate.metrics import ProbeMetric
from softgate.metrics.control_table import Probe, Score, of_passes, score
from softgate.options import switched_on
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks.config import AlignmentConfig
from softgate.training.module import SoftgateModule
from softgate.training.scales import scaled

CHUNK = 64
"""Images per pass, fewer where memory runs out."""
NOISE = 0.02
"""Standard deviation of the noise, in units of the normalised input."""
MOST_CLASSES = 10
"""Up to so many classes are read out against each other."""
STABILITY = ("noise_cosine", "max_sensitivity")


class Renumbered(nn.Module):
    """A network whose classes are put where another network has them; a class that it lacks is never its choice.

    Args:
        net: The network.
        own: The classes that are put elsewhere, as it numbers them.
        places: For each of these, its number in the other network.
        total: How many classes the other network has.
    """

    def __init__(self, net: nn.Module, own: Sequence[int], places: Sequence[int], total: int) -> None:
        super().__init__()
        self.net, self.own, self.places, self.total = net, list(own), list(places), total

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, total] for images [B, C, H, W]; -inf for the classes that it lacks."""
        out: Tensor = self.net(x)
        made = out.new_full((len(out), self.total), -math.inf)
        made[:, self.places] = out[:, self.own]
        return made


class AlignmentCurves(Callback):
    """Logs `align/hard/KEY` and `align/soft/KEY` after every n-th epoch, `_low` and `_high` being the interval's ends.

    Args:
        soft: The rule of the soft read-out.
        options: What is measured, on which images, and how often.
        evaluator: The module of an independently trained network for the same classes; judges the counterfactuals.

    Raises:
        SoftgateError: If the options say that nothing is measured.
    """

    def __init__(self, soft: Surrogate, options: AlignmentConfig, evaluator: SoftgateModule | None = None) -> None:
        switched_on("callbacks.alignment.every_n_epochs", options.every_n_epochs)
        self.rules: dict[str, Surrogate | None] = {"hard": None, "soft": soft}
        self.options, self._judge = options, evaluator
        self.evaluator: nn.Module | None = None
        self._no_sum: set[str] = set()  # read-outs whose logit is no sum of an affine reading
        self._probe: Probe | None = None
        self._data: ImageData | None = None
        self._measured, self._chunk = -1, CHUNK

    def prepare(self, data: ImageData, module: SoftgateModule) -> None:
        """Picks the probe images and tries the read-outs; what cannot be had is said before training.

        Raises:
            SoftgateError: If a class of the data is none of the evaluator's.
        """
        if self._judge is not None:
            start = f"callbacks.alignment.evaluator={self.options.evaluator}"
            found = match(data.identity, Classes.of(self._judge.classes), start, "the evaluator")
            own = list(range(len(data.classes)))
            self.evaluator = Renumbered(self._judge.net, found.indexes, own, len(own)).eval()
        images, labels = data.sample(self.options.images, self.options.seed)
        classes = range(0, len(data.classes), -(-len(data.classes) // MOST_CLASSES))
        self._data = data
        self._probe = Probe(images, labels, data.class_means(), list(classes), data.mean, data.std)
        probe = self._placed(module)
        for name, rule in list(self.rules.items()):
            try:
                with scaled(module, data, rule):
                    Pullback(rule, centred=True)(module.net, probe.images[:1], probe.labels[:1])
            except SoftgateError as error:
                self._warn(f"no {name} read-out: {error}")
                del self.rules[name]
        for name, rule in self.rules.items():
            try:
                with scaled(module, data, rule):
                    read(module.net, probe.images[:1], 0, rule)
            except SoftgateError as error:
                self._no_sum.add(name)
                self._warn(f"no representation and no kernel_agreement of the {name} read-out: {error}")

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures after the epoch's validation, with the weights that were validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures in epochs without validation."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, module: Any) -> None:
        epoch, epochs = trainer.current_epoch, trainer.max_epochs or 0
        if epoch == self._measured or not (epoch == epochs - 1 or epoch % self.options.every_n_epochs == 0):
            return
        self._measured = epoch
        if self._probe is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
            self.prepare(data, module)
        started = time.perf_counter()
        found: dict[str, float] = {}
        with memory.spared(lambda why: self._left_out(epoch, why)):
            found = self._measured_somehow(module, epoch in log_spaced(self.options.dear_epochs, epochs))
        found["alignment/seconds"] = time.perf_counter() - started
        for key, value in found.items():
            module.log(key, value, rank_zero_only=True)

    def _measured_somehow(self, module: SoftgateModule, dear: bool) -> dict[str, float]:
        """Measures with fewer images per pass, now and later, where memory runs out."""
        while True:
            try:
                return self.measure(module, dear)
            except (RuntimeError, MemoryError) as error:
                if self._chunk == 1 or not memory.ran_out(error):
                    raise
                memory.give_back(error)
                self._chunk = max(1, self._chunk // 4)

    def _left_out(self, epoch: int, why: str) -> None:
        lower = "set callbacks.alignment.images, few, draws or data.batch_size lower"
        self._warn(f"epoch {epoch + 1} is not measured: {why}, with one image at a time; training goes on; {lower}.")

    def measure(self, module: SoftgateModule, dear: bool = False) -> dict[str, float]:
        """What is logged: `align/READOUT/KEY` with its interval's ends.

        Args:
            module: The network, on the device it is trained on.
            dear: Also the metrics of many passes.
        """
        probe = self._placed(module)
        noise = NOISE * draws(probe.images[: self.options.few], self.options.draws, self.options.seed)
        found: dict[str, float] = {}
        for name, rule in self.rules.items():
            assert self._data is not None
            with warnings.catch_warnings(), scaled(module, self._data, rule):
                warnings.simplefilter("once", SoftgateWarning)
                scores = self._cheap(module.net, rule, probe, noise, name not in self._no_sum)
                if dear:
                    part = probe.first(self.options.dear_images)
                    pullback = Pullback(rule, centred=True)
                    scores |= of_passes(module.net, pullback, part, probe.images, self.evaluator, STABILITY)
            for key, each in scores.items():
                named = zip(("", "_low", "_high"), each, strict=True)
                found |= {f"align/{name}/{key}{end}": value for end, value in named}
        return found

    def _cheap(
        self, net: nn.Module, rule: Surrogate | None, probe: Probe, noise: Tensor, represents: bool
    ) -> dict[str, Score]:
        x, labels, few = probe.images, probe.labels, len(noise[0])
        made: dict[str, ProbeMetric] = {
            "total_variation": metrics.TotalVariation(),
            "high_frequency": metrics.HighFrequency(),
            "spectral_slope": metrics.SpectralSlope(),
            "data_alignment": metrics.DataAlignment(),
            "input_specificity": metrics.InputSpecificity(),
        }
        if probe.means is not None:
            made["mean_alignment"] = metrics.MeanAlignment(probe.means)
        if represents:
            made |= {
                "representation": metrics.RepresentationError(),
                "kernel_agreement": metrics.KernelAgreement(),
                "kernel_agreement_within": metrics.KernelAgreement(within_class=True),
            }
        maps, bad = [], []
        for part, mine in zip(torch.split(x, self._chunk), torch.split(labels, self._chunk), strict=True):
            v, outputs = self._read(net, part, mine, rule, made)
            maps.append(v)
            bad.append(~outputs.isfinite().all(1))
        # A network whose logits are no numbers has no map worth a score, whatever its gradient is.
        v = torch.cat(maps).masked_fill(torch.cat(bad).view(-1, 1, 1, 1), torch.nan)
        for key, arguments in {
            **dict.fromkeys(("total_variation", "high_frequency"), (v,)),
            **dict.fromkeys(("spectral_slope", "data_alignment"), (v, x)),
            "mean_alignment": (v, x, labels),
            "input_specificity": (v, labels),
        }.items():
            if key in made:
                made[key].update(*arguments)
        made |= self._of_few(net, rule, probe.first(few), v[:few], noise)
        found: dict[str, Score] = {}
        for key, metric in made.items():
            found |= score(metric, key)
        return found

    def _read(
        self, net: nn.Module, x: Tensor, labels: Tensor, rule: Surrogate | None, made: Mapping[str, ProbeMetric]
    ) -> tuple[Tensor, Tensor]:
        """Maps and logits of a chunk; what needs the affine reading is updated on the way."""
        if "representation" not in made:
            return Pullback(rule, centred=True)(net, x, labels), metrics.base.logits(net, x)
        out = read(net, x, labels, rule, centred=True)
        made["representation"].update(out.logit, out.represented)
        for key in ("kernel_agreement", "kernel_agreement_within"):
            made[key].update(out.logit, out.represented, labels)
        return out.pullback, out.outputs

    def _of_few(
        self, net: nn.Module, rule: Surrogate | None, probe: Probe, v: Tensor, noise: Tensor
    ) -> dict[str, ProbeMetric]:
        explain = Pullback(rule, centred=True)
        noisy = [explain(net, part, mine) for part, mine in _chunks(probe.images + noise, probe.labels, self._chunk)]
        copies = torch.cat(noisy).view(noise.shape)
        sound = metrics.base.finite(v, copies.transpose(0, 1))
        cosines, sensitivity = metrics.NoiseCosine(explain), metrics.MaxSensitivity(explain)
        cosines.take(metrics.noise_cosine(v, copies), sound)
        sensitivity.take(metrics.max_sensitivity(v, copies), sound)
        classes = list(probe.classes or ())
        every, outputs = explain.all(net, probe.images, classes)
        targets, accuracy = metrics.TargetSpecificity(), metrics.PullbackAccuracy()
        targets.update(every)
        accuracy.update(every, probe.images, outputs[:, classes])
        return {
            "noise_cosine": cosines,
            "max_sensitivity": sensitivity,
            "target_specificity": targets,
            "pullback_accuracy": accuracy,
        }

    def _placed(self, module: SoftgateModule) -> Probe:
        assert self._probe is not None
        probe, like = self._probe, next(module.net.parameters())
        order = torch.channels_last if module.channels_last else torch.contiguous_format
        images = probe.images.to(like.device, like.dtype).contiguous(memory_format=order)
        return Probe(images, probe.labels.to(like.device), probe.means, probe.classes, probe.mean, probe.std)

    def _warn(self, message: str) -> None:
        warnings.warn(f"callbacks.alignment: {message}", SoftgateWarning, stacklevel=3)


def log_spaced(count: int, epochs: int) -> set[int]:
    """`count` epochs from the first to the last, evenly on a log scale; fewer where they coincide, one is the last."""
    if count < 1 or epochs < 1:
        return set()
    if count == 1:
        return {epochs - 1}
    return {round(float(e)) - 1 for e in np.geomspace(1, epochs, count)}


def _chunks(copies: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Copies [draws, B, C, H, W] and labels [B] as chunks of `size` images with their labels."""
    flat, named = copies.flatten(0, 1), labels.repeat(len(copies))
    return list(zip(torch.split(flat, size), torch.split(named, size), strict=True))
