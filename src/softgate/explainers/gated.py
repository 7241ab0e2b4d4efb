r"""Recording the gates of a network, and running it with given ones (paper, equations 3 and 4).

With its gates given a ReLU network is affine in its input: :math:`M_\Lambda(x) = \Lambda_L W_L \cdots \Lambda_1 W_1 x`,
plus what its biases and BatchNorms add. The call sites are those of `softgate.attach`: its mode counts and names every
call and hands it to a handler of `softgate.explainers.handlers`, which puts the gated one in its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.gates import Gates, joined
from softgate.explainers.handlers import Gated, Recorder
from softgate.explainers.linearity import require_linear
from softgate.explainers.pullback import _in_chunks
from softgate.sites.active_rule import ActiveRule
from softgate.sites.checks import POOL_NODES, RELU_NODES, no_sites, nodes_between, unreachable
from softgate.sites.inference import inner, reading_out
from softgate.sites.sites import Sites
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate

CHUNK = 64
"""Images that run at once where `chunk` is None."""


@checked
def record(model: nn.Module, x: Tensor, rule: Surrogate | None = None, *, chunk: int | None = None) -> Gates:
    r"""The gates of every call site of a network on some images (paper, equations 1 and 21).

    The model runs in eval mode and is afterwards as it was.

    Args:
        model: The model, attached to a rule or not. Each call of a module that is called repeatedly is a site.
        x: [B, ...] images as the model takes them.
        rule: None for the hard gates 1[z > 0] and choices of the maximum; a rule for its soft gates and pooling
            weights, at the sites that it governs. Its schedule plays no part.
        chunk: At most so many images at once; None is 64.

    Returns:
        The gates, hard or soft, on the device of `x`.

    Raises:
        SoftgateError: If the model has activations or poolings that no rule covers, no call site at all, a site whose
            rows are not the images, or the rule is gain=matched, which is no gate.
    """
    _check_images("record", x)
    matches = rule is not None and rule.matches
    require(not matches, "paths.record: surrogate.gain=matched rescales gradients; there is no gate that does so.")
    model = inner(model)
    with reading_out(model, None) as sites, torch.no_grad():
        model = sites.model
        active = chosen(model, sites, x, rule)

        def look(part: slice, active: ActiveRule = active) -> Gates:
            images = x[part].detach().clone()
            recorder = Recorder(sites, active, len(images))
            with sites.handled_by(recorder):
                model(images)
            return Gates(recorder.found)

        # Rows that are not images can be as many as the images by chance, but not as few as one. Hard gates do: those
        # of other examples need another one.
        look(slice(0, 1), ActiveRule(None))
        parts = _in_chunks(look, x, len(x), CHUNK if chunk is None else chunk)
        if not parts[0].sites:
            raise no_sites(model)
    return parts[0] if len(parts) == 1 else joined(parts)


def chosen(model: nn.Module, sites: Sites, x: Tensor, rule: Surrogate | None) -> ActiveRule:
    """A rule in force, with the call sites that it governs; runs one image where it does not govern all."""
    active = ActiveRule(None if rule is None else rule.at())
    if rule is not None and not rule.sites.everything:
        model(x[:1].detach().clone())
        covered = [(site.name, site.kind) for site in sites.table() if site.covered]
        active.choose(type(model).__name__, covered)
    return active


@checked
def run(model: nn.Module, x: Tensor, gates: Gates, *, chunk: int | None = None) -> Tensor:
    r"""The network with given gates, :math:`M_\Lambda(x)` (paper, equation 4), biases and BatchNorm included.

    Affine in `x`, and differentiable: the gradient of a logit is its pullback. With the model's own hard gates the
    result is the model's own, bit for bit, run in the same chunks. The model runs in eval mode.

    Args:
        model: A model with the call sites that the gates are of.
        x: [B, ...] images as the model takes them.
        gates: From `record`, of the same or of other images, of this or of another epoch's weights; or any in their
            place. Gates of one image are those of all images.
        chunk: As in `record`.

    Returns:
        What the model returns for `x`, logits [B, classes].

    Raises:
        SoftgateError: If the gates do not fit the model or the images, or the model has operations that are not linear
            with the gates held fixed.
    """
    _check_images("run", x)
    model = inner(model)
    fits = gates.images in (1, len(x))
    require(fits, f"paths.run: gates of {gates.images} images for {len(x)}; as many are needed, or of one.")
    with reading_out(model, None) as sites:
        model = sites.model
        check_affine(model, sites, x, gates)
        with torch.set_grad_enabled(x.requires_grad):
            return run_attached(model, sites, x, gates, chunk)


def run_attached(model: nn.Module, sites: Sites, x: Tensor, gates: Gates, chunk: int | None = None) -> Tensor:
    """`run` without its checks, for a model that is attached and in eval mode."""

    def go(part: slice) -> Tensor:
        mode = Gated(sites, gates if gates.images == 1 else gates[part])
        with sites.handled_by(mode):
            images = x[part].clone()
            out: Any = model(images)
        missing = gates.sites.keys() - mode.used
        require(not missing, f"paths.run: gates for {', '.join(sorted(missing))}; the network has no such call site.")
        logits: Tensor = getattr(out, "logits", out)
        rows = logits.shape[:1]
        require(
            rows == images.shape[:1],
            f"paths.run: the model returns {tuple(logits.shape)} for {len(images)} image(s); a row for each is needed.",
        )
        return logits

    return torch.cat(_in_chunks(go, x, len(x), CHUNK if chunk is None else chunk))


def check_affine(model: nn.Module, sites: Sites, x: Tensor, gates: Gates) -> None:
    """Raises unless the gated network is affine in its input; runs one image."""
    run_affine(model, sites, x[:1], Gated(sites, gates[:1], products=True))


def run_affine(model: nn.Module, sites: Sites, x: Tensor, handler: Gated) -> Tensor:
    """What a model returns for `x` with given gates, [B, classes], for a model that is attached and in eval mode.

    Raises:
        SoftgateError: If there are activations that no handler sees, or operations that are not linear.
    """
    leaf = x.detach().clone().requires_grad_()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with torch.enable_grad(), sites.handled_by(handler):
        out: Any = torch.func.functional_call(model, parameters, (leaf.clone(),))
    logits: Tensor = getattr(out, "logits", out)
    hidden = nodes_between(leaf, logits, RELU_NODES | POOL_NODES)
    if hidden:
        raise unreachable(model, [f"{kind} outside of Python" for kind in hidden])
    require_linear(model, leaf, logits)
    return logits.detach()


def _check_images(function: str, x: Tensor) -> None:
    fine = isinstance(x, Tensor) and x.dim() > 1 and len(x) > 0
    shape = tuple(getattr(x, "shape", ()))
    require(fine, f"paths.{function}: x of shape {shape}: images [B, ...] with B >= 1 are needed.")
