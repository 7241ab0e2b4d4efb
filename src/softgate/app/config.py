"""The options of `softgate app` as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field, model_validator

from softgate import targets
from softgate.errors import require, unknown
from softgate.evaluation.config import ACCELERATORS, DataChanges, Names
from softgate.models.networks import NetworkConfig
from softgate.options import Count, Number, Options, Says, Words
from softgate.surrogate.rule import Surrogate
from softgate.training.config import check_readout, load_plugins, trust_packages
from softgate.training.networks import TargetNetwork, read_network

PORTS = 65535


def _changes(given: Any) -> DataChanges:
    require(isinstance(given, Mapping), f"data={given}: it has options under it, such as data.root=FOLDER.")
    return DataChanges(dict(given))


def _network(given: Any) -> Any:
    return None if given is None else read_network(given)


def _device(given: Any) -> Any:
    if given not in ACCELERATORS:
        raise unknown("accelerator", given, ACCELERATORS)
    return given


def _server(given: Any) -> Any:
    require(isinstance(given, (Mapping, Options)), f"app={given}: it has options under it, such as app.port=7860.")
    return given


class ServerConfig(Options):
    """`app`: where the page is, and what it lets its visitors do."""

    at: ClassVar[str] = "app"

    host: Annotated[str, Field(min_length=1), Says("the name or number of an interface of this machine is needed")] = (
        Field(description="the interface that is listened on; 127.0.0.1 is this machine alone")
    )
    port: Annotated[
        Annotated[int, Field(ge=1, le=PORTS)] | None,
        Says(f"a whole number from 1 to {PORTS} is needed, or null for a free one"),
    ] = Field(description="where it listens; null is the first free one from 7860 on")
    share: bool = Field(description="a public address through the servers of Gradio")
    networks: Count = Field(description="networks that are kept in memory; the one used longest ago goes first")
    steps: Count = Field(description="steps of an ascent, at most")
    upload_mb: Annotated[Number, Field(gt=0)] = Field(description="megabytes of an uploaded file, at most")
    upload_pixels: Count = Field(description="pixels of an uploaded image, at most")


class AppConfig(Options):
    """The whole config of `softgate app`."""

    runs: Annotated[
        str | Annotated[Words, Field(min_length=1)] | None,
        Says("a run's directory, a checkpoint file, or a list or a glob of them is needed"),
    ] = Field(description="what to look at, where it is no network of model")
    plugins: Names = Field(description="modules that are imported first")
    trust: Names = Field((), description="packages that checkpoints may name classes of")
    data: Annotated[DataChanges, BeforeValidator(_changes)]
    accelerator: Annotated[str, BeforeValidator(_device)] = Field(description="the device")
    readout: Annotated[Surrogate, BeforeValidator(check_readout)] = Field(
        description="the rule that the page begins with"
    )
    model: Annotated[NetworkConfig | TargetNetwork | None, BeforeValidator(_network)] = Field(
        None, description="a network that no run here trained"
    )
    app: Annotated[ServerConfig, BeforeValidator(_server)]

    @model_validator(mode="after")
    def _of_runs_or_of_a_network(self) -> Self:
        if self.model is not None:
            require(self.runs is None, "runs and model: only one of them can be given.")
            require(self.data.chosen, "data is not chosen; give the images too, such as data=imagenette.")
            new = isinstance(self.model, NetworkConfig) and self.model.new_head
            require(not new, f"model.new_head={new}: the app trains no new last layer; false is needed.")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """The directories, files and globs of `runs`; none where it is null."""
        return () if self.runs is None else (self.runs,) if isinstance(self.runs, str) else self.runs


def options(cfg: DictConfig) -> AppConfig:
    """Reads the config of `conf/app.yaml`; the modules of `plugins` are imported first.

    Raises:
        SoftgateError: For a key that is unknown or missing, or a value that is not allowed.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    load_plugins(plain.get("plugins", []))
    trust_packages(plain.get("trust", []))
    targets.note_typed(plain)
    return AppConfig.read(plain)
