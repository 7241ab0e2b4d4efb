"""What happens inside a final run while it trains: measured at a few moments, on fixed training images.

Nothing of it changes training: weights are the same, bit for bit, with and without. No test image is read. What needs
the last network (swaps, agreement of gates) is found after the last step, from the gates that were kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from generalization_study.noise import batch_gradients, compared, noise
from softgate.correlation import memberships, pearson_within
from softgate.data import ImageData
from softgate.errors import require
from softgate.evaluation.generalization import sharpness
from softgate.explainers import ExcitationPullback, gradient
from softgate.explainers.noise import draws
from softgate.explainers.pullback import predict, target_logits
from softgate.metrics import high_frequency, noise_cosine
from softgate.paths import Gates, gate_agreement, record, run
from softgate.paths.agreement import ALL
from softgate.paths.packing import Bytes, Layout
from softgate.sites.calibration import calibrate
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule
from softgate.training.callbacks.paths import log_spaced_steps

NOISE = 0.02
"""Standard deviation of the noise of `noise_cosine`, in units of the normalised input; that of the metric."""

Dead = Mapping[str, Tensor]
"""Which units of each call site are dead: booleans [units]."""


@dataclass
class Moment:
    """What is kept of a moment.

    Attributes:
        step: Optimiser steps done.
        found: What was measured, by column.
        dead: The dead units.
        gates: The hard gates of the probe images, packed.
        logits: [N] each probe image's logit of its own class, centred.
    """

    step: int
    found: dict[str, float]
    dead: Dead
    gates: Bytes
    logits: Tensor = field(repr=False)


class Mechanism(Callback):
    """Measures at the start, and at moments spread evenly on a log scale of epochs to the end.

    Args:
        data: The run's data; its training images are read as validation shows them, without augmentation.
        asked: The plan's `mechanism`.

    Attributes:
        seconds: How long it took so far.

    Raises:
        SoftgateError: If a class has fewer than two probe images.
    """

    def __init__(self, data: ImageData, asked: Mapping[str, Any]) -> None:
        begun = time.perf_counter()
        self.asked, self._moments, self._plan = asked, list[Moment](), dict[int, float]()
        self._layout: Layout | None = None
        seed, listing = asked["seed"], data.train_listing
        self.images, self.labels = _together(data.still(listing, asked["images"], seed))
        _other_of_class(self.labels)  # says what does not fit before training
        # Every class alike would leave the differences between classes out of the noise: these are drawn from all, and
        # others for each seed of a study, so that an interval over seeds has the chance of the draw in it.
        dice = torch.Generator().manual_seed(seed + data.seed)
        count = asked["noise"]["batches"] * asked["noise"]["size"]
        require(count <= len(listing), f"mechanism.noise: {count} images are asked for, and there are {len(listing)}.")
        drawn = listing.subset(torch.randperm(len(listing), generator=dice)[:count])
        x, labels = _together(data.still(drawn, count, seed))
        order = torch.randperm(count, generator=dice)  # `still` has the classes in turn
        self.more = x[order], labels[order]
        self.seconds = time.perf_counter() - begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Plans the moments and measures the initial network."""
        steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or 1
        each = steps / epochs
        moments = log_spaced_steps(steps, each, self.asked["moments"], self.asked["first"])
        self._plan = {step: step / each for step in moments}
        self._measure(pl_module, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Measures a planned moment."""
        if trainer.global_step in self._plan:
            self._measure(pl_module, trainer.global_step)

    def rows(self, module: SoftgateModule) -> list[dict[str, Any]]:
        """A row for each moment, the earliest first.

        Args:
            module: The network after its last step; what is asked of it is missing where it was not reached.
        """
        begun = time.perf_counter()
        if self._plan and self._moments[-1].step == max(self._plan):
            self._look_back(module)
        self.seconds += time.perf_counter() - begun
        return [{"step": one.step, "epoch": self._plan[one.step], **one.found} for one in self._moments]

    # -- of a moment ----------------------------------------------------------------------------------------

    def _measure(self, module: Any, step: int) -> None:
        begun = time.perf_counter()
        net, rule, seed = module.net, _in_force(module), self.asked["seed"]
        x, labels = self._placed(module, self.images), self.labels.to(module.device)
        more, wanted = self._placed(module, self.more[0]), self.more[1].to(module.device)
        gates = record(net, torch.cat([x, more]))
        dead, gates = dead_units(gates), gates[: len(x)]
        self._layout = self._layout or Layout.of(gates, soft=False)
        found = turnover(self._moments[-1].dead if self._moments else None, dead)
        size = self.asked["noise"]["size"]
        true = ours = batch_gradients(net, None, more, wanted, size)
        if rule is not None:
            with _scaled(module, rule, more):
                ours = batch_gradients(net, rule, more, wanted, size)
        for name, each in (("rule", ours), ("true", true)):
            one = noise(each, size)
            found |= {f"noise_scale_{name}": one.scale, f"noise_trace_{name}": one.trace}
            found[f"gradient_square_{name}"] = one.square
        found["gradient_cosine"], found["gradient_norm_ratio"] = compared(ours, true)
        count, turns = self.asked["sharpness"]["images"], self.asked["sharpness"]["iterations"]
        found["sharpness"] = sharpness.largest_eigenvalue(net, x[:count], labels[:count], turns, seed)
        found |= self._aligned(net, x, labels)
        own = _own(predict(net, x), labels)
        found["seconds"] = time.perf_counter() - begun
        self.seconds += found["seconds"]
        self._moments.append(Moment(step, found, dead, self._layout.pack(gates), own))

    def _aligned(self, net: Any, x: Tensor, labels: Tensor) -> dict[str, float]:
        """Of the pullbacks of the labels' logits, read out through hard and soft gates."""
        asked = self.asked["alignment"]
        x, labels = x[: asked["count"]], labels[: asked["count"]]
        copies = torch.cat([x, *(x + NOISE * draws(x, asked["noisy"], self.asked["seed"]))])
        found = {}
        for name, explain in (("hard", gradient), ("soft", ExcitationPullback())):
            maps = explain(net, copies, labels.repeat(1 + asked["noisy"])).view(-1, *x.shape)
            found[f"noise_cosine_{name}"] = float(noise_cosine(maps[0], maps[1:]).nanmean())
            found[f"high_frequency_{name}"] = float(high_frequency(maps[0]).nanmean())
        return found

    def _placed(self, module: SoftgateModule, x: Tensor) -> Tensor:
        order = torch.channels_last if module.channels_last else torch.contiguous_format
        return x.to(module.device).contiguous(memory_format=order)

    # -- of the last network -----------------------------------------------------------------------------------

    def _look_back(self, module: SoftgateModule) -> None:
        """Runs the last network with the gates of every moment, and with what the controls make of them."""
        assert self._layout is not None
        x, labels = self._placed(module, self.images), self.labels
        members, other = memberships(labels), _other_of_class(labels)
        last = self._moments[-1]
        final = self._layout.unpack(last.gates)

        def within(values: Tensor) -> float:
            return float(pearson_within(last.logits, values, members, torch.ones(1, len(labels)).double())[0])

        for one in self._moments:
            gates = self._layout.unpack(one.gates)
            agreement = gate_agreement(gates, final)[ALL]
            one.found |= {"hamming": agreement.hamming, "kappa": agreement.kappa}
            one.found["swap_function"] = within(one.logits)
            for name, given in (
                ("swap", gates),
                ("swap_same_class", gates[other]),
                ("swap_shuffled", gates.shuffled(self.asked["seed"])),
                ("swap_mean", gates.mean()),
            ):
                placed = given.map(lambda site: _moved(site, module.device))
                one.found[name] = within(_own(run(module.net, x, placed), labels.to(module.device)))


def dead_units(gates: Gates) -> dict[str, Tensor]:
    """Which units of each ReLU call site are open on no image and at no place.

    Args:
        gates: Hard gates; a unit is a channel, their second dimension.
    """
    sites = (site for site in gates.sites.values() if site.kind == "relu")
    return {site.name: ~site.values.transpose(0, 1).flatten(1).any(1).cpu() for site in sites}


def turnover(before: Dead | None, after: Dead) -> dict[str, float]:
    """Shares of all units: `dead` now, `died` and `revived` since the moment before, which are NaN without one."""
    now = torch.cat(list(after.values()))
    found = {"dead": float(now.double().mean()), "died": math.nan, "revived": math.nan}
    if before is not None:
        former = torch.cat([before[name] for name in after])
        found["died"] = float((now & ~former).double().mean())
        found["revived"] = float((former & ~now).double().mean())
    return found


def _in_force(module: SoftgateModule) -> Surrogate | None:
    """The rule of training of this moment; None where it is the true gradient."""
    rule = module.sites.rule
    return rule if rule is not None and (rule.softens_relu or rule.softens_pool) else None


@contextmanager
def _scaled(module: SoftgateModule, rule: Surrogate, x: Tensor) -> Iterator[None]:
    """Per-channel scales for the initial network, which has none before its first batch; dropped afterwards."""
    scales = module.sites.scales
    if rule.scale != "channel" or scales:
        yield
        return
    former = scales.state_dict()
    try:
        calibrate(module.net, [x], rule)
        yield
    finally:
        scales.load_state_dict(former)


def _own(outputs: Tensor, labels: Tensor) -> Tensor:
    """[N] each image's logit of its own class minus the mean logit."""
    return target_logits(outputs.detach().double(), labels[:, None], centred=True)[:, 0].cpu()


def _other_of_class(labels: Tensor) -> Tensor:
    """For each image another one of its class: the next one, the first after the last."""
    other = torch.empty_like(labels)
    for label in torch.unique(labels):
        mine = (labels == label).nonzero().flatten()
        enough = len(mine) > 1
        require(enough, f"mechanism.images: class {int(label)} has one probe image; at least 2 are needed.")
        other[mine] = mine.roll(-1)
    return other


def _moved(site: Any, device: torch.device) -> Any:
    return replace(site, values=site.values.to(device))


def _together(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, labels = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(labels)
