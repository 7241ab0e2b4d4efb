"""The options under `callbacks.` as types; what they are of stands beside them, and brings in torch and Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from softgate.errors import require
from softgate.options import Count, Every, Number, Options, Says, Whole


class AlignmentConfig(Options):
    """The options of `callbacks.alignment`."""

    at: ClassVar[str] = "callbacks.alignment"

    every_n_epochs: Every = Field(0, description="epochs between two measurements; the last epoch always has one")
    images: Annotated[int, Field(ge=2)] = Field(256, description="probe images, spread evenly over the classes")
    few: Count = Field(10, description="of them, for what takes noisy copies or the maps of all classes")
    draws: Count = Field(10, description="noisy copies of each of these")
    dear_epochs: Whole = Field(
        0, description="at so many epochs, evenly on a log scale, the metrics of many passes run; 0 is never"
    )
    dear_images: Count = Field(16, description="how many of the probe images these take")
    seed: Whole = Field(314, description="picks the probe images; the same in every epoch and run")
    evaluator: Annotated[str | None, Says("a checkpoint's file, or null is needed")] = Field(
        None, description="a checkpoint of an independently trained network, to judge counterfactuals"
    )

    @model_validator(mode="after")
    def _found(self) -> Self:
        if self.every_n_epochs and self.evaluator is not None:
            said = f"callbacks.alignment.evaluator={self.evaluator}: there is no such file; a checkpoint is needed."
            require(Path(self.evaluator).expanduser().is_file(), said)
        return self


class DiagnosticsConfig(Options):
    """The options of `callbacks.diagnostics`."""

    at: ClassVar[str] = "callbacks.diagnostics"

    every_n_epochs: Every = Field(1, description="epochs between two looks")
    images: Annotated[int, Field(ge=2)] = Field(32, description="validation images, of all classes alike")
    seed: Whole = Field(314, description="picks them; the same in every epoch and run")


class GridsConfig(Options):
    """The options of `callbacks.grids`."""

    at: ClassVar[str] = "callbacks.grids"

    every_n_epochs: Every = Field(1, description="epochs between two grids; the last epoch always has one")
    early: bool = Field(
        True,
        description="before the n-th epoch, also after the epochs 0, 1, 2, 4, 8, ...: a network changes most there",
    )
    classes: Count = Field(5, description="rows: one image of each of so many classes")
    extra_targets: Whole = Field(1, description="columns beside the classes of the rows")
    seed: Whole = Field(314, description="picks the probe images")
    kind: Literal["raw", "ascent"] = Field(
        "raw", description="raw, the pullbacks, or ascent, what gradient ascent makes of the images"
    )
    scale: Literal["cell", "shared", "seismic"] = Field(
        "cell", description="one of `softgate.grids.SCALES`; the film's scale too"
    )
    chunk: Count | None = Field(None, description="at most so many images at once, to bound memory")
    raw: bool = Field(True, description="save the raw tensors too")
    keep: Annotated[Count | Literal["auto", "all"], Says("a whole number >= 1, auto or all is needed")] = Field(
        "auto",
        description="epochs whose raw tensors stay, the last one always; auto is as many as 50 MB hold, at least two",
    )
    film: bool = Field(True, description="draw the first probe image's pullbacks over training, when it ends")
    artifact: bool = Field(False, description="upload the raw tensors to W&B")

    @model_validator(mode="after")
    def _saved(self) -> Self:
        for key, given, off in (("artifact", self.artifact, False), ("keep", self.keep, "auto")):
            said = f"callbacks.grids.{key}={str(given).lower()}: callbacks.grids.raw=true is needed too."
            require(self.raw or given == off, said)
        return self


class GuardConfig(Options):
    """The options of `callbacks.guard`."""

    at: ClassVar[str] = "callbacks.guard"

    every_n_steps: Every = Field(50, description="steps between two readings of whether the loss is finite")
    max_loss: Annotated[Annotated[Number, Field(gt=0)] | None, Says("null or a number > 0 is needed")] = Field(
        None, description="greatest loss of a batch that is let pass; null is any finite one"
    )


class CheckpointConfig(Options):
    """The options of `callbacks.checkpoint`."""

    at: ClassVar[str] = "callbacks.checkpoint"

    every_n_steps: Annotated[int, Field(ge=0), Says("a whole number >= 0 is needed; 0 is per epoch")] = Field(
        1000, description="optimiser steps between two checkpoints within an epoch; each epoch's end has one"
    )
    monitor: str = Field("val/acc", description="the metric that best.ckpt is chosen by, such as val/NAME of metrics")
    mode: Literal["max", "min"] = Field("max", description="whether more of it is better, or less")


class PathsConfig(Options):
    """The options of `callbacks.paths`."""

    at: ClassVar[str] = "callbacks.paths"

    recordings: Every = Field(0, description="moments besides the initial network; fewer where they coincide")
    first: Annotated[Number, Field(gt=0)] = Field(0.1, description="the first of them, in epochs; may be a fraction")
    images: Annotated[int, Field(ge=2)] = Field(256, description="probe images, spread evenly over the classes")
    probe: Literal["val", "train", "both"] = Field(
        "val", description="of validation images, in paths/, of training images, in paths-train/, or one of each"
    )
    soft: bool = Field(False, description="keep soft gates too, in 8 bits each")
    weights: bool = Field(True, description="keep the weights of each moment; swap needs them")
    max_gb: Annotated[Number, Field(gt=0)] = Field(
        2.0, description="gigabytes (1e9 bytes); a recording that would take more is refused before training"
    )
    seed: Whole = Field(314, description="picks the probe images")
