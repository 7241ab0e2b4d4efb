"""Where a run stands in its sweep: the sweep's name, the job's number, the words that made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf


def own_words(words: Iterable[str]) -> list[str]:
    """The overrides that are about a run itself, and not about where or how it is launched."""
    return [word for word in words if not word.startswith(("hydra.", "hydra/", "sweep.", "resume="))]


def name_of(sweep: Mapping[str, Any], directory: Path) -> str:
    """The sweep's name; by default its directory's, with the day that it stands under."""
    return str(sweep["name"] or "/".join(directory.absolute().parts[-2:]))


def place(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The options under `sweep.` with what is known only now filled in.

    The launcher has filled them in for its jobs. A job of another launcher, such as submitit's, reads them from Hydra;
    a single run has its words there, and no number.
    """
    if sweep["job"] is not None:
        return dict(sweep)
    hydra = HydraConfig.get()
    found = dict(sweep) | {"overrides": own_words(hydra.overrides.task)}
    if not OmegaConf.is_missing(hydra.job, "num"):
        found |= {"job": hydra.job.num, "name": name_of(sweep, Path(hydra.sweep.dir))}
    return found
