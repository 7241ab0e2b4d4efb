"""The words of a command line, as they are typed and as Hydra wants them.

Hydra wants a `+` in front of a key that no file has, and cannot put one gate in another's place. Nobody should have to
know which keys have a file: keys of targets, of gates and of poolings may be typed plainly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

GROUPS = ("model", "data", "optim")
"""Groups that a target replaces as a whole; `GROUP=target` is the choice that has nothing but the target."""

_TARGET = re.compile(
    r"\+{0,2}(?P<place>model|data|optim|optim\.scheduler|(?:callbacks|logger|metrics)\.[\w-]+)(?:\._target_=|=\{.*_target_)"
)
_PART = re.compile(r"(?P<place>(?:surrogate|readout)\.(?:gate|pool))(?P<rest>[.=].*)")
_NEW = ("metrics.", "optim.scheduler=", "optim.scheduler.")
"""Keys that are known and stand in no file of `conf/`, or change from a name to a dict."""


def for_hydra(words: Sequence[str]) -> list[str]:
    """Words with the marks that Hydra wants.

    Args:
        words: As they were typed, without flags.
    """
    places = {found["place"] for word in words if (found := _TARGET.match(word))}
    chosen = {word.partition("=")[0].lstrip("+") for word in words}
    first = [f"{group}=target" for group in GROUPS if group in places and group not in chosen]
    replaced: dict[str, None] = {}
    made: list[str] = []
    for word in words:
        part = _PART.fullmatch(word)
        if part:
            if part["rest"].startswith(("=", ".name=")):
                replaced[f"~{part['place']}"] = None
            made.append(f"++{word}")
        elif word.startswith(_NEW) or any(word.startswith((f"{place}.", f"{place}={{")) for place in places):
            made.append(f"++{word}")
        else:
            made.append(word)
    return [*first, *replaced, *made]


def last_part(name: str) -> str:
    """What a target is called: the last part of its dotted name."""
    return name.rpartition(".")[2]
