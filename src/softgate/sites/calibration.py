"""Per-channel scales for a network that was trained without them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError, require
from softgate.sites.inference import inner, reading_out
from softgate.sites.scales import follow, scales_of
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate


@checked
def calibrate(
    model: nn.Module, loader: Iterable[Any], rule: Surrogate | None = None, batches: int | None = None
) -> dict[str, Tensor]:
    r"""Measures the standard deviation of every channel's pre-activation, for `scale="channel"` (paper 4.2, 5.2).

    The model runs in eval mode over the loader; mean and variance are those of all examples together, each weighing
    alike. The scales are kept on the model, beside its state dict, in the place of any it had; `attach`, `pullback`
    and `ascend` find them there. Parameters, BatchNorm statistics and the train or eval mode stay as they are.

    Args:
        model: The model, attached or not.
        loader: Yields image batches [B, C, H, W] as the model takes them, or tuples or lists that begin with one.
        rule: A rule with `scale="channel"`; its `sites` say where scales are measured. Left out: everywhere.
        batches: How many batches to take; None is all of them.

    Returns:
        The standard deviations, [C] for each call site, by name.

    Raises:
        SoftgateError: If the loader yields nothing, or something else than images; the former scales stay.
    """
    model = inner(model)
    rule = Surrogate(scale="channel") if rule is None else rule
    require(rule.scale == "channel", f"calibrate: rule.scale={rule.scale}: only scale=channel needs calibration.")
    require(batches is None or batches >= 1, f"calibrate: batches={batches}: at least 1 is needed.")
    place = next(iter(model.parameters()), torch.empty(0))
    scales = scales_of(model)
    former = scales.state_dict()
    scales.clear()
    scales.inherited = False
    try:
        with reading_out(model, rule) as sites, sites.calibrating(), torch.no_grad():
            model = sites.model
            for count, batch in enumerate(loader):
                if count == batches:
                    break
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                require(isinstance(x, Tensor), f"calibrate: the loader yields {type(x).__name__}; images are needed.")
                require(x.numel() > 0, f"calibrate: batch {count} of the loader is empty.")
                finite = bool(x.isfinite().all())
                require(finite, f"calibrate: batch {count} of the loader has numbers that are not finite.")
                model(x.to(place.device, place.dtype, copy=True))  # it may normalise its input in place
        if not scales:
            raise SoftgateError("calibrate: the loader yields no batch, or the model has no call site in rule.sites.")
    except BaseException:
        scales.load_state_dict(former)
        raise
    return {name: scale.variance.sqrt() for name, scale in scales.items()}


@checked
def follow_scales(average: nn.Module, model: nn.Module) -> None:
    """Has a moving average of a model's weights read the model's per-channel scales, now and as they go on.

    Weights are averaged by whoever averages them; the scales, which lie beside the state dict, would stay those of the
    moment of the copy. One call after the copy is made is enough. The average is for reading: in train mode it would
    feed the scales too.

    Args:
        average: A deep copy of the model, or a wrapper around one such as `torch.optim.swa_utils.AveragedModel`.
        model: The model that is trained.

    Raises:
        SoftgateError: If both are one model.
    """
    if isinstance(average, torch.optim.swa_utils.AveragedModel):
        average = average.module
    follow(inner(average), inner(model))
