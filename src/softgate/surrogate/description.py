"""A rule in words: what of it differs from the true gradient, for screens, captions, tags and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from softgate.surrogate import activations, attentions, gates, pools
from softgate.surrogate.rule import PARTS, Surrogate

BLOCKS = ("activation", "norm", "attention", "product")
"""The fields beside gate and pool that say what a rule does at a kind of call site."""

_OFF = (gates.Hard(), pools.Hard(), activations.Own(), attentions.Own(), "own")
_ARGUMENTS = ("gain", "scale", "mix")


def sentence(rule: Surrogate) -> str:
    """The rule with its settings: "gate Sigmoid(temperature=0.3), pool LSE(temperature=0.3), gain matched"."""
    if not any(getattr(rule, part) not in _OFF for part in ("gate", "pool", *BLOCKS)):
        return "the true gradient"
    usual = Surrogate()
    parts = [f"{part} {getattr(rule, part)}" for part in ("gate", "pool")]
    parts += [f"{part} {getattr(rule, part)}" for part in BLOCKS if getattr(rule, part) not in _OFF]
    parts += [f"{key} {getattr(rule, key)}" for key in _ARGUMENTS if getattr(rule, key) != getattr(usual, key)]
    return ", ".join([*parts, *([] if rule.schedule == usual.schedule else ["scheduled"])])


def caption(rule: Surrogate) -> str:
    """The rule in a few words: "Sigmoid(T=0.3)", "NormalCDF(T=0.6), self_gate, norm constant", "hard gates"."""
    if not rule.soft:
        return "hard gates"
    gate = [repr(rule.gate).replace("temperature=", "T=")] if rule.softens_relu else ["hard gates"]
    return ", ".join([*gate, *names(rule.to_dict())[1:]])


def names(plain: Mapping[str, Any]) -> list[str]:
    """The gate's name, and those of what a rule does at smooth activations and blocks.

    Args:
        plain: The rule as `Surrogate.to_dict` writes it, or as a config has it.
    """
    found = [str((plain.get("gate") or {}).get("name"))]
    for part in BLOCKS:
        given = plain.get(part) or "own"
        name = given.get("name") if isinstance(given, Mapping) else given
        if name != "own":
            found.append(f"{part} {name}" if part not in PARTS else str(name))
    return found


def completed(rule: Surrogate) -> Surrogate:
    """A rule for ReLUs and poolings with what `Surrogate.semantic` does at all else, where it leaves that its own."""
    fuller = Surrogate.semantic()
    return replace(rule, **{part: getattr(fuller, part) for part in BLOCKS if getattr(rule, part) in _OFF})
