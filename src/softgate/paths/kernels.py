r"""The path kernel: how much two images share, summed over all paths of a network.

.. math:: K_\Lambda(x, x') = \langle \phi_\Lambda(x), \phi_\Lambda(x') \rangle
          = \sum_p x[p_0] x'[p_0] \prod_\ell \lambda_\ell(x)[p_\ell] \lambda_\ell(x')[p_\ell]

The paper's equation 23 writes this as a product over layers, which holds for fully connected chains. For any network
whose operations are linear once its gates are given, the sum over paths is the value of the same architecture, with all
weights one and no additive constant, on x * x' with gates lambda(x) * lambda(x'). That is what runs here. Minus signs
belong to the weights: a subtraction adds, and what other constant factors there are count with their absolute values,
so that K(x, x) is a sum of squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError, require
from softgate.explainers.gated import check_affine, record
from softgate.explainers.gates import Gates
from softgate.explainers.handlers import CallHandler
from softgate.models.gated import GatedNetwork
from softgate.paths import unsigned  # noqa: F401  # the operations that Scaled tensors know
from softgate.paths.scaled import Scaled, scaled
from softgate.sites.calls import ActivationCall, BlockCall, PoolCall
from softgate.sites.inference import inner, reading_out
from softgate.sites.sites import Sites
from softgate.surrogate.choices import take, weigh
from softgate.surrogate.functional import RELU
from softgate.surrogate.inputs import checked
from softgate.surrogate.rule import Surrogate

PAIRS = 32
"""Pairs of images that run at once."""


class _Paired(CallHandler):
    """Multiplies each call by the gates of two images."""

    def __init__(self, sites: Sites, first: Gates, second: Gates) -> None:
        super().__init__(sites)
        self.first, self.second = first, second

    def activation(self, call: ActivationCall, name: str) -> Tensor:
        relu = call.shape is RELU and call.weight is None
        require(relu, f"paths.kernel: {name} is a {call.kind}; only ReLU has a gate of 0 or 1 for each path.")
        a, b = self.first.sites[name], self.second.sites[name]
        z = _activations(call.z, name)
        out = z.like(z.value * (a.values & b.values if a.hard else a.values.double() * b.values.double()))
        return z.overwrite(out) if call.inplace else out

    def block(self, call: BlockCall, name: str) -> Tensor:
        raise SoftgateError(f"paths.kernel: {name} is a {call.kind}; only ReLU has a gate of 0 or 1 for each path.")

    def pooling(self, call: PoolCall, name: str) -> Any:
        a, b, window = self.first.sites[name], self.second.sites[name], call.window()
        x = _activations(call.x, name)
        if a.hard:
            return x.like(take(window, x.value, a.values) * (a.values == b.values))
        return x.like(weigh(window, x.value, a.values.double() * b.values.double()))


def _activations(x: Tensor, name: str) -> Scaled:
    require(isinstance(x, Scaled), f"paths.kernel: {name} is a call on constants; no path leads there.")
    assert isinstance(x, Scaled)
    return x


@checked
def kernel(
    model: nn.Module,
    x: Tensor,
    x2: Tensor | None = None,
    rule: Surrogate | None = None,
    *,
    log: bool = False,
    pairs: int = PAIRS,
) -> Any:
    r"""The path kernel of a ReLU network between images (paper, equation 23, for any architecture).

    Every weight counts as one, BatchNorm's factors too, and every additive constant as zero. A weight is a parameter,
    any other trainable tensor, or what is computed from these; every other factor, a number or a buffer, counts with
    its absolute value: averages keep their 1/n, `-x` is as `x`, and `x - y` as `x + y`. The sum runs over the paths
    that end in one output unit, and is averaged over these. With hard gates it is K_G, with a soft rule K_Gamma.

    Args:
        model: A network of convolutions, linear layers, BatchNorm, ReLU, pooling, sums and differences, concatenations
            and resizing, in whatever spelling.
        x: [N, ...] images as the model takes them.
        x2: [M, ...] other images; None is `x` again, at half the price.
        rule: None for hard gates, or the rule of the soft ones.
        log: Return sign and logarithm of the absolute value, for networks whose kernel exceeds float64.
        pairs: Pairs of images that run at once.

    Returns:
        [N, M] float64; with `log` two of them, the signs and the logarithms.

    Raises:
        SoftgateError: As `run`; for activations other than ReLU; for operations that are not known to be a sum of
            paths, or of which factors may be negative, as in bicubic resizing; and where a value exceeds float64 and
            `log` is false.
    """
    model = inner(model)
    first = record(model, x, rule)
    second = first if x2 is None else record(model, x2, rule)
    other = x if x2 is None else x2
    shape = len(x), len(other)
    sign, size = (torch.zeros(shape, dtype=torch.float64, device=x.device) for _ in range(2))
    with reading_out(model, None) as sites:
        model = sites.model
        check_affine(model, sites, x, first)
        run = _Run(model, sites)
        for i, j in _pairs(*shape, x2 is None, pairs):
            joint = x[i].detach().double() * other[j].detach().double()
            found = run(joint, first[i], second[j])
            for whole, part in zip((sign, size), found, strict=True):
                whole[i, j] = part
                if x2 is None:
                    whole[j, i] = part
    if x2 is None:
        require(bool((sign.diagonal() >= 0).all()), "paths.kernel: K(x, x) is no sum of squares; please report it.")
    if log:
        return sign, size
    values = sign * size.exp()
    require(bool(values.isfinite().all()), "paths.kernel: values exceed float64; ask for log=True.")
    return values


@checked
def paired_kernel(
    model: nn.Module, x: Tensor, x2: Tensor, rule: Surrogate | None = None, *, pairs: int = PAIRS
) -> tuple[Tensor, Tensor]:
    r"""`kernel` of each image with its partner alone, :math:`K_\Lambda(x_i, x'_i)`: the diagonal, without the rest.

    Args:
        model: As for `kernel`.
        x: [N, ...] images as the model takes them, or [1, ...], one that all are paired with.
        x2: [N, ...] their partners.
        rule: None for hard gates, or the rule of the soft ones.
        pairs: Pairs of images whose gates are held at once.

    Returns:
        Signs and logarithms of the absolute values, [N] float64 each.

    Raises:
        SoftgateError: As `kernel`; for other numbers of images.
    """
    _check_partners("paired_kernel", x, x2)
    parts = []
    for mine, partners in _partners(x, x2, pairs):
        first, second = _places(mine, partners)
        parts.append(_of_pairs(model, torch.cat([mine, partners]), (first, second), rule))
    signs, logarithms = zip(*parts, strict=True)
    return torch.cat(signs), torch.cat(logarithms)


@checked
def kernel_distance(
    model: nn.Module, x: Tensor, x2: Tensor, rule: Surrogate | None = None, *, pairs: int = PAIRS
) -> Tensor:
    r"""One minus the cosine of the path features of each image and its partner.

    .. math:: d_\Lambda(x, x') = 1 - K_\Lambda(x, x') / \sqrt{K_\Lambda(x, x)\, K_\Lambda(x', x')}

    What the paper (arXiv 2507.22832, section 4.3.2) supposes perceptual distances between deep features to be made of.

    Args:
        model: As for `kernel`.
        x: [N, ...] images as the model takes them, or [1, ...], one that all are compared with.
        x2: [N, ...] their partners.
        rule: None for K_G, the kernel of hard gates; or the rule of the soft ones, for K_Gamma.
        pairs: As for `paired_kernel`.

    Returns:
        [N] float64 in [0, 2]; 1 where an image has no open path.

    Raises:
        SoftgateError: As `paired_kernel`.
    """
    _check_partners("kernel_distance", x, x2)
    found = []
    for mine, partners in _partners(x, x2, pairs):
        first, second = _places(mine, partners)
        alone = torch.unique(first)  # one image that all are compared with is run once
        every = torch.cat([first, second, alone]), torch.cat([second, second, alone])
        sign, size = _of_pairs(model, torch.cat([mine, partners]), every, rule)
        count = len(second)
        both, theirs, own = size[:count], size[count : 2 * count], size[2 * count :][first]
        dead = own.isneginf() | theirs.isneginf()
        cosine = sign[:count] * (both - (own + theirs) / 2).exp()
        found.append(1 - cosine.masked_fill(dead, 0.0).clamp(-1, 1))
    return torch.cat(found)


def _partners(x: Tensor, x2: Tensor, pairs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and their partners, so many at once; one `x` goes with all."""
    for part in torch.split(torch.arange(len(x2), device=x.device), pairs):
        yield x if len(x) == 1 else x[part], x2[part]


def _places(x: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """Where each image, and its partner, stand among the images `x` and after them `x2`."""
    second = len(x) + torch.arange(len(x2), device=x.device)
    return (torch.zeros_like(second) if len(x) == 1 else second - len(x)), second


def _of_pairs(
    model: nn.Module, images: Tensor, places: tuple[Tensor, Tensor], rule: Surrogate | None
) -> tuple[Tensor, Tensor]:
    """Sign and logarithm of the kernel of the images that stand at pairs of places [N]."""
    first, second = places
    gates = record(model, images, rule)
    with reading_out(inner(model), None) as sites:
        check_affine(sites.model, sites, images, gates)
        joint = images[first].detach().double() * images[second].detach().double()
        return _Run(sites.model, sites)(joint, gates[first], gates[second])


def _check_partners(function: str, x: Tensor, x2: Tensor) -> None:
    fits = len(x2) > 0 and len(x) in (1, len(x2)) and x.shape[1:] == x2.shape[1:]
    shapes = f"{tuple(x.shape)} and {tuple(x2.shape)}"
    require(fits, f"paths.{function}: images of shapes {shapes}: as many are needed of one shape, or one x for all.")


class _Run:
    """Runs the network of absolute factors on some pairs of images."""

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        self.model, self.sites = model, sites
        for module in model.modules():
            if isinstance(module, GatedNetwork):  # what runs is no image that has features
                module.gates_given = True
        # Trainable even where they are frozen: that tells weights from other constants.
        self.weights = {
            name: parameter.detach().requires_grad_(parameter.is_floating_point())
            for name, parameter in model.named_parameters()
        }

    def __call__(self, joint: Tensor, first: Gates, second: Gates) -> tuple[Tensor, Tensor]:
        """Sign, and logarithm of the absolute value, [B], of the mean over the outputs of pairs [B, ...]."""
        start = scaled(joint)
        with self.sites.handled_by(_Paired(self.sites, first, second)):
            out: Any = torch.func.functional_call(self.model, self.weights, (start,))
        end = getattr(out, "logits", out)
        fits = isinstance(end, Scaled) and end.shape[:1] == joint.shape[:1]
        require(fits, f"paths.kernel: {type(self.model).__name__} returns no sum of paths for each image.")
        if start.range.faint and len(joint) > 1:  # one exponent cannot hold them all: each pair by itself
            each = [self(joint[k : k + 1], first[k : k + 1], second[k : k + 1]) for k in range(len(joint))]
            signs, logarithms = zip(*each, strict=True)
            return torch.cat(signs), torch.cat(logarithms)
        mean = end.value.flatten(1).mean(1)
        return mean.sign(), mean.abs().log() + end.exponent


def _pairs(rows: int, columns: int, symmetric: bool, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indexes [count] of the first and the second images of pairs, each pair once."""
    every = torch.triu_indices(rows, columns) if symmetric else torch.ones(rows, columns).nonzero().T
    yield from ((part[0], part[1]) for part in torch.split(every, count, 1))


@checked
def product_kernel(x: Tensor, gates: Gates, x2: Tensor, gates2: Gates) -> tuple[Tensor, Tensor]:
    r"""The paper's equation 23 as written, :math:`\langle x, x' \rangle \prod_\ell \langle \lambda, \lambda' \rangle`.

    Equal to `kernel` for fully connected chains without skip connections, and another kernel for everything else.

    Args:
        x: [N, ...] images.
        gates: Their gates.
        x2: [M, ...] other images.
        gates2: Their gates, of the same network.

    Returns:
        Signs and logarithms of the absolute values, [N, M] float64 each.
    """
    inner_product = x.double().flatten(1) @ x2.double().flatten(1).T
    sign, size = inner_product.sign(), inner_product.abs().log()
    for name, site in gates.sites.items():
        both = site.weights().double().flatten(1) @ gates2.sites[name].weights().double().flatten(1).T
        sign, size = sign * both.sign(), size + both.abs().log()
    return sign, size
