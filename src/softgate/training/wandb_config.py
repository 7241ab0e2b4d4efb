"""The options of `logger=wandb`."""

from __future__ import annotations

from inspect import signature
from typing import ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from softgate.errors import unknown
from softgate.options import Options, Words


class WandbConfig(Options):
    """The options of `logger=wandb`; any other argument of `WandbLogger` or `wandb.init` may be added."""

    model_config = ConfigDict(extra="allow")
    at: ClassVar[str] = "logger.wandb"

    project: str = Field("softgate", description="the project the run appears in")
    entity: str | None = Field(None, description="the team or user; null is your default")
    name: str | int | float | None = Field(None, description="the run's name")
    group: str | None = Field(
        None,
        description="runs with the same group are shown together; null is the sweep's name, of a single run its own",
    )
    tags: Words = Field((), description="words to filter by")
    job_type: str | None = Field(None, description="what kind of job this is")
    offline: bool = Field(False, description="write the run to disk only")

    @model_validator(mode="after")
    def _taken(self) -> Self:
        if self.model_extra:
            import wandb
            from pytorch_lightning.loggers import WandbLogger

            taken = {*signature(WandbLogger.__init__).parameters, *signature(wandb.init).parameters}
            ours = {"self", "kwargs", "config", "save_dir", "dir"}  # of them, these are set here
            for key in self.model_extra:
                if key not in taken - ours:
                    raise unknown("logger.wandb", key, {*type(self).model_fields, *taken} - ours)
        return self
