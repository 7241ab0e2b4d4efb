"""The options of `data=`: which images, of what size, how augmented, where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from softgate.data.published import PUBLISHED
from softgate.data.sources import ARCHIVES, SOURCES, WITH_TEST
from softgate.errors import require, unknown
from softgate.options import Count, Number, Options, Pair, Says, Whole

PerChannel = Annotated[tuple[Number, ...], Strict(False)]


class AugmentConfig(Options):
    """What is done to training images at random."""

    at: ClassVar[str] = "data.augment"

    crop_scale: Annotated[Pair, Says("two numbers, 0 < smallest <= largest <= 1, are needed")] = Field(
        (1, 1), description="random crops cover this share of the image's area; [1, 1] is off"
    )
    flip: bool = Field(False, description="mirror every second training image left to right")

    @field_validator("crop_scale")
    @classmethod
    def _shares(cls, scale: tuple[Number, Number]) -> tuple[Number, Number]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError
        return scale


class DataConfig(Options):
    """The options of `data=`; `conf/data/default.yaml` has them with their values."""

    at: ClassVar[str] = "data"

    name: str = Field(description="the data set")
    root: str | int | float = Field(
        "data", description="the folder that holds the data set's; YAML reads a folder 2024 as a number"
    )
    size: Annotated[int, Field(ge=8)] = Field(description="height and width of the images, in pixels")
    batch_size: Count = Field(64, description="images per step and device")
    num_workers: Annotated[Whole | None, Says("a whole number >= 0 is needed")] = Field(
        None, description="processes that decode images, where these are not kept in memory; null is one per core"
    )
    classes: Annotated[
        Annotated[tuple[str | int, ...], Strict(False)] | None,
        Says("a list of names or numbers is needed, or null for all"),
    ] = Field(None, description="those that are used, in this order, by folder's name, English name, WNID or number")
    val_split: Annotated[
        Annotated[Number, Field(gt=0, lt=1)] | None, Says("a number between 0 and 1 is needed, or null for none")
    ] = Field(None, description="share of every class's training images that is validated in place of being trained on")
    val_seed: Whole = Field(0, description="picks them")
    test: Literal["val", "test"] | None = Field(
        None, description="what evaluations measure; null is test where val_split leaves such images, else val"
    )
    fraction: Annotated[Number, Field(gt=0, le=1)] = Field(1.0, description="share of the training images, by class")
    fraction_seed: Whole = Field(0, description="picks them")
    label_noise: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.0, description="share of the training images whose labels are drawn anew, each class alike"
    )
    label_noise_seed: Whole = Field(0, description="draws them")
    download: bool = Field(False, description="fetch the archive if it is not there")
    cache: bool | Literal["auto"] = Field("auto", description="keep decoded images in memory; auto is up to 2 GiB")
    cache_dir: Annotated[
        str | Literal[False] | None, Says("a folder, null for ~/.cache/softgate, or false is needed")
    ] = Field(None, description="where listings and decoded images stay for the next run")
    augment: AugmentConfig = Field(AugmentConfig(), description="of training images")
    channels: Annotated[Literal[1, 3], Says("3 for colours or 1 for grey is needed")] = Field(
        3, description="of the images and the network: 3 for colours, 1 for grey"
    )
    mean: Annotated[PerChannel, Says("three numbers are needed, or one where data.channels=1")] = Field(
        description="subtracted from pixels in [0, 1], per channel"
    )
    std: Annotated[PerChannel, Says("three numbers > 0 are needed, or one where data.channels=1")] = Field(
        description="then divided by, per channel"
    )
    archive: str = Field("160px", description="which official archive, of those data sets that have several")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES and name not in PUBLISHED:
            raise unknown("data.name", name, [*SOURCES, *PUBLISHED])
        return name

    @field_validator("cache_dir")
    @classmethod
    def _named(cls, folder: str | Literal[False] | None) -> str | Literal[False] | None:
        if folder == "" or (folder == 0 and folder is not False):
            raise ValueError
        return folder

    @field_validator("mean", "std")
    @classmethod
    def _for_each(cls, values: tuple[Number, ...]) -> tuple[Number, ...]:
        if len(values) not in (1, 3):
            raise ValueError
        return values

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[Number, ...]) -> tuple[Number, ...]:
        if min(std) <= 0:
            raise ValueError
        return std

    @model_validator(mode="after")
    def _has_test_images(self) -> Self:
        fits = self.test != "test" or self.val_split is not None or self.name in WITH_TEST
        said = f"{self.name} has no test images of its own; with data.val_split=0.1 its validation images become these"
        require(fits, f"data.test=test: {said}.")
        return self

    @property
    def folder(self) -> Path:
        """The folder, or file, of `root`."""
        return Path(str(self.root)).expanduser()

    @property
    def measured(self) -> str:
        """What evaluations measure: "val" or "test"."""
        return self.test or ("val" if self.val_split is None else "test")

    @property
    def measured_images(self) -> str:
        """Which images these are, the same words for the same images of a data set."""
        if self.measured == "test":
            return "the test images" if self.val_split is None else "the official validation images"
        cut = f"{self.val_split} of the training images (data.val_seed={self.val_seed})"
        return "the official validation images" if self.val_split is None else cut

    @model_validator(mode="after")
    def _has_channels(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            fits = len(values) == self.channels or (self.channels == 1 and len(set(values)) == 1)
            needed = "one number is needed, that of the grey images" if self.channels == 1 else "three are needed"
            require(fits, f"data.{key}={list(values)}: data.channels is {self.channels}; {needed}.")
        return self

    def per_channel(self, values: tuple[Number, ...]) -> list[Number]:
        """`mean` or `std`, one for each channel; three that are the same stand for one of grey images."""
        return list(values[: self.channels])

    @model_validator(mode="after")
    def _has_archives(self) -> Self:
        if "archive" in self.model_fields_set:
            known = ARCHIVES.get(self.name)
            require(known is not None, f"data.archive={self.archive}: {self.name} has no archives to choose from.")
            if known is not None and self.archive not in known:
                raise unknown("data.archive", self.archive, known)
        return self
