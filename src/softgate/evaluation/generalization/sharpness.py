r"""How sharp a minimum is: the largest eigenvalue of the loss's Hessian, and how much the loss rises nearby.

Both are taken in eval mode and under the true gradient, whatever rule the network was trained with: gates held
constant would give another matrix. The network is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from softgate.errors import require
from softgate.explainers.pullback import CHUNK, PAPER_PIXELS, require_logits
from softgate.sites.inference import reading_out

TOLERANCE = 1e-3
"""Lanczos ends where the eigenvalue is known to this share of itself."""


def largest_eigenvalue(model: nn.Module, x: Tensor, labels: Tensor, iterations: int = 30, seed: int = 0) -> float:
    """The largest eigenvalue of the Hessian of the mean cross entropy in all weights, by Lanczos' method.

    No vector but the last two is kept, and none is orthogonalised again: rounding then gives copies of the extreme
    eigenvalues, which does no harm to the largest. A Ritz value is never too large by more than its residual.

    Args:
        model: The network.
        x: [B, C, H, W].
        labels: [B].
        iterations: Hessian-vector products, at most.
        seed: Of the first vector.

    Returns:
        The eigenvalue; NaN where the loss is no finite number.

    Raises:
        SoftgateError: If there is no iteration.
    """
    require(iterations >= 1, f"sharpness iterations={iterations}: at least 1 is needed.")
    with reading_out(model, None, differentiable=True) as sites:
        model = sites.model
        weights = [p for p in model.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(seed)
        now = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in weights]
        now = _scaled(now, 1 / _norm(now))
        product = _Product(model, weights, x, labels)
        before, turn = [torch.zeros_like(p) for p in weights], 0.0
        diagonal: list[float] = []
        beside: list[float] = []
        for step in range(iterations):
            ahead = product(now)
            diagonal.append(_dot(ahead, now))
            ahead = [a - diagonal[-1] * v - turn * u for a, v, u in zip(ahead, now, before, strict=True)]
            turn = _norm(ahead)
            value, residual = _ritz(diagonal, beside, turn)
            if not math.isfinite(value) or residual <= TOLERANCE * abs(value) or step == iterations - 1:
                break
            beside.append(turn)
            before, now = now, _scaled(ahead, 1 / turn)
    return value


def ascent_gap(model: nn.Module, x: Tensor, labels: Tensor, radius: float = 0.05) -> float:
    """How much the mean cross entropy rises after one step uphill of length `radius`, in nats (arXiv 2010.01412).

    Args:
        model: The network.
        x: [B, C, H, W].
        labels: [B].
        radius: L2 length of the step in all weights together; 0.05 in the source.
    """
    with reading_out(model, None, differentiable=True) as sites:
        model = sites.model
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        slope = [torch.zeros_like(p) for p in named.values()]
        here = 0.0
        for part in _parts(x, labels):
            loss = _loss(model(part[0]), part[1], len(x))
            here += float(loss.detach())
            slope = [s + g for s, g in zip(slope, torch.autograd.grad(loss, list(named.values())), strict=True)]
        length = radius / max(_norm(slope), 1e-12)
        with torch.no_grad():
            moved = {name: p + length * s for (name, p), s in zip(named.items(), slope, strict=True)}
            there = sum(float(_loss(functional_call(model, moved, a), b, len(x))) for a, b in _parts(x, labels))
    return there - here


class _Product:
    """The Hessian times a vector, chunk by chunk; the gradient's graph is kept where all images are one chunk."""

    def __init__(self, model: nn.Module, weights: list[nn.Parameter], x: Tensor, labels: Tensor) -> None:
        self.model, self.weights, self.total = model, weights, len(x)
        self.parts = list(_parts(x, labels))
        self.kept = self._slope(*self.parts[0]) if len(self.parts) == 1 else None

    def __call__(self, v: list[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.weights]
        for part in self.parts:
            slope = self.kept or self._slope(*part)
            along = torch.stack([(s * u).sum() for s, u in zip(slope, v, strict=True)]).sum()
            again = self.kept is not None
            found = torch.autograd.grad(along, self.weights, retain_graph=again, materialize_grads=True)
            total = [t + f.detach() for t, f in zip(total, found, strict=True)]
        return total

    def _slope(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        loss = _loss(self.model(images), labels, self.total)
        return torch.autograd.grad(loss, self.weights, create_graph=True)


def _parts(x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks that bound memory: the second derivative keeps every activation twice."""
    count = max(1, CHUNK * PAPER_PIXELS // max(1, x[0].numel()) // 2)
    yield from zip(torch.split(x, count), torch.split(labels, count), strict=True)


def _loss(out: Any, labels: Tensor, total: int) -> Tensor:
    logits = getattr(out, "logits", out)
    require_logits(logits, len(labels))
    return F.cross_entropy(logits, labels, reduction="sum") / total


def _ritz(diagonal: list[float], beside: list[float], turn: float) -> tuple[float, float]:
    """The largest eigenvalue of the tridiagonal matrix, and how far off it can be."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for place, value in enumerate(beside):
        matrix[place, place + 1] = matrix[place + 1, place] = value
    if not bool(torch.isfinite(matrix).all()):
        return math.nan, math.nan
    values, vectors = torch.linalg.eigh(matrix)
    return float(values[-1]), abs(turn * float(vectors[-1, -1]))


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return float(sum((u.double() * v.double()).sum() for u, v in zip(a, b, strict=True)))


def _norm(a: list[Tensor]) -> float:
    return math.sqrt(_dot(a, a))


def _scaled(a: list[Tensor], factor: float) -> list[Tensor]:
    return [u * factor for u in a]
