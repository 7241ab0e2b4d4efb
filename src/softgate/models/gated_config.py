"""The options of `model=dgn` and `model=dlgn`: a network by its name, and how its gated twin is made and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from softgate.errors import require
from softgate.models import timm_networks
from softgate.models.gated_options import Gating
from softgate.models.networks import NetworkConfig, check_name
from softgate.options import Says


class GatedConfig(NetworkConfig, Gating):
    """The options of `model=` with a `base`; builds no network."""

    base: str = Field(description="the network that feature and value network are: a name, as model.name of others")
    feature_weights: Annotated[
        str | None, Says("the directory of a run, a checkpoint or a file with a state dict is needed, or null")
    ] = Field(None, description="of the trained network whose gates are taken; for regime=fixed_learnt")

    @property
    def full_name(self) -> str:
        """The name by which everything here knows the base."""
        prefix = timm_networks.PREFIX if self.library == "timm" else ""
        return prefix + self.base.removeprefix(prefix)

    @property
    def gating_options(self) -> dict[str, Any]:
        """Those of `Gating`, as a checkpoint keeps them."""
        return {name: getattr(self, name) for name in Gating.model_fields}

    @property
    def feature_file(self) -> Path:
        """The file of `feature_weights`: the last checkpoint of a run, which no image has chosen."""
        place = Path(self.feature_weights or "").expanduser()
        return place / "checkpoints" / "last.ckpt" if place.is_dir() else place

    @model_validator(mode="after")
    def _exists(self) -> Self:
        check_name(self.full_name, "model.base")
        self._check_sizes()
        start = f"model.weights={self.weights}"
        file = self.weights is None or Path(self.weights).expanduser().is_file()
        require(file, f"{start}: no such file; the weights of a gated network come from a file.")
        require(not self.new_head, "model.new_head=True: a gated network has none; false is needed.")
        require(self.classes is None, f"model.classes={self.classes}: a gated network has the data's; null is needed.")
        return self

    @model_validator(mode="after")
    def _has_features(self) -> Self:
        said = f"model.feature_weights={self.feature_weights}"
        if self.regime != "fixed_learnt":
            fits = self.feature_weights is None
            require(fits, f"{said}: they are for model.regime=fixed_learnt, not {self.regime}; null is needed.")
            return self
        require(
            self.feature_weights is not None,
            f"model.regime=fixed_learnt: whose gates? Set model.feature_weights to a run of model={self.base}, to its "
            f"checkpoint or to a file with its state dict.",
        )
        require(self.feature_file.is_file(), f"{said}: no such file, and no run that has checkpoints/last.ckpt.")
        return self
