r"""Per-channel scales: the running standard deviation of each channel's pre-activation, site by site.

The paper (4.2, 5.2) calls a temperature of its own for each neuron ideal and leaves it out. With `scale="channel"` a
gate is :math:`\lambda(z / \sigma_c)`, :math:`\sigma_c` the standard deviation of channel c over batch and space.

The scales lie on the model as a plain attribute, beside its state dict and not in it: they follow deep copies and
pickles, and `detach` leaves them where they are.
"""

from __future__ import annotations

import warnings
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
    """The scales of a model by the names of its call sites."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def observe(self, name: str, z: Tensor, channel: int, share: float | None = MOMENTUM) -> None:
        """Takes a batch in; a share of None weighs every example seen so far alike.

        A batch whose moments are not finite is left out with a warning, once for each site: it would be in them for
        good. So is one that is empty, and one within torch.func's transforms, whose tensors are not to be kept.
        """
        if z.numel() == 0 or in_transforms():
            return
        z = wide(z.detach())
        found, examples = self.get(name), z.shape[0]
        variance, mean = moments(z, channel)
        if not _are_finite(variance, mean):
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
            raise SoftgateError(
                f"surrogate.scale=channel: no statistics of {name} yet; run softgate.calibrate(model, loader, rule), "
                f"or train with the rule first."
            )
        found.fit(name, z.shape[channel], z.device)
        return found.deviation(z, channel)

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
        for name, kept in state.items():
            self[name] = ChannelScale(kept["mean"].clone(), kept["variance"].clone(), int(kept["count"]))


def _are_finite(*moments: Tensor) -> bool:
    """Whether all moments are finite; not looked up while compiling, which cannot branch on values."""
    return torch.compiler.is_compiling() or all(bool(moment.isfinite().all()) for moment in moments)


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
