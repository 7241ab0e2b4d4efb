"""Formulas of docstrings, which are written for Sphinx, as characters that need no script to be read."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SIGNS = {
    r"\Lambda": "Λ", r"\Gamma": "Γ", r"\langle": "⟨", r"\rangle": "⟩", r"\sum": "Σ", r"\partial": "∂",
    r"\beta": "β", r"\gamma": "γ", r"\mu": "μ", r"\epsilon": "ε", r"\sqrt": "√", r"\cdot": "·", r"\odot": "⊙",
    r"\le": "≤", r"\in": "∈", r"\,": " ",
}  # fmt: skip


def plain(formula: str) -> str:
    """A formula of TeX with letters and signs in place of commands."""
    for sign in sorted(SIGNS, key=len, reverse=True):
        formula = formula.replace(sign, SIGNS[sign])
    return re.sub(r"\\(?:mathrm|text)\{([^}]*)\}", r"\1", formula).strip()


class Formulas(Extension):
    """Rewrites `:math:` in every docstring."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Is called for each object whose docstring was read."""
        if obj.docstring:
            text = re.sub(r":math:`([^`]*)`", lambda found: f"`{plain(found[1])}`", obj.docstring.value)
            obj.docstring.value = re.sub(
                r"^( *)\.\. math:: (.*)$", lambda found: f"{found[1]}    {plain(found[2])}", text, flags=re.M
            )
