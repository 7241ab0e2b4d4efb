"""The parts of a rule as plain data, at another temperature, and by their energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from softgate.errors import SoftgateError, unknown
from softgate.surrogate import activations, attentions, gates, pools
from softgate.surrogate.smooth import Smooth

Part = TypeVar("Part", gates.Gate, pools.Pool, activations.Activation, attentions.Attention)


def name_of(part: Any, known: Mapping[str, type]) -> str:
    """The name of a part in configs.

    Raises:
        SoftgateError: If its class gave itself none.
    """
    for name, kind in known.items():
        if type(part) is kind:
            return name
    raise SoftgateError(f"{part!r} has no name in a config; the known ones are: {', '.join(sorted(known))}.")


def build(option: str, plain: Mapping[str, Any], known: Mapping[str, type[Part]]) -> Part:
    """The part that a dict describes: its `name`, and its settings.

    Args:
        option: What to call it in errors.
        plain: The dict.
        known: The parts by their names.

    Raises:
        SoftgateError: For an unknown name or setting, or one out of range.
    """
    if not isinstance(plain, Mapping):
        raise SoftgateError(f"{option}={plain}: a dict with a 'name' is needed; names: {', '.join(sorted(known))}.")
    settings = dict(plain)
    name = settings.pop("name", None)
    if name not in known:
        raise unknown(f"{option}.name", name, known)
    kind = known[name]
    allowed = {f.name for f in fields(kind)}
    for key in settings:
        if key not in allowed:
            takes = ", ".join(sorted(allowed)) or "no settings"
            raise SoftgateError(f"{option}.{key}={settings[key]}: {name} has no such setting; it takes {takes}.")
    try:
        return kind(**settings)
    except SoftgateError as error:
        raise SoftgateError(f"surrogate.{error}") from None


def warmed(part: Part, factor: float) -> Part:
    """A part with its temperature, where it has one, times a factor."""
    if isinstance(part, (activations.Activation, attentions.Attention)):
        return part.warmed(factor)  # type: ignore[return-value]  # of the same base
    warm = getattr(part, "temperature", None)
    return part if warm is None else replace(part, temperature=warm * factor)  # type: ignore[call-arg]  # it has one


def _half() -> tuple[Tensor, Tensor]:
    """Places z > 0, [400], and what each weighs in a mean over N(0, 1), by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    half = torch.tensor(6.0 * (nodes + 1))  # [-1, 1] -> [0, 12]; the normal density ends well before 12
    return half, torch.tensor(6.0 * weights) * torch.exp(-half.square() / 2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=256)
def rms_gain(gate: gates.Gate, mix: float) -> float:
    """sqrt(E[factor(z)^2] / 0.5) for z ~ N(0, 1), 0.5 being what the hard gate has."""
    half, density = _half()
    energy = sum(float((density * gate.energy(sign * half, mix)).sum()) for sign in (1.0, -1.0))
    return math.sqrt(energy / 0.5)


def smooth_rms_gain(shape: Smooth, temperature: float, mix: float) -> float:
    """sqrt(E[factor(z)^2] / E[act'(z)^2]) for z ~ N(0, 1), for a smooth activation."""
    return _smooth_rms_gain(shape, temperature, mix)


# What torch.compiler.assume_constant_result sets, which would import the compiler: it cannot integrate.
smooth_rms_gain._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a mark on a function


@lru_cache(maxsize=256)
def _smooth_rms_gain(shape: Smooth, temperature: float, mix: float) -> float:
    half, density = _half()
    z, density = torch.cat([half, -half]), torch.cat([density, density])
    true = shape.derivative(torch.ones_like(z), z)
    factor = torch.lerp(true, shape.gate(z, temperature), mix)
    return math.sqrt(float((density * factor.square()).sum() / (density * true.square()).sum()))
