"""What a run's directory may bring along: somebody else may have made it, so its files are data and act on nothing.

The words that a run began with are the one thing read from a file that reaches a command line; `check_words` lets pass
what sets an option of a run and nothing else. `check_links` keeps what a run writes within its directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from softgate import targets
from softgate.errors import SoftgateError, require
from softgate.options import Options
from softgate.training.config import TrainConfig

PLACES = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
"""All that a file may say to Hydra itself."""

_NAME = re.compile(r"(?!_)[\w-]+")
_CHOICE = re.compile(r"[\w-]+(/[\w-]+)*")
_INTERPOLATION = re.compile(r"\$\{[A-Za-z][\w.\[\]]*\}")
"""Of another option. One with a colon calls a resolver, such as oc.env."""


def check_words(words: Sequence[str], file: Path, configs: Path, typed: Sequence[str] = ()) -> None:
    """Refuses words of a file that do more than set an option of a run.

    Args:
        words: What the file would add to a command line.
        file: For the error.
        configs: The folder with `train.yaml` and its groups.
        typed: The words that the person who runs the command has typed. A target that is among them may be in the
            file too, and one of a package in `trust=`; then so may its arguments.

    Raises:
        SoftgateError: For the first word that is none of `key=value` with a known key and a plain value.
    """
    defaults: Any = OmegaConf.to_container(OmegaConf.load(configs / "train.yaml"))
    groups = {str(key) for entry in defaults["defaults"] if isinstance(entry, dict) for key in entry}
    parser = OverridesParser.create()
    packages: set[str] = set()
    for word in typed:
        if word.startswith("trust="):
            named: Any = parser.parse_override(word).value()
            packages.update(map(str, named if isinstance(named, list) else ()))
    places = [*_places(typed)]
    for word in words:
        try:
            read = parser.parse_override(word)
            found = [*_places([word])]
            if found:
                targets.check_trusted({found[0]: _value(read)}, f"{file}: {word}", packages)
                places += found
            why = "" if _is_argument(word, places) else _objection(read, word, groups, configs)
        except HydraException:
            why = "it cannot be read as KEY=VALUE"
        if why:
            raise SoftgateError(f"{file}: {word} is not taken from a file of a run: {why}.")


_PLACE = re.compile(
    r"\+{0,2}((?:model|data|optim)(?:\.scheduler)?|(?:callbacks|logger|metrics)\.[\w-]+)(?:\._target_=|=\{.*_target_)"
)


def _places(words: Sequence[str]) -> Iterator[str]:
    """Where words put targets, such as "model" or "callbacks.mine"."""
    yield from (found[1] for word in words if (found := _PLACE.match(word)))


def _value(word: Override) -> Any:
    """What a word sets, as the data of a target where it names one."""
    value = word.value()
    return {targets.KEY: value} if word.key_or_group.endswith(f".{targets.KEY}") else value


def _is_argument(word: str, places: Sequence[str]) -> bool:
    """Whether a word sets a plain argument of a target, or the target itself, which was checked before."""
    key, _, value = word.lstrip("+").partition("=")
    inside = any(key == place or key.startswith(f"{place}.") for place in places)
    return inside and "${" not in value


def _objection(word: Override, raw: str, groups: set[str], configs: Path) -> str:
    """Why a word is refused; empty where it is not."""
    key, value = word.key_or_group, word.value()
    if key.split(".")[0] == "plugins":
        return f"it would import Python modules; if you trust them, type {raw.lstrip('+~')} yourself"
    if word.is_sweep_override():
        return "one value is needed"
    # As it is written and as Hydra reads it: a backslash may hide a brace.
    if not all(map(_calls_nothing, (raw, *_texts(value)))):
        return "it holds an interpolation that calls a resolver"
    if key in PLACES:
        return ""
    if re.match(r"hydra\b", key):
        return "no file says how a command is run; type it yourself"
    if word.package is not None or key in groups:
        place = key if word.package is None else f"{key}@{word.package}"
        if place not in groups:
            return "there is no such group"
        choices = value if isinstance(value, list) else [value]
        if word.is_delete() and value is None:
            return ""
        return "" if all(_is_choice(configs / key, each) for each in choices) else f"{key} has no such choice"
    return next(
        (
            f"{path} is no option that a file may set; type it yourself"
            for path in _paths(key, value)
            if not _is_option(path)
        ),
        "",
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, the keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _calls_nothing(text: str) -> bool:
    return "${" not in _INTERPOLATION.sub("", text)


def _is_choice(group: Path, choice: Any) -> bool:
    return _CHOICE.fullmatch(str(choice)) is not None and (group / f"{choice}.yaml").is_file()


def _paths(key: str, value: Any) -> Iterator[str]:
    """The dotted options that a value sets, those in its dicts too."""
    yield key
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _paths(f"{key}.{name}", each)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _paths(f"{key}.{place}", each)


def _is_option(path: str) -> bool:
    """Whether an option is one that softgate knows; what stands in a rule or a dict is for its reader to judge."""
    model: Any = TrainConfig
    for part in path.split("."):
        if not _NAME.fullmatch(part):
            return False
        if model is None:
            continue
        field = model.model_fields.get(part)
        if field is None:
            return False
        kinds = (field.annotation, *get_args(field.annotation))
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Options)), None)
    return True


def check_links(directory: Path, option: str) -> None:
    """Refuses a directory in which a link leads out of it: a run would write, or delete, what the link names.

    Args:
        directory: Of a run or a sweep that is to go on.
        option: What named it, for the error.

    Raises:
        SoftgateError: For the first such link, whether what it names is there or not.
    """
    home = directory.resolve()
    for folder, folders, names in os.walk(directory):
        # W&B links its own log of old runs to its cache, and writes each part into a new folder.
        if Path(folder).name == "wandb":
            folders.clear()
            continue
        for path in (Path(folder, name) for name in (*folders, *names)):
            if path.is_symlink():
                target = Path(os.path.realpath(path))
                said = f"{option}: {path} is a link that leads out of the directory, to {target}"
                require(target.is_relative_to(home), f"{said}; put the file or folder itself there.")
