"""The two ways in which the rules are computed: autograd Functions of their own, and forward gradient injection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from softgate.errors import unknown
from softgate.surrogate import attention_paths, functional, held_norm, injection


@dataclass(frozen=True)
class Backend:
    """How the rules are computed.

    Attributes:
        name: In `softgate.attach(..., backend=)`.
        gated: As `softgate.surrogate.functional.gated`.
        prelu: As `functional.prelu`.
        max_pool2d: As `functional.max_pool2d`.
        injected: As `functional.injected`.
        damped: As `attention_paths.damped`.
        held_norm: As `held_norm.held_norm`.
    """

    name: str
    gated: Any
    prelu: Any
    max_pool2d: Any
    injected: Any
    damped: Any
    held_norm: Any


FUNCTIONS = Backend(
    "functions",
    functional.gated,
    functional.prelu,
    functional.max_pool2d,
    functional.injected,
    attention_paths.damped,
    held_norm.held_norm,
)
"""Autograd Functions: what trains fast and keeps little."""

FGI = Backend(
    "fgi",
    injection.gated,
    injection.prelu,
    injection.max_pool2d,
    injection.injected,
    injection.damped,
    injection.held_norm,
)
"""Forward gradient injection: ordinary operations, for torch.export and forward-mode differentiation."""

BACKENDS = {each.name: each for each in (FUNCTIONS, FGI)}


def backend_of(name: str) -> Backend:
    """The backend of a name.

    Raises:
        SoftgateError: If there is none.
    """
    if name not in BACKENDS:
        raise unknown("attach: backend", name, BACKENDS)
    return BACKENDS[name]
