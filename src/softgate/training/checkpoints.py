"""Reading checkpoints: plain data only, whoever made the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from softgate import files, targets
from softgate.data.config import NamedData
from softgate.errors import SoftgateError
from softgate.training import SoftgateModule, checkpoints


def read(path: Path, option: str) -> dict[str, Any]:
    """A checkpoint, read with `weights_only`: nothing in it is run.

    Args:
        path: The file.
        option: The option that named it, for the error.

    Raises:
        SoftgateError: If the file is cut short, is no checkpoint or names code to run.
    """
    try:
        found = files.load(path)
    except Exception as error:  # whatever a file that is no checkpoint makes the unpickler raise
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            said = f"it names code to run, {named[1]}, which is not run; only plain data is read"
            raise SoftgateError(f"{option}={path}: {said}.") from None
        raise SoftgateError(f"{option}={path}: not a checkpoint of plain data, or cut short ({_why(error)}).") from None
    if not isinstance(found, dict):
        raise not_ours(path, option, f"it holds a {type(found).__name__}")
    return found


def not_ours(path: Path, option: str, reason: str | BaseException) -> SoftgateError:
    """The error for a checkpoint of plain data that some other program wrote."""
    said = reason if isinstance(reason, str) else _why(reason)
    return SoftgateError(f"{option}={path}: not a checkpoint that softgate wrote ({said}).")


def _why(error: BaseException) -> str:
    """The first sentence of an error, which may have many."""
    return re.split(r"(?<=\w)\. |\n", str(error))[0].rstrip(".:") if str(error) else type(error).__name__


def restore(path: Path, option: str = "runs") -> tuple[SoftgateModule, dict[str, Any]]:
    """Rebuilds a trained module from a checkpoint, read with `weights_only`, and the data options it was trained on.

    Raises:
        SoftgateError: If the file is damaged, names code to run, was not written by softgate, or is of a network
            with the gates of another.
    """
    checkpoint = checkpoints.read(path, option)
    try:
        settings = dict(checkpoint["hyper_parameters"])
        options = dict(checkpoint["datamodule_hyper_parameters"]["options"])
        targets.check_trusted([settings, options], f"{option}={path}: it")
        module = SoftgateModule(**settings)
        module.load_state_dict(checkpoint["state_dict"])
        module.on_load_checkpoint(checkpoint)
    except (KeyError, TypeError, RuntimeError) as error:
        raise checkpoints.not_ours(path, option, error) from None
    if module.gates is not None:
        said = "its network was trained with the gates of another (gates_from) and is none by itself"
        raise SoftgateError(f"{option}={path}: {said}; what it reached stands in the run's summary.json.")
    own = targets.KEY in options
    return module, {key: value for key, value in options.items() if own or key in NamedData.model_fields}
