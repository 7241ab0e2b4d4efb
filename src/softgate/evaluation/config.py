"""The options of `evaluate.py` as types: one model for each group of `conf/`, read once and passed on as objects.

What a field takes is its type and range; its default stands in `conf/` alone. What needs more than the config to be
judged (files, the data's classes, a device) is checked by the module that needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field, Strict, model_validator

from softgate import targets
from softgate.data.config import DataConfig, NamedData, TargetData
from softgate.errors import SoftgateError, require, unknown
from softgate.evaluation.accentuation import AccentuationConfig
from softgate.evaluation.choices import ALIGNMENT, EXPLAINERS, FAMILIES, KINDS, SCALES, SEVERITIES
from softgate.models.gated_config import GatedConfig
from softgate.models.networks import NetworkConfig
from softgate.options import Count, Number, Options, Says, Whole, Words
from softgate.surrogate.rule import Surrogate
from softgate.training.config import check_readout
from softgate.training.figures import FIGURES, FiguresConfig
from softgate.training.groups import load_plugins, trust_packages
from softgate.training.networks import TargetNetwork, read_network

CHECKPOINTS = ("best", "last")

ACCELERATORS = ("auto", "cpu", "gpu")

Names = Annotated[Words, Says("a list of names is needed")]

Share = Annotated[Count | None, Says("a whole number >= 1 is needed, or null for all")]
"""A number of images; null is all that there are."""


Radius = Annotated[Annotated[Number, Field(gt=0)] | None, Says("a number > 0 is needed, or null for none")]


def _known(path: str, names: Collection[str]) -> BeforeValidator:
    """For the type of a name: those that there are."""

    def check(given: Any) -> Any:
        if not isinstance(given, str) or given not in names:
            raise unknown(path, given, names)
        return given

    return BeforeValidator(check)


def _listed(path: str, names: Collection[str], words: str = "a list of names is needed") -> BeforeValidator:
    """For the type of a list of names: the words where it is none, and the names that there are."""

    def check(given: Any) -> Any:
        require(isinstance(given, (list, tuple)), f"{path}={given}: {words}.")
        for name in given:
            if not isinstance(name, str) or name not in names:
                raise unknown(path, name, names)
        return given

    return BeforeValidator(check)


def _under(path: str, words: str, *others: None) -> BeforeValidator:
    """For the type of a group of options: the words where something else is given."""

    def check(given: Any) -> Any:
        require(isinstance(given, (Mapping, Options)) or given in others, f"{path}={given}: {words}.")
        return given

    return BeforeValidator(check)


def _choice(group: str, *choices: str) -> BeforeValidator:
    """For the type of a group that may be left without a choice."""
    return _under(group, f"there is no such choice; allowed: {', '.join(choices)}", None)


def _changes(given: Any) -> DataChanges:
    require(isinstance(given, Mapping), f"data={given}: it has options under it, such as data.root=FOLDER.")
    return DataChanges(dict(given))


class GridConfig(Options):
    """`grid`: pictures of the read-outs."""

    at: ClassVar[str] = "grid"

    kinds: Annotated[
        Words,
        Field(min_length=1),
        _listed("grid.kinds", KINDS, "a list of raw, ascent and accentuation is needed"),
        Says("a list of raw, ascent and accentuation is needed"),
    ] = Field(description="what to draw: pullbacks, or images after an ascent or an accentuation along them")
    scale: Annotated[str, _known("grid.scale", SCALES)] = Field(description="how pullbacks become colours")
    rows: Count | None = Field(description="images, one of each of so many classes; null is 5, or all of fewer")
    targets: Count | None = Field(description="columns: classes to read out; null is 6, or all of fewer")
    explainers: Annotated[Words, _listed("grid.explainers", EXPLAINERS)] = Field(
        description="read-outs beside ours in raw grids"
    )
    steps: Count = Field(description="of an ascent")
    step_size: Annotated[Number, Field(gt=0)] = Field(
        description="L2 norm of a step at 3 x 224 x 224, pixels in [-1, 1]; scaled to other sizes"
    )
    radius: Annotated[Number, Field(gt=0)] = Field(
        description="L2 radius of the ball that an ascent stays in, in the same units"
    )
    accentuation: Annotated[
        AccentuationConfig, _under("grid.accentuation", "it has options under it, such as grid.accentuation.steps=20")
    ] = Field(description="how images are accentuated")
    calibrate: Count = Field(description="validation images that channel scales are measured on, where there are none")
    chunk: Count | None = Field(description="at most so many images at once; null is all")
    seed: Whole = Field(description="picks the images")
    figures: bool = Field(description="the paper's Figures 1 to 4 in place of single grids")

    def rows_of(self, classes: int) -> int:
        """How many images are drawn of data with so many classes."""
        return self.rows or min(5, classes)

    def columns_of(self, rows: int, classes: int) -> int:
        """How many classes are read out of a network with so many, where so many images are drawn."""
        return self.targets or min(max(6, rows + 1), classes)

    def require_fit(self, rows: int, classes: int) -> None:
        """Raises `SoftgateError` unless data of `rows` classes and a network of `classes` fill the grid."""
        wanted = self.rows_of(rows)
        require(wanted <= rows, f"grid.rows={wanted}: the data has {rows} classes.")
        count = self.columns_of(wanted, classes)
        fits = wanted <= count <= classes
        require(fits, f"grid.targets={count}: a whole number from {wanted} to {classes} is needed.")


class AlignmentConfig(Options):
    """`alignment=full`: all alignment metrics of all explainers."""

    at: ClassVar[str] = "alignment"

    images: Annotated[int, Field(ge=2)] = Field(description="probe images of the validation set")
    dear_images: Count = Field(description="of them, for what takes many passes")
    draws: Count = Field(description="noisy copies of each of these, and passes of SmoothGrad")
    seed: Whole = Field(description="picks the probe images")
    evaluator: Annotated[str | None, Says("a checkpoint is needed, or null")] = Field(
        description="a checkpoint of an independently trained network, which judges counterfactuals"
    )

    @property
    def judge(self) -> Path | None:
        """The file of `evaluator`."""
        return None if self.evaluator is None else Path(self.evaluator).expanduser()


class PathsConfig(Options):
    """`paths=full`: the path stability of recorded runs."""

    at: ClassVar[str] = "paths"

    images: Annotated[int, Field(ge=10)] = Field(description="at most so many recorded probe images for swap")
    probe: Literal["val", "train"] = Field(description="whether these are the recorded validation or training images")
    moments: Annotated[int, Field(ge=2)] | None = Field(
        description="at most so many recorded moments for swap; null is all"
    )
    later: bool = Field(description="swaps into earlier networks too")
    threshold: Annotated[Number, Field(gt=0, lt=1), Says("a number between 0 and 1 is needed")] = Field(
        description="paths have settled where the swap into the last network stays above this correlation"
    )
    kernel_images: Whole = Field(description="probe images for path kernels; 0 is none")
    kernel_moments: Annotated[int, Field(ge=2)] = Field(description="moments that kernels are made at")
    chunk: Count = Field(description="images that run at once")
    resamples: Annotated[int, Field(ge=100)] = Field(description="of the bootstrap behind each interval")
    seed: Whole = Field(description="shuffles samples, splits folds, draws the bootstrap")


class CorruptionsConfig(Options):
    """`compare.corruptions`: common corruptions of the test images."""

    at: ClassVar[str] = "compare.corruptions"

    families: Annotated[
        Words,
        _listed("compare.corruptions.families", FAMILIES, "a list of names is needed, or all"),
        BeforeValidator(lambda given: FAMILIES if given == "all" else given),
    ] = Field(description="of ImageNet-C; all of them by the word all")
    severities: Annotated[
        tuple[Annotated[int, Field(ge=SEVERITIES[0], le=SEVERITIES[-1])], ...],
        Strict(False),
        Says("a list of whole numbers from 1 to 5 is needed"),
    ] = Field(description="how strong")
    images: Share = Field(description="test images")


class AttackConfig(Options):
    """`compare.attack`: projected gradient descent under the true gradient."""

    at: ClassVar[str] = "compare.attack"

    linf: Radius = Field(description="radius of the cube, in pixels of [0, 1]")
    l2: Radius = Field(description="radius of the ball at 32 x 32 px, in pixels of [0, 1]; scaled to other sizes")
    steps: Count = Field(description="of gradient ascent on the loss")
    restarts: Count = Field(description="random starts")
    images: Share = Field(description="test images")
    auto: bool = Field(description="AutoAttack too")

    def radius(self, norm: str) -> Number | None:
        """The radius for "linf" or "l2"; None where there is no such attack."""
        return {"linf": self.linf, "l2": self.l2}[norm]


class SharpnessConfig(Options):
    """`compare.sharpness`: the largest eigenvalue of the training loss's Hessian."""

    at: ClassVar[str] = "compare.sharpness"

    images: Annotated[Whole | None, Says("a whole number >= 0 is needed, or null for all")] = Field(
        description="training images; 0 is off"
    )
    iterations: Count = Field(description="Hessian-vector products of Lanczos' method, at most")


class CompareConfig(Options):
    """`compare=quick` or `full`: several runs, in arms paired by seed."""

    at: ClassVar[str] = "compare"

    checkpoint: Annotated[str, _known("compare.checkpoint", CHECKPOINTS)] = Field(description="of every run")
    baseline: Annotated[str | None, Says("the name of an arm is needed, or null")] = Field(
        description="the arm that the others are compared with; null is the true gradient's"
    )
    within: Names = Field(description="keys of a run's config at whose same value arms are compared")
    tune: Names = Field(description="keys of a run's config of which every arm has its best value chosen")
    level: Annotated[float, Field(ge=0.5, lt=1), Says("a number from 0.5 to below 1 is needed")] = Field(
        description="coverage of the intervals"
    )
    equivalence: Radius = Field(
        description="points of top-1: arms that differ by less are equivalent; null claims no equivalence"
    )
    seed: Whole = Field(description="picks images and noise, the same for every run")
    train_images: Share = Field(description="training images for the gap between training and test")
    corruptions: Annotated[
        CorruptionsConfig,
        _under("compare.corruptions", "it has options under it; compare.corruptions.families=[] leaves it out"),
    ]
    attack: Annotated[
        AttackConfig, _under("compare.attack", "it has options under it; compare.attack.linf=null leaves it out")
    ]
    sharpness: Annotated[
        SharpnessConfig,
        _under("compare.sharpness", "it has options under it; compare.sharpness.images=0 leaves it out"),
    ]
    shifted: Annotated[str | None, Says("a folder is needed, or null")] = Field(
        description="a folder of another test set of the same classes"
    )
    curves: Annotated[Words, _listed("compare.curves", ALIGNMENT)] = Field(description="alignment metrics over epochs")
    grids: bool = Field(description="the pullback grid of each arm's best epoch")
    price: Annotated[Number, Field(ge=0)] | None = Field(description="of an hour of one device, in any currency")
    wandb: Annotated[str | None, Says("the name of a W&B project is needed, or null")] = Field(
        description="where the tables and the report are logged to"
    )


@dataclass(frozen=True)
class DataChanges:
    """`data`: the images of `model`, or what differs from a run's own.

    Attributes:
        values: Keys of `softgate.data.config.NamedData` or `TargetData` to what was chosen; null leaves a run's own.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key in self.values:
            if key not in NamedData.model_fields and targets.KEY not in self.values:
                known = sorted(NamedData.model_fields)
                near = get_close_matches(key, known, n=1)
                hint = f" Did you mean data.{near[0]}?" if near else ""
                raise SoftgateError(
                    f"data.{key}: there is no such option; allowed under data: {', '.join(known)}.{hint}"
                )

    @property
    def chosen(self) -> bool:
        """Whether a data set was chosen."""
        return self.values.get("name") is not None or targets.KEY in self.values

    def onto(self, options: Mapping[str, Any]) -> DataConfig:
        """The options of a run's data, changed; a target has none of the old one's arguments."""
        changes = {key: value for key, value in self.values.items() if value is not None}
        own = TargetData.model_fields if targets.KEY in changes else None
        return DataConfig.read({**{key: options[key] for key in options if own is None or key in own}, **changes})

    def whole(self, size: int) -> DataConfig:
        """The options of the data set that was chosen, for images of another size."""
        given = {key: value for key, value in self.values.items() if value is not None}
        return DataConfig.read({"batch_size": 64, **given, "size": size})


def _network(given: Any) -> Any:
    return None if given is None else read_network(given)


class SubjectsConfig(Options):
    """What is looked at, runs or a network that no run here trained, on which images, where and through which rule."""

    looker: ClassVar[str] = "an evaluation"

    runs: Annotated[
        str | Annotated[Words, Field(min_length=1)] | None,
        Says("a run's directory, a checkpoint file, or a list or a glob of them is needed"),
    ] = Field(description="what to look at, where it is no network of model")
    plugins: Names = Field(description="modules that are imported first")
    trust: Names = Field((), description="packages that checkpoints may name classes of")
    data: Annotated[DataChanges, BeforeValidator(_changes)]
    accelerator: Annotated[str, _known("accelerator", ACCELERATORS)] = Field(description="the device")
    readout: Annotated[Surrogate, BeforeValidator(check_readout)] = Field(description="the soft rule of read-outs")
    model: Annotated[NetworkConfig | TargetNetwork | None, BeforeValidator(_network)] = Field(
        None, description="a network that no run here trained"
    )

    @model_validator(mode="after")
    def _of_runs_or_of_a_network(self) -> Self:
        if self.model is not None:
            require(self.runs is None, "runs and model: only one of them can be given.")
            require(self.data.chosen, "data is not chosen; give the images too, such as data=imagenette.")
            of_runs = not isinstance(self.model, GatedConfig)
            require(
                of_runs, "model.base: a gated network is looked at by the run that trained it; give runs=, not model=."
            )
            new = isinstance(self.model, NetworkConfig) and self.model.new_head
            require(not new, f"model.new_head={new}: {self.looker} trains no new last layer; false is needed.")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """The directories, files and globs of `runs`, one or several; none where it is null."""
        return () if self.runs is None else (self.runs,) if isinstance(self.runs, str) else self.runs


class EvaluationConfig(SubjectsConfig):
    """The whole config of `evaluate.py`; `alignment`, `paths`, `compare` and `model` are None where not chosen."""

    models: Annotated[Annotated[Words, Field(min_length=1)] | None, Says("a list of networks is needed, or null")] = (
        Field(description="several networks, by name, in place of model.name")
    )
    checkpoint: Annotated[str, _known("checkpoint", CHECKPOINTS)] = Field(description="which of a run's")
    measure: bool = Field(description="on all validation images; false only draws")
    figures: FiguresConfig = Field(FIGURES, description="charts as files")
    grid: Annotated[GridConfig, _under("grid", "it has options under it, such as grid.rows=2")]
    alignment: Annotated[AlignmentConfig | None, _choice("alignment", "full", "null")] = None
    paths: Annotated[PathsConfig | None, _choice("paths", "full", "null")] = None
    compare: Annotated[CompareConfig | None, _choice("compare", "full", "none", "quick")] = None

    @model_validator(mode="after")
    def _of_several_or_of_runs(self) -> Self:
        alone = self.model is not None or self.models is None
        require(alone, f"models={list(self.models or ())}: model is not chosen; choose it too, for its weights.")
        fits = self.model is None or self.paths is None
        require(fits, "paths=full: it looks at recorded runs; give runs=, not model=.")
        return self

    @property
    def networks(self) -> list[NetworkConfig | TargetNetwork]:
        """Those of `model`, or of `models`: nothing is built."""
        if self.model is None:
            return []
        if isinstance(self.model, TargetNetwork):
            require(self.models is None, f"models={list(self.models or ())}: they are names; model has a _target_.")
            return [self.model]
        return [NetworkConfig.read({**self.model.plain, "name": name}) for name in self.models or [self.model.name]]


def plain_of(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain data; its `plugins` are imported first, for the names they add, its `trust` noted."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    load_plugins(plain.get("plugins", []))
    trust_packages(plain.get("trust", []))
    targets.note_typed(plain)
    return dict(plain)


def options(cfg: DictConfig) -> EvaluationConfig:
    """Reads the config of `evaluate.py`; the modules of `plugins` are imported first, for the names they add.

    Args:
        cfg: The config of `conf/evaluate.yaml`, composed.

    Returns:
        Its options.

    Raises:
        SoftgateError: For a key that is unknown or missing, or a value that is not allowed.
    """
    return EvaluationConfig.read(plain_of(cfg))
