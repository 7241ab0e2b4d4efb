r"""Per-channel scales: the running standard deviation of each channel's pre-activation, site by site.

The paper (4.2, 5.2) calls a temperature of its own for each neuron ideal and leaves it out. With `scale="channel"` a
gate is :math:`\lambda(z / \sigma_c)`, :math:`\sigma_c` the standard deviation of channel c over batch and space.

The scales lie on the model as a plain attribute, beside its state dict and not in it: they follow deep copies and
pickles, and `detach` leaves them where they are.
"""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError, SoftgateWarning, require
from softgate.surrogate.numerics import in_transforms, wide

MOMENTUM = 0.1
"""Share of a training batch in the running statistics, as in BatchNorm."""

LEAST = 1e-6
"""Least standard deviation: a channel that never moves is gated hard, not divided by zero."""

SCALES = "_softgate_scales"
"""The attribute of a model that they lie in."""

PASSES = 16
"""How many forward passes of a checkpointed network may stand before the backward pass of the first of them."""


class ChannelScale:
    """Running mean and variance of the channels at one call site, in float32 at least.

    Channels are the second dimension, as for BatchNorm; for a pooling of an unbatched [C, H, W] image the first.

    Attributes:
        mean: [C].
        variance: [C], biased, over everything but the channel.
        count: Examples seen by `softgate.calibrate`; 0 where the statistics are those of training.
    """

    def __init__(self, mean: Tensor, variance: Tensor, count: int = 0) -> None:
        self.mean = mean
        self.variance = variance
        self.count = count

    def mix_in(self, mean: Tensor, variance: Tensor, share: float) -> None:
        """Mixes a batch in: afterwards these are the moments of (1 - share) old data and `share` of this batch.

        Args:
            mean: [C] of the batch.
            variance: [C] of the batch, biased.
            share: In [0, 1].
        """
        if torch.compiler.is_compiling():  # it cannot branch on values: what is not finite changes nothing
            sound, known = (_all_finite(*moments) for moments in ((mean, variance), (self.mean, self.variance)))
            mean, variance = mean.where(sound, self.mean), variance.where(sound, self.variance)
            self.mean, self.variance = self.mean.where(known, mean), self.variance.where(known, variance)
        shift = mean - self.mean
        self.variance = torch.lerp(self.variance, variance, share) + share * (1 - share) * shift.square()
        self.mean = self.mean + share * shift

    def deviation(self, z: Tensor, channel: int) -> Tensor:
        """The standard deviation, shaped to divide `z`."""
        shape = [1] * z.dim()
        shape[channel] = -1
        return self.variance.sqrt().clamp_min(LEAST).view(shape)

    def fit(self, name: str, channels: int, device: torch.device) -> None:
        """Checks the number of channels and follows the data to its device.

        Raises:
            SoftgateError: If the call site `name` had another number of channels before.
        """
        had = len(self.variance)
        require(had == channels, f"scale=channel: {name} had {had} channels and has {channels} now; calibrate again.")
        if self.variance.device != device:
            self.mean, self.variance = self.mean.to(device), self.variance.to(device)


class Scales(dict[str, ChannelScale]):
    """The scales of a model by the names of its call sites.

    Attributes:
        inherited: Whether all of them come from the model that this one's model is a deep copy of.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()
        self.inherited = False
        self._passes: dict[str, deque[tuple[Tensor, Tensor]]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Scales:
        made = type(self)()
        memo[id(self)] = made
        made.update({name: copy.deepcopy(scale, memo) for name, scale in self.items()})
        made.inherited = bool(self)
        return made

    def observe(self, name: str, z: Tensor, channel: int, share: float | None = MOMENTUM) -> None:
        """Takes a batch in; a share of None weighs every example seen so far alike.

        A batch whose moments are not finite is left out with a warning, once for each site: it would be in them for
        good. So is one that is empty, and one within torch.func's transforms, whose tensors are not to be kept.
        """
        if z.numel() == 0 or in_transforms():
            return
        self.inherited = False
        z = wide(z.detach())
        found, examples = self.get(name), z.shape[0]
        variance, mean = moments(z, channel)
        if not torch.compiler.is_compiling() and not _all_finite(variance, mean):
            if name not in self._warned:
                self._warned.add(name)
                about = (
                    f"surrogate.scale=channel: {name} has pre-activations that are not finite; the batch is left out."
                )
                warnings.warn(about, SoftgateWarning, stacklevel=2)
            return
        if found is None:
            self[name] = ChannelScale(mean, variance, 0 if share is not None else examples)
            return
        found.fit(name, z.shape[channel], z.device)
        if share is None:
            found.count += examples
            share = examples / found.count
        found.mix_in(mean, variance, share)

    def of(self, name: str, z: Tensor, channel: int) -> Tensor:
        """What to divide the pre-activations of a call site by.

        Raises:
            SoftgateError: If nothing is known about the site.
        """
        found = self.get(name)
        if found is None:
            why = " (what it was given is not finite)" if name in self._warned else ""
            why = " (none are taken within torch.func)" if in_transforms() else why
            raise SoftgateError(
                f"surrogate.scale=channel: no statistics of {name} yet{why}; run softgate.calibrate(model, loader, "
                f"rule), or train with the rule first."
            )
        found.fit(name, z.shape[channel], z.device)
        return found.deviation(z, channel)

    # A checkpoint computes a pass again when others may have moved the statistics. What was computed once comes out the
    # same again, and so do its moments: they tell which pass it is.

    def remember(self, name: str, z: Tensor, channel: int, deviation: Tensor) -> None:
        """Keeps what a training batch that will be computed again is divided by."""
        if z.numel() and not in_transforms() and not torch.compiler.is_compiling():
            kept = self._passes.setdefault(name, deque(maxlen=PASSES))
            kept.append((_fingerprint(z, channel), deviation.flatten()))

    def of_pass(self, name: str, z: Tensor, channel: int) -> Tensor:
        """What a batch that is computed again was divided by the first time; that of now where it is not known."""
        now = self.of(name, z, channel)
        passes = list(self._passes.get(name, ()))
        if not passes or not z.numel():
            return now
        marks, deviations = (torch.stack(part) for part in zip(*passes, strict=True))
        nearest = (marks - _fingerprint(z, channel)).abs().sum(1).argmin()
        return deviations[nearest].view_as(now)

    def average(self) -> None:
        """Averages the moments over the processes of torch.distributed, so that all of them gate alike."""
        names = sorted(self)
        if not names:
            return
        flat = torch.cat([torch.cat([self[name].mean, self[name].variance]) for name in names])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for name in names:
            size = len(self[name].mean)
            self[name].mean, self[name].variance, flat = flat[:size], flat[size : 2 * size], flat[2 * size :]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The scales as plain data, tensors and numbers."""
        return {
            name: {"mean": scale.mean, "variance": scale.variance, "count": scale.count} for name, scale in self.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Puts the scales of a `state_dict` in the place of these."""
        self.clear()
        self.inherited = False
        for name, kept in state.items():
            self[name] = ChannelScale(kept["mean"].clone(), kept["variance"].clone(), int(kept["count"]))


def _all_finite(*moments: Tensor) -> Tensor:
    """Whether all moments are finite, as a tensor."""
    return torch.stack([moment.isfinite().all() for moment in moments]).all()


def _fingerprint(z: Tensor, channel: int) -> Tensor:
    return torch.cat(moments(wide(z.detach()), channel))


def moments(z: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of each channel, [C] each."""
    others = [d for d in range(z.dim()) if d != channel % z.dim()]
    variance, mean = torch.var_mean(z, others, correction=0)
    return variance, mean


def channel_of(name: str, z: Tensor, pool: bool) -> int:
    """The dimension of the channels: the second, as for BatchNorm; -3 for a pooling, batched or not.

    Raises:
        SoftgateError: If there is none.
    """
    if pool:
        return -3
    require(
        z.dim() >= 2, f"surrogate.scale=channel: {name} has a pre-activation of shape {tuple(z.shape)}; [B, C, ...]."
    )
    return 1


def scales_of(model: nn.Module) -> Scales:
    """The scales that lie on a model; empty where it has none yet."""
    scales: Scales = model.__dict__.setdefault(SCALES, Scales())
    return scales


def tell_if_stale(model: nn.Module, scales: Scales) -> None:
    """Warns, once, of scales that a deep copy has from before its weights were changed, as a moving average's are."""
    if not scales.inherited or torch.compiler.is_compiling() or not _changed(model):
        return
    scales.inherited = False
    about = (
        f"surrogate.scale=channel: {type(model).__name__} is a deep copy whose weights have changed, with the scales "
        f"of before; calibrate it, or softgate.follow_scales(copy, model) for a moving average."
    )
    warnings.warn(about, SoftgateWarning, stacklevel=2)


def _changed(copied: nn.Module) -> bool:
    """Whether weights of a deep copy, which are new tensors, have been written to since."""
    return any(not weight.is_inference() and weight._version > 0 for weight in copied.parameters())


def follow(copied: nn.Module, model: nn.Module) -> None:
    """Gives a copy the scales of a model, also all later ones."""
    scales = scales_of(model)
    require(copied is not model, "follow_scales: the copy is the model itself.")
    copied.__dict__[SCALES] = scales
