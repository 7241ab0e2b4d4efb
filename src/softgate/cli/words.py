"""The words of a command line, as they are typed and as Hydra wants them.

Hydra wants a `+` in front of a key that no file has, and cannot put one gate in another's place. Nobody should have to
know which keys have a file: keys of targets, of gates and of poolings may be typed plainly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from omegaconf import OmegaConf

GROUPS = ("model", "data", "optim")
"""Groups that a target replaces as a whole; `GROUP=target` is the choice that has nothing but the target."""

_TARGET = re.compile(
    r"\+{0,2}(?P<place>model|data|optim|optim\.scheduler|(?:callbacks|logger|metrics)\.[\w-]+)(?:\._target_=|=\{.*_target_)"
)
_PART = re.compile(r"(?P<place>(?:surrogate|readout)\.(?:gate|pool|activation|attention))(?P<rest>[.=].*)")
_NAME = re.compile(r"(?<=gate|pool)=(?=\w+$)|(?<=tion)=(?=\w+$)")
"""Where a part is given by its name alone: surrogate.attention=two_pass."""
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
            made.append(f"++{_NAME.sub('.name=', word, count=1)}")
        elif word.startswith(_NEW) or any(word.startswith((f"{place}.", f"{place}={{")) for place in places):
            made.append(f"++{word}")
        else:
            made.append(word)
    return [*first, *replaced, *made]


ALIASES = {
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs", "trainer.epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("learning_rate", "optim.learning_rate", "optimizer.lr"), "optim.lr"),
    **dict.fromkeys(("ckpt_path", "checkpoint", "resume_from_checkpoint", "trainer.resume_from_checkpoint"), "resume"),
    **dict.fromkeys(("batch_size", "bs", "data.bs", "train.batch_size"), "data.batch_size"),
    **dict.fromkeys(("gpus", "trainer.gpus", "devices"), "trainer.devices"),
    **dict.fromkeys(("dataset", "data.dataset"), "data.name"),
    **dict.fromkeys(("arch", "backbone", "model.arch"), "model.name"),
    **dict.fromkeys(("workers", "num_workers", "data.workers"), "data.num_workers"),
    **dict.fromkeys(("wd", "optim.wd", "weight_decay"), "optim.weight_decay"),
    **dict.fromkeys(("image_size", "img_size", "data.img_size", "data.image_size"), "data.size"),
    **dict.fromkeys(("temperature", "surrogate.temperature", "T"), "surrogate.gate.temperature"),
    **dict.fromkeys(("output_dir", "out", "save_dir"), "hydra.run.dir"),
    **dict.fromkeys(("pretrained", "model.pretrained"), "model.weights"),
    **dict.fromkeys(("optimizer", "optimizer.name"), "optim"),
}
"""What other tools call an option of ours."""


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The option that a key which is none may stand for: another tool's name for it, one that ends alike, the nearest.

    Args:
        key: As it was typed.
        known: The dotted options that there are.
    """
    alias = ALIASES.get(key)
    if alias is not None:
        return alias
    last = key.rpartition(".")[2]
    group = key.partition(".")[0]
    ends = [option for option in known if option.rpartition(".")[2] == last]
    at_home = [option for option in ends if option.partition(".")[0] == group] or ends
    if at_home:
        return min(at_home, key=lambda option: option.count("."))
    near = get_close_matches(key, known, n=1) or get_close_matches(last, [o.rpartition(".")[2] for o in known], n=1)
    if near and near[0] not in known:
        return next(option for option in known if option.rpartition(".")[2] == near[0])
    return near[0] if near else None


def own_configs(words: Sequence[str], configs: Path) -> list[str]:
    """The word by which a folder `conf/` where the command is typed is searched after softgate's own, if there is one.

    Args:
        words: Those that were typed.
        configs: softgate's own folder.
    """
    own = Path.cwd() / "conf"
    if not own.is_dir() or own.resolve() == configs.resolve() or any(w.startswith("hydra.searchpath=") for w in words):
        return []
    path = str(own).replace("\\", "\\\\").replace('"', '\\"')
    return [f'hydra.searchpath=["file://{path}"]']


def last_part(name: str) -> str:
    """What a target is called: the last part of its dotted name."""
    return name.rpartition(".")[2]


OmegaConf.register_new_resolver("last_part", last_part, replace=True)  # for the names of targets in conf/
