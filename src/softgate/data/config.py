"""The options of `data=`: which images, of what size, how augmented, where they are kept.

`NamedData` is a data set of softgate or torchvision by its name, `TargetData` one that a `_target_` makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, Strict, field_validator, model_validator

from softgate import targets
from softgate.data import places
from softgate.data.names import ARCHIVES, NAMED, PUBLISHED, WITH_TEST
from softgate.errors import SoftgateError, require, unknown
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
    """The options of `data=` that every data set has; `conf/data/default.yaml` has them with their values."""

    at: ClassVar[str] = "data"

    name: str = Field(description="the data set")
    size: Annotated[int, Field(ge=8)] | None = Field(description="height and width of the images, in pixels")
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

    @classmethod
    def read(cls, given: Any) -> Self:
        """Reads plain data, as the kind of data set that it is of.

        Raises:
            SoftgateError: As `Options.read`.
        """
        if cls is not DataConfig or isinstance(given, DataConfig):
            return super().read(given)
        kind: Any = TargetData if isinstance(given, Mapping) and targets.KEY in given else NamedData
        found: Self = kind.read(given)
        return found

    @property
    def option(self) -> str:
        """The option that says which images these are, and its value, for messages."""
        return f"data.name={self.name}"

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


class NamedData(DataConfig):
    """A data set of softgate or torchvision, by its name."""

    root: str | int | float = Field(
        "data", description="the folder that holds the data set's; YAML reads a folder 2024 as a number"
    )
    size: Annotated[int, Field(ge=8)] = Field(description="height and width of the images, in pixels")
    download: bool = Field(False, description="fetch the archive if it is not there")
    cache: bool | Literal["auto"] = Field("auto", description="keep decoded images in memory; auto is up to 2 GiB")
    cache_dir: Annotated[
        str | Literal[False] | None, Says("a folder, null for ~/.cache/softgate, or false is needed")
    ] = Field(None, description="where listings and decoded images stay for the next run")
    archive: str = Field("160px", description="which official archive, of those data sets that have several")

    @property
    def option(self) -> str:
        """`data.root` and its value."""
        return f"data.root={self.folder}"

    @property
    def folder(self) -> Path:
        """The folder, or file, of `root`."""
        return Path(str(self.root)).expanduser()

    def look(self) -> None:
        """Refuses a data set whose folders are not there."""
        places.look(self.name, self.folder, self.archive, self.download)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NAMED and name not in PUBLISHED:
            raise unknown("data.name", name, [*NAMED, *PUBLISHED])
        return name

    @field_validator("cache_dir")
    @classmethod
    def _named(cls, folder: str | Literal[False] | None) -> str | Literal[False] | None:
        if folder == "" or (folder == 0 and folder is not False):
            raise ValueError
        return folder

    @model_validator(mode="after")
    def _has_test_images(self) -> Self:
        fits = self.test != "test" or self.val_split is not None or self.name in WITH_TEST
        said = f"{self.name} has no test images of its own; with data.val_split=0.1 its validation images become these"
        require(fits, f"data.test=test: {said}.")
        return self

    @model_validator(mode="after")
    def _has_archives(self) -> Self:
        if "archive" in self.model_fields_set:
            known = ARCHIVES.get(self.name)
            require(known is not None, f"data.archive={self.archive}: {self.name} has no archives to choose from.")
            if known is not None and self.archive not in known:
                raise unknown("data.archive", self.archive, known)
        return self


class TargetData(DataConfig):
    """A data set that a `_target_` makes: a class or function, and its arguments."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    target: str = Field(
        alias="_target_",
        description="dotted name of a function that gives data sets for training and validation, or of a "
        "LightningDataModule",
    )
    size: Annotated[int, Field(ge=8)] | None = Field(
        None, description="height and width of the images, in pixels; null is as the first one is"
    )
    batch_size: Count | None = Field(  # type: ignore[assignment]  # ImageData knows it once the data set is made
        None, description="images per step and device; null is as the LightningDataModule's loader has it, else 64"
    )
    mean: Annotated[PerChannel, Says("three numbers are needed, or one where data.channels=1")] = (0, 0, 0)
    std: Annotated[PerChannel, Says("three numbers > 0 are needed, or one where data.channels=1")] = (1, 1, 1)
    normalized: bool = Field(
        False, description="the images come with data.mean subtracted and divided by data.std already"
    )

    @model_validator(mode="before")
    @classmethod
    def _called(cls, given: Any) -> Any:
        """Its name, by default the target's last part; options of named data sets that nobody has set are none."""
        if not isinstance(given, Mapping):
            return given
        unset = [key for key in NamedData.model_fields if key not in cls.model_fields and given.get(key) is None]
        kept = {key: value for key, value in given.items() if key not in unset}
        return {**kept, "name": kept.get("name") or str(kept.get(targets.KEY)).rpartition(".")[2]}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = targets.check(self.plain_target, "data")
        if inspect.isclass(found) and not targets.is_a(found, "pytorch_lightning.LightningDataModule"):
            needed = "a function that returns data sets for training and validation, or a LightningDataModule"
            raise SoftgateError(f"{self.option}: it is a class; {needed} is needed.")
        targets.check_arguments(self.plain_target, "data", self.filled)
        return self

    @property
    def filled(self) -> dict[str, Any]:
        """Options that a target is given too where it has arguments of their names."""
        own = {"size": self.size, "batch_size": self.batch_size, "num_workers": self.num_workers}
        return {name: value for name, value in {**own, "channels": self.channels}.items() if value is not None}

    @property
    def plain_target(self) -> dict[str, Any]:
        """`_target_` and the arguments."""
        return {targets.KEY: self.target, **(self.model_extra or {})}

    @property
    def option(self) -> str:
        """`data._target_` and its value."""
        return f"data.{targets.KEY}={self.target}"
