r"""The path kernel: how much two images share, summed over all paths of a network.

.. math:: K_\Lambda(x, x') = \langle \phi_\Lambda(x), \phi_\Lambda(x') \rangle
          = \sum_p x[p_0] x'[p_0] \prod_\ell \lambda_\ell(x)[p_\ell] \lambda_\ell(x')[p_\ell]

The paper's equation 23 writes this as a product over layers, which holds for fully connected chains. For any network
whose operations are linear once its gates are given, the sum over paths is the value of the same architecture, with all
weights one and no additive constant, on x * x' with gates lambda(x) * lambda(x'). That is what runs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.paths.gates import Gates
from softgate.paths.running import CallHandler, check_affine, record
from softgate.paths.scaled import Scaled, logarithm, normalized, overwrite, scaled, value_of
from softgate.paths.windows import take, weigh
from softgate.sites.calls import ActivationCall, PoolCall
from softgate.sites.inference import inner, reading_out
from softgate.sites.sites import Sites
from softgate.surrogate.functional import RELU
from softgate.surrogate.rule import Surrogate

PAIRS = 32
"""Pairs of images that run at once."""


class _Paired(CallHandler):
    """Multiplies each call by the gates of two images."""

    def __init__(self, sites: Sites, first: Gates, second: Gates) -> None:
        super().__init__(sites)
        self.first, self.second = first, second

    def activation(self, call: ActivationCall, name: str) -> Tensor:
        relu = call.shape is RELU
        require(relu, f"paths.kernel: {name} is a {call.kind}; only ReLU has a gate of 0 or 1 for each path.")
        a, b = self.first.sites[name], self.second.sites[name]
        z = call.z
        assert isinstance(z, Scaled)
        both = a.values & b.values if a.hard else a.values.double() * b.values.double()
        out = scaled(value_of(z) * both, z.exponent)
        return overwrite(z, out) if call.inplace else out

    def pooling(self, call: PoolCall, name: str) -> Any:
        a, b, x, window = self.first.sites[name], self.second.sites[name], call.x, call.window()
        assert isinstance(x, Scaled)
        value = value_of(x)
        if a.hard:
            return scaled(take(window, value, a.values) * (a.values == b.values), x.exponent)
        return scaled(weigh(window, value, a.values.double() * b.values.double()), x.exponent)


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

    Every weight counts as one, BatchNorm's factors too, and every additive constant as zero; averages keep their 1/n.
    The sum runs over the paths that end in one output unit, and is averaged over these. With hard gates the kernel is
    K_G, with a soft rule K_Gamma.

    Args:
        model: A network of convolutions, linear layers, BatchNorm, ReLU, pooling, sums and concatenations.
        x: [N, ...] images as the model takes them.
        x2: [M, ...] other images; None is `x` again, at half the price.
        rule: None for hard gates, or the rule of the soft ones.
        log: Return sign and logarithm of the absolute value, for networks whose kernel exceeds float64.
        pairs: Pairs of images that run at once.

    Returns:
        [N, M] float64; with `log` two of them, the signs and the logarithms.

    Raises:
        SoftgateError: As `run`; for activations other than ReLU; for operations that are no sum of paths; and where a
            value exceeds float64 and `log` is false.
    """
    model = inner(model)
    first = record(model, x, rule)
    second = first if x2 is None else record(model, x2, rule)
    other = x if x2 is None else x2
    shape = len(x), len(other)
    sign, size = (torch.zeros(shape, dtype=torch.float64, device=x.device) for _ in range(2))
    with reading_out(model, None) as sites, torch.no_grad():
        model = sites.model
        check_affine(model, sites, x, first)
        for i, j in _pairs(*shape, x2 is None, pairs):
            joint = x[i].double() * other[j].double()
            with sites.handled_by(_Paired(sites, first[i], second[j])):
                out: Any = model(normalized(joint, torch.zeros(len(i), dtype=torch.float64, device=x.device)))
            found = logarithm(getattr(out, "logits", out))
            for whole, part in zip((sign, size), found, strict=True):
                whole[i, j] = part
                if x2 is None:
                    whole[j, i] = part
    if log:
        return sign, size
    values = sign * size.exp()
    require(bool(values.isfinite().all()), "paths.kernel: values exceed float64; ask for log=True.")
    return values


def _pairs(rows: int, columns: int, symmetric: bool, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indexes [count] of the first and the second images of pairs, each pair once."""
    every = torch.triu_indices(rows, columns) if symmetric else torch.ones(rows, columns).nonzero().T
    yield from ((part[0], part[1]) for part in torch.split(every, count, 1))


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
