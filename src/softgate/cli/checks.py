"""Every option of a command, checked before its directory is made and before Lightning is imported."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from softgate import targets


def check(config: DictConfig) -> None:
    """Reads the config of a run or an evaluation as types; the command reads it again when it begins.

    Args:
        config: As Hydra composed it, its own node included.

    Raises:
        SoftgateError: For the first option that is wrong.
    """
    name = config.hydra.job.config_name
    with open_dict(copy := config.copy()):
        del copy["hydra"]
    try:
        plain: Any = OmegaConf.to_container(copy, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        return  # the command itself says better what is not set
    if name == "train":
        # What a job of a sweep is resumed by is known when it begins.
        targets.note_typed(plain)
        _training({**plain, "sweep": {**plain["sweep"], "resume": False}})
    elif name == "evaluate":
        from softgate.evaluation.config import options

        options(copy)


def _training(plain: dict[str, Any]) -> None:
    """What needs no torch goes first: of most mistakes one learns before torch is imported."""
    from softgate.data.config import NamedData
    from softgate.training.groups import Groups

    read = Groups.read({key: value for key, value in plain.items() if key in Groups.model_fields})
    if isinstance(read.data, NamedData):
        read.data.look()
    from softgate.training.config import TrainConfig

    TrainConfig.read(plain)
