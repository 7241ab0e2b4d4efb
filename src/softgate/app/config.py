"""The options of `softgate app` as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from omegaconf import DictConfig
from pydantic import BeforeValidator, Field

from softgate.errors import require
from softgate.evaluation.config import PathsConfig, SubjectsConfig, plain_of
from softgate.options import Count, Number, Options, Says

PORTS = 65535


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


class AppConfig(SubjectsConfig):
    """The whole config of `softgate app`."""

    looker: ClassVar[str] = "the app"

    app: Annotated[ServerConfig, BeforeValidator(_server)]
    paths: PathsConfig


def options(cfg: DictConfig) -> AppConfig:
    """Reads the config of `conf/app.yaml`; the modules of `plugins` are imported first.

    Raises:
        SoftgateError: For a key that is unknown or missing, or a value that is not allowed.
    """
    return AppConfig.read(plain_of(cfg))
