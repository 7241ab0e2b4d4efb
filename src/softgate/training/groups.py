"""The groups of a run's config that are read without importing torch: all but networks and rules.

A value that is wrong in them is refused in the second that reading takes. `training.config` adds the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from softgate import targets
from softgate.data.config import DataConfig, NamedData, TargetData
from softgate.errors import SoftgateError, require
from softgate.options import Options, Says, Whole, Words, unknown_key
from softgate.training.callbacks.config import (
    AlignmentConfig,
    CheckpointConfig,
    DiagnosticsConfig,
    GridsConfig,
    GuardConfig,
    PathsConfig,
)
from softgate.training.figures import FIGURES, FiguresConfig
from softgate.training.gates_config import GatesFromConfig
from softgate.training.optim_config import OptimConfig, TargetOptim, read_optim
from softgate.training.robust_config import RobustConfig
from softgate.training.trainer_config import TrainerConfig
from softgate.training.wandb_config import WandbConfig


def load_plugins(modules: Any) -> None:
    """Imports the modules of `plugins=`; what they define by name can then be used in configs.

    Only names typed by the user are imported; nothing in a checkpoint is.
    """
    fine = isinstance(modules, (list, tuple)) and all(isinstance(name, str) for name in modules)
    require(fine, f"plugins={modules}: a list of module names is needed.")
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SoftgateError(f"plugins: {name} cannot be imported ({error}).") from None


def trust_packages(packages: Any) -> None:
    """Trusts the packages of `trust=`, for the time of the process."""
    fine = isinstance(packages, (list, tuple)) and all(isinstance(name, str) and name for name in packages)
    require(fine, f"trust={packages}: a list of package names is needed, such as trust=[my_models].")
    targets.trust(*packages)


def check_targets(given: Mapping[str, Any], option: str, kind: str) -> None:
    """Checks the targets of a group; none is called."""
    for name, each in given.items():
        targets.check(each, f"{option}.{name}", kind)
        targets.check_arguments(each, f"{option}.{name}", FILLED)


FILLED = ("num_classes", "task", "save_dir")
"""Arguments that targets get from softgate where they have them."""


def _is_target(given: Any) -> bool:
    return isinstance(given, Mapping) and targets.KEY in given


def read_metrics(given: Any) -> dict[str, Any]:
    """The targets of `metrics.`."""
    require(isinstance(given, Mapping), f"metrics={given}: it has options under it, such as metrics.f1._target_=...")
    for name, each in given.items():
        require(_is_target(each), f"metrics.{name}={each}: a _target_ with its arguments is needed.")
        taken = name in ("loss", "acc", "acc5")
        require(not taken, f"metrics.{name}: val/{name} is there already; give it another name.")
    check_targets(given, "metrics", "torchmetrics.Metric")
    return dict(given)


class WithTargets(Options):
    """A group of fixed keys, beside which there may be any name with a `_target_` under it."""

    model_config = ConfigDict(extra="allow")
    kind: ClassVar[str]
    """What the targets are: the dotted name of a class."""

    @property
    def own(self) -> dict[str, Any]:
        """The targets by name."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _of_targets(self) -> Self:
        for name, each in self.own.items():
            if not _is_target(each):
                raise SoftgateError(unknown_key(self.at, name, type(self)))
        check_targets(self.own, self.at, self.kind)
        return self


class LoggerConfig(WithTargets):
    """The loggers of `logger=`, beside `metrics.csv`."""

    at: ClassVar[str] = "logger"
    kind: ClassVar[str] = "pytorch_lightning.loggers.Logger"

    csv: bool = Field(True, description="metrics.csv is always written")
    tensorboard: bool = Field(False, description="event files in the run's directory")
    wandb: WandbConfig | None = Field(None, description="a run in Weights & Biases")

    @field_validator("csv")
    @classmethod
    def _always(cls, on: bool) -> bool:
        require(on, "logger.csv=False: metrics.csv is always written; true is needed.")
        return on


class SweepConfig(Options):
    """The options under `sweep.`: where a run stands in its sweep."""

    at: ClassVar[str] = "sweep"

    resume: bool = Field(False, description="skip the finished jobs of a sweep that was broken off")
    name: str | int | float | None = Field(None, description="what the sweep is called; null is its directory's name")
    job: Whole | None = Field(None, description="the number of this job; filled in")
    overrides: Words = Field((), description="the words that made this run; filled in")

    @model_validator(mode="after")
    def _of_several(self) -> Self:
        single = self.resume and self.job is None
        require(not single, "sweep.resume=true: it is for sweeps (-m); resume=DIRECTORY goes on with a single run.")
        return self


class CallbacksConfig(WithTargets):
    """The options under `callbacks.`: what happens beside training."""

    at: ClassVar[str] = "callbacks"
    kind: ClassVar[str] = "pytorch_lightning.Callback"

    grids: GridsConfig
    alignment: AlignmentConfig
    paths: PathsConfig
    diagnostics: DiagnosticsConfig
    guard: GuardConfig
    checkpoint: CheckpointConfig


class Groups(Options):
    """The config of `conf/train.yaml` without `model`, `surrogate` and `readout`."""

    data: Annotated[NamedData | TargetData, BeforeValidator(DataConfig.read)]
    optim: Annotated[OptimConfig | TargetOptim, BeforeValidator(read_optim)]
    trainer: TrainerConfig
    logger: LoggerConfig
    callbacks: CallbacksConfig
    metrics: Annotated[dict[str, Any], BeforeValidator(read_metrics)] = Field(
        {}, description="torchmetrics by name, each a _target_ with its arguments; logged as val/NAME"
    )
    train: RobustConfig = Field(RobustConfig(), description="what a step does to its images and its loss")
    gates_from: GatesFromConfig = Field(
        GatesFromConfig(), description="weights of a recorded epoch, trained on with gates that are given"
    )
    sweep: SweepConfig
    seed: Annotated[int, Field(ge=0, lt=2**32), Says("a whole number from 0 to 2^32 - 1 is needed")] = Field(
        description="of the initial weights, the data order and the augmentation"
    )
    resume: bool = Field(description="go on with the run that is in the directory")
    compile: bool = Field(description="torch.compile the network")
    channels_last: bool = Field(description="keep images and weights in channels-last order")
    ema: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Says("null or a decay between 0 and 1")] = Field(
        description="decay of an exponential moving average of the weights, for each step; null is off"
    )
    plugins: Words = Field(description="Python modules that were imported first")
    trust: Words = Field((), description="packages that checkpoints and files of runs may name classes of")
    figures: FiguresConfig = Field(FIGURES, description="charts as files")
    print_config: bool = Field(description="print the config before the run starts")
    print_model: bool = Field(False, description="print the layers and call sites before the run starts")
    name: str | int | float = Field(description="what the run is called")

    @classmethod
    def read(cls, given: Any) -> Self:
        """Reads plain data, after the modules of `plugins` are imported: they may define what it names.

        Raises:
            SoftgateError: For the first thing that is wrong; no data is loaded and no network built.
        """
        if isinstance(given, dict):
            load_plugins(given.get("plugins", []))
            trust_packages(given.get("trust", []))
        return super().read(given)
