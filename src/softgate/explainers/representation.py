r"""The affine reading of a network: a logit as the inner product with its pullback plus what the constants add.

A ReLU network with its gates held fixed is affine in its input. Its value is then

.. math:: f_\Lambda(x) = \langle v, x \rangle + \sum_k \langle \partial_\Lambda f / \partial c_k, c_k \rangle

over every additive constant c_k: the biases, BatchNorm's :math:`\beta - \gamma \mu / \sqrt{var + \epsilon}`, and
whatever else is added, padded, joined or assigned (FullGrad, Srinivas and Fleuret, arXiv 1905.00780). With the true
gates this is the logit itself; with soft gates it is :math:`f_\Gamma`, the network whose gates are the excitations
(paper, equation 7).

The sum over constants is what the gated network says where there is no image, :math:`f_\Lambda(0)`. So no constant
need be found in the model's code: its gates are recorded, and it is run with them on an image of zeros. It is run
on the image too, which must give the same value; else it is not affine with its gates held, and that is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softgate.display import Brief
from softgate.errors import SoftgateError, require
from softgate.explainers.gated import chosen, run_affine
from softgate.explainers.gates import Gates
from softgate.explainers.handlers import Gated, Recorder
from softgate.explainers.pullback import Target, _targets, target_logits
from softgate.sites.inference import inner, reading_out
from softgate.sites.sites import Sites
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate


@dataclass(frozen=True, repr=False)
class Readout(Brief):
    """What a network says about images. K is absent for one target per image.

    Attributes:
        outputs: [B, classes] all logits, as the model returns them.
        logit: [B(, K)] the target logits, centred if asked to.
        pullback: [B(, K), C, H, W] their pullbacks to the input.
        represented: [B(, K)] f_Lambda: the pullback's inner product with the image plus the constants' share.
    """

    outputs: Tensor
    logit: Tensor
    pullback: Tensor
    represented: Tensor


@checked
def representation(
    model: nn.Module, x: Tensor, target: Target, rule: Surrogate | None = None, *, centred: bool = False
) -> Tensor:
    r"""The value :math:`f_\Lambda(x)` of the target logits' affine reading under a rule (paper, equation 7).

    Args:
        model: A classifier as in `pullback`, of operations that are linear or affine in the image once the gates of its
            activations and poolings are held: convolutions, linear layers, BatchNorm, sums, resizing and the like,
            called as modules or as functions, in whatever spelling.
        x: [B, C, H, W] images as the model takes them.
        target: As in `pullback`.
        rule: The backward rule; None is the true gates, for which the value is the logit itself.
        centred: Read out the logit minus the mean logit, which is all that a softmax sees.

    Returns:
        [B], or [B, K] for K targets; at least float32, detached.

    Raises:
        SoftgateError: As `pullback`; by name, for operations that are not linear with the gates held fixed, such as
            LayerNorm or a sigmoid; and wherever the value is not that of the network run with its gates held, which
            without a rule is the logit: this is checked in every call, to the square root of the dtype's resolution.
    """
    return read(model, x, target, rule, centred=centred).represented


@checked
def read(
    model: nn.Module, x: Tensor, target: Target, rule: Surrogate | None = None, *, centred: bool = False
) -> Readout:
    """Logits, pullbacks and representation, for the price of the pullbacks and three forward passes more.

    Arguments and errors as in `representation`.
    """
    model = inner(model)
    norms = rule is not None and rule.matches
    require(
        not norms, f"representation: surrogate.gain={getattr(rule, 'gain', None)}: the gradient is no sum of paths."
    )
    with reading_out(model, rule) as sites:
        model = sites.model
        targets, many = _targets(x, target)
        outputs, logit, pullback = _pull(model, x, targets, centred)
    with reading_out(model, None) as sites, torch.no_grad():
        gates = _gates(sites, x, rule)
        try:
            nothing = run_affine(sites.model, sites, torch.zeros_like(x), Gated(sites, gates, products=True))
        except SoftgateError as error:
            raise type(error)(f"representation: {error}") from None
        with sites.handled_by(Gated(sites, gates)):
            out: Any = sites.model(x.detach().clone())
        held = target_logits(getattr(out, "logits", out), targets, centred)
        constants = target_logits(nothing, targets, centred)
    terms = (pullback.to(logit.dtype) * x.detach().to(logit.dtype)[:, None]).flatten(2)
    represented = terms.sum(2) + constants
    expected = [held] if rule is not None else [held, logit]
    resolution = _resolution(x, (outputs, *model.parameters()))
    size = terms.square().sum(2).sqrt() + constants.abs() + represented.abs()
    _require_equal(model, represented, expected, resolution * size)
    if many:
        return Readout(outputs, logit, pullback, represented)
    return Readout(outputs, logit[:, 0], pullback[:, 0], represented[:, 0])


def _pull(model: nn.Module, x: Tensor, targets: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """All logits, the target logits [B, K] and their pullbacks [B, K, ...]."""
    x = x.detach().clone().requires_grad_()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}  # they need no gradient
    out: Any = torch.func.functional_call(model, parameters, (x.clone(),))  # it may be written to
    outputs = getattr(out, "logits", out)
    picked = target_logits(outputs, targets, centred)
    columns = picked.unbind(1)
    rows = []
    for k, column in enumerate(columns):
        rows.append(torch.autograd.grad(column.sum(), x, retain_graph=k + 1 < len(columns))[0])
    return outputs.detach(), picked.detach(), torch.stack(rows, 1)


def _gates(sites: Sites, x: Tensor, rule: Surrogate | None) -> Gates:
    """What the backward pass under a rule multiplies by at every call; the rows of a call need not be the images."""
    recorder = Recorder(sites, chosen(sites.model, sites, x, rule), None, backward=True)
    with sites.handled_by(recorder):
        sites.model(x.detach().clone())
    return Gates(recorder.found)


def _resolution(x: Tensor, others: Iterable[Tensor]) -> float:
    """By how much, relative to its terms, a sum may be off: the square root of the coarsest dtype's resolution."""
    dtypes = {t.dtype for t in (x, *others) if t.is_floating_point()}
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    coarse = max(torch.finfo(dtype).eps for dtype in dtypes)
    tf32 = device == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return float(max(coarse, 2.0**-10 if tf32 and torch.float32 in dtypes else 0.0) ** 0.5)


def _require_equal(model: nn.Module, represented: Tensor, expected: list[Tensor], allowed: Tensor) -> None:
    """Raises unless all values agree; those that are not finite say so themselves."""
    for value in expected:
        off = ((represented - value).abs() - allowed).nan_to_num(-1.0, -1.0, -1.0)
        if bool((off > 0).any()):
            image, place = divmod(int(off.argmax()), off.shape[1])
            raise SoftgateError(
                f"representation: {type(model).__name__} is not affine in the image with its gates held fixed: of "
                f"image {image} the pullback and the constants give {float(represented[image, place]):.6g} where the "
                f"network gives {float(value[image, place]):.6g}; parts of it choose by the image's values, run where "
                f"softgate does not see them, are cut off from the gradient, or mix images."
            )
