"""The options under `gates_from.`: training the weights on from a recorded epoch, with gates that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from softgate.errors import require
from softgate.options import Number, Options, Says, Whole

RECORDINGS = ("paths", "paths-train")
"""Where a run's directory may have a recording, of validation and of training images."""


class GatesFromConfig(Options):
    """The options of `gates_from`; off where `run` is null."""

    at: ClassVar[str] = "gates_from"

    run: Annotated[str | None, Says("a run's directory, or null is needed")] = Field(
        None, description="directory of the run whose recorded weights are trained on; null is off"
    )
    epoch: Annotated[Annotated[Number, Field(ge=0)] | None, Says("a recorded epoch, a number >= 0, is needed")] = Field(
        None, description="the recorded epoch s that the weights begin at"
    )
    gates: Literal["epoch", "last", "random", "own"] = Field(
        "epoch",
        description="whose gates: of the network frozen at that epoch, of the run's last network, of a frozen network "
        "that was never trained, or the network's own, which is normal training",
    )
    seed: Whole = Field(314, description="initial weights of the network behind gates=random")

    @model_validator(mode="after")
    def _recorded(self) -> Self:
        if self.run is None:
            require(self.epoch is None, f"gates_from.epoch={self.epoch}: of which run? Set gates_from.run too.")
            return self
        require(self.epoch is not None, f"gates_from.run={self.run}: set gates_from.epoch, one of its recorded epochs.")
        found = any((Path(self.run).expanduser() / name / "header.json").is_file() for name in RECORDINGS)
        require(found, f"gates_from.run={self.run}: it holds no recording; give a run trained with callbacks=paths.")
        return self

    @property
    def given(self) -> bool:
        """Whether the gates are not the network's own."""
        return self.run is not None and self.gates != "own"
