"""Going on with a run: `resume=DIRECTORY`, or `resume=true` with the run's directory.

The command line is completed with what was typed when the run began, so that `resume=DIRECTORY` is enough. A run goes
on from `checkpoints/last.ckpt`, and begins anew where it had not come as far as one. Options that decide what is learnt
must be those of the run; others, such as the logger or the number of epochs, may be given anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from softgate import files
from softgate.errors import SoftgateError, require
from softgate.quoting import quoted, unquoted
from softgate.training import SoftgateModule, checkpoints, strangers
from softgate.training.config import TrainConfig
from softgate.training.config_differences import FREE, as_long, differences

SHOWN = 4
"""How many differing options an error lists."""


# -- the command line -----------------------------------------------------------------------------------


def complete(words: Sequence[str], several: bool, configs: Path) -> list[str]:
    """The words of a command with those that its run began with.

    Args:
        words: Of the command line, without the flags for a sweep.
        several: Whether it is a sweep.
        configs: The folder with `train.yaml` and its groups.

    Raises:
        SoftgateError: If `resume` names no run, or there is one in `hydra.run.dir` and it is not to be resumed; if the
            run's directory holds words that do more than set options, or links that lead out of it.
    """
    given = [word.partition("=")[2] for word in words if word.startswith("resume=")]
    typed = [unquoted(word.partition("=")[2]) for word in words if word.startswith("hydra.run.dir=")]
    if not given or given[-1].lower() == "false":
        if typed and not several:
            _require_empty(Path(typed[-1]))  # here, as Hydra replaces .hydra before the run can look
        return list(words)
    if any(word.startswith(("--config-", "-c")) for word in words):
        return list(words)  # a whole saved config needs no completion
    value = unquoted(given[-1])
    if value.lower() == "true":
        if several:
            return list(words)
        require(bool(typed), "resume=true: which run? Give its directory, as resume=outputs/DATE/TIME-NAME.")
        directory = Path(typed[-1])
        began = _began_with(directory)
        if began is None:
            strangers.check_links(directory, f"hydra.run.dir={directory}")
            return list(words)  # it begins here
    else:
        require(not several, f"resume={value}: one run goes on at a time; leave -m out.")
        directory = _home(value)
        began = _began_with(directory)
        if began is None:
            raise SoftgateError(f"resume={value}: it has no {files.FIRST_WORDS}; is it a run's directory?")
    ours = ("resume=", "hydra.run.dir=", "hydra.output_subdir=")
    mine = [word for word in words if not word.startswith(ours)]
    own = {_key(word) for word in mine}
    kept = [word for word in began if _key(word) not in own and _key(word) != "resume"]
    strangers.check_links(directory, f"resume={directory}")
    strangers.check_words(kept, directory / files.FIRST_WORDS, configs, mine)
    # The first part's .hydra stays as it is: it is what further parts are completed from.
    return [*kept, *mine, "resume=true", f"hydra.run.dir={quoted(directory)}", "hydra.output_subdir=null"]


def _home(value: str) -> Path:
    path = Path(value).expanduser()
    there = os.path.exists(path)  # noqa: PTH110  (Path.exists raises for a name that is too long)
    require(there, f"resume={value}: there is no such run; give its directory, or true.")
    if path.is_dir():
        return path
    require(
        path.name == files.LAST_CHECKPOINT.name and path.parent.name == files.LAST_CHECKPOINT.parent.name,
        f"resume={value}: a run goes on from its directory's {files.LAST_CHECKPOINT}; give the directory.",
    )
    return path.parents[1]


def _began_with(directory: Path) -> list[str] | None:
    try:
        found = _plain(directory / files.FIRST_WORDS)
    except Exception:  # absent, or not what Hydra writes
        return None
    return [str(word) for word in found] if isinstance(found, list) else None


def _plain(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path))


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


# -- the run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Former:
    """What an earlier part of a run left.

    Attributes:
        checkpoint: What to go on from; None begins anew.
        summary: Of a run that is finished already, else None.
    """

    checkpoint: Path | None = None
    summary: dict[str, Any] | None = None


def look(config: TrainConfig, directory: Path) -> Former:
    """What there is to go on with; nothing where `resume` is false.

    Args:
        config: The config.
        directory: The run's directory.

    Raises:
        SoftgateError: If the directory holds a run and `resume` is false, or holds one of another config.
    """
    last = directory / files.LAST_CHECKPOINT
    if not config.resume:
        if not config.trainer.fast_dev_run:
            _require_empty(directory)
        return Former()
    try:
        saved = _plain(directory / "config.yaml")
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError):
        raise SoftgateError(f"resume={directory}: its config.yaml is damaged.") from None
    except FileNotFoundError:
        require(
            not last.is_file(),
            f"resume={directory}: it has a {files.LAST_CHECKPOINT} and no config.yaml; is it a run's directory?",
        )
        return Former()
    now = config.plain
    _require_same(saved, now, f"resume={directory}: it is a run of another config; different")
    summary = _summary(directory) if as_long(saved, now) else None
    return Former(last if last.is_file() else None, summary)


def _require_empty(directory: Path) -> None:
    said = f"hydra.run.dir={directory}: there is a run in it; resume={directory} goes on with it."
    with files.refusals(directory):
        begun = (directory / files.LAST_CHECKPOINT).is_file()
    require(not begun, said)


def check(path: Path, module: SoftgateModule, data: Mapping[str, Any]) -> int:
    """The optimiser step that a checkpoint is of.

    Raises:
        SoftgateError: If it is damaged, names code to run, or is of another run.
    """
    found = checkpoints.read(path, "resume")
    try:
        saved = {**found["hyper_parameters"], "data": found["datamodule_hyper_parameters"]["options"]}
        names, shapes = _shapes(found.get("current_model_state", found["state_dict"])), _shapes(module.state_dict())
        missing = [key for key in ("loops", "optimizer_states", "lr_schedulers", "callbacks") if key not in found]
    except (KeyError, TypeError, AttributeError) as error:
        raise checkpoints.not_ours(path, "resume", error) from None
    if missing:
        raise checkpoints.not_ours(path, "resume", f"it lacks {', '.join(missing)}")
    _require_same(saved, {**module.hparams, "data": data}, f"resume={path}: it is of another run; different")
    require(names == shapes, f"resume={path}: its weights are not those of this network.")
    return int(found["global_step"])


def begin(config_yaml: str, directory: Path) -> None:
    """Notes the config of the part of the run that begins now; a former summary would say that it is finished."""
    (directory / "summary.json").unlink(missing_ok=True)
    files.write(config_yaml, directory / "config.yaml")


def _summary(directory: Path) -> dict[str, Any] | None:
    summary = files.read_json(directory / "summary.json")
    return summary if summary.get("status") == "finished" else None


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _require_same(saved: Any, config: Mapping[str, Any], start: str) -> None:
    odd = differences(saved, config, FREE)
    named = [f"{key} ({there} there, {here} here)" for key, (there, here) in list(odd.items())[:SHOWN]]
    more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
    require(not odd, f"{start}: {', '.join(named)}{more}.")
