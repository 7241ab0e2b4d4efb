"""The config of a run as types: read once, before any data is loaded or a sweep starts its first job, then passed on.

Each group's model stands where its reader is: `data.config`, `models`, `optim_config`, `trainer_config`, `tracking`,
and each callback's beside the callback. `Surrogate.from_dict` reads the rules. What needs no torch is in `groups`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field, model_validator

from softgate.errors import SoftgateError, require
from softgate.models.gated_config import GatedConfig
from softgate.models.networks import NetworkConfig
from softgate.surrogate import pools
from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import Kind
from softgate.training.groups import Groups
from softgate.training.networks import TargetNetwork, read_network
from softgate.training.optim_config import COSINE


def read_rule(given: Any) -> Surrogate:
    """The rule of `surrogate=`, from plain data."""
    return given if isinstance(given, Surrogate) else Surrogate.from_dict(given)


def check_readout(given: Any) -> Surrogate:
    """The rule of `readout=`; its errors say that they are about it."""
    try:
        return read_rule(given)
    except SoftgateError as error:
        raise SoftgateError(f"readout: {error}") from None


def check_range(rule: Surrogate) -> None:
    """Raises unless the rule's gates lie in [0, 1], as 8 bits need."""
    values = rule(torch.linspace(-20, 20, 4001))
    fits = not rule.matches and float(values.min()) >= 0 and float(values.max()) <= 1
    require(
        fits and not isinstance(rule.pool, pools.SoftmaxFull),
        f"callbacks.paths.soft=true: gates and pooling weights of {rule.gate} with {rule.pool} and gain={rule.gain} "
        f"leave [0, 1]; choose another readout.",
    )


class TrainConfig(Groups):
    """The config of `conf/train.yaml`; `plain` is what config.yaml keeps of it."""

    model: Annotated[NetworkConfig | TargetNetwork, BeforeValidator(read_network)]
    surrogate: Annotated[Surrogate, BeforeValidator(read_rule)] = Field(description="the rule of training")
    readout: Annotated[Surrogate, BeforeValidator(check_readout)] = Field(description="the rule of read-outs")

    @model_validator(mode="after")
    def _fits_into_8_bits(self) -> Self:
        if self.callbacks.paths.recordings and self.callbacks.paths.soft:
            check_range(self.readout)
        return self

    @model_validator(mode="after")
    def _can_be_gated(self) -> Self:
        net = self.model
        if not isinstance(net, GatedConfig):
            return self
        require(not self.compile, "compile=True: a gated network (model.base) runs eagerly; compile=false is needed.")
        rule = replace(self.surrogate, mix=1.0)
        holds = rule.soft and rule.softens(Kind.PRODUCT)
        require(
            net.frozen or not holds,
            "surrogate: it holds gates constant, so with model.regime=decoupled the feature network would learn "
            "nothing; set surrogate=none, or one without surrogate.product.",
        )
        bare = net.gating == "linear" and not net.hard
        require(
            not rule.soft or holds or not bare,
            "surrogate: a network of linear gating with soft gates has no ReLU that a rule could govern; set "
            "surrogate=none, the true gradient.",
        )
        return self

    @model_validator(mode="after")
    def _can_be_robust(self) -> Self:
        said = self.train.sentence()
        compiled = self.compile and self.train.gradient_penalty
        require(
            not compiled,
            f"train.gradient_penalty={self.train.gradient_penalty}: a compiled network has no second derivative; "
            f"compile=false is needed.",
        )
        require(
            not (said and self.gates_from.given),
            f"gates_from.gates={self.gates_from.gates}: with the gates of another network there is no {said}; 0 is "
            f"needed for train.noise, train.adversarial.radius and train.gradient_penalty.",
        )
        return self

    @model_validator(mode="after")
    def _can_be_trained_on(self) -> Self:
        if self.gates_from.run is None:
            return self
        start, epochs = f"gates_from.run={self.gates_from.run}", self.trainer.max_epochs
        require(
            self.model.weights is None, f"{start}: it is where the weights come from; model.weights=null is needed."
        )
        own = self.optim.scheduler not in (None, COSINE)
        require(not own, f"{start}: the rate goes on from that epoch; optim.scheduler=cosine or null is needed.")
        after = epochs is not None and epochs > (self.gates_from.epoch or 0) and self.trainer.max_steps == -1
        require(
            after,
            f"{start}: trainer.max_epochs={epochs}, max_steps={self.trainer.max_steps}: the epoch that training ends "
            f"at, counted from the beginning of that run, is needed, after gates_from.epoch and with max_steps=-1.",
        )
        if self.gates_from.given:
            self._check_given(start)
        return self

    def _check_given(self, start: str) -> None:
        """Refuses what would show or train a network with gates of its own."""
        soft = replace(self.surrogate, mix=1.0).soft
        require(not soft, f"{start}: gates that are given are constants, with nothing to soften; set surrogate=none.")
        require(not self.compile, f"{start}: compile=true: given gates run eagerly; false is needed.")
        on = {
            "grids.every_n_epochs": self.callbacks.grids.every_n_epochs,
            "alignment.every_n_epochs": self.callbacks.alignment.every_n_epochs,
            "paths.recordings": self.callbacks.paths.recordings,
            "diagnostics.every_n_epochs": self.callbacks.diagnostics.every_n_epochs,
        }
        for key, value in on.items():
            said = f"it looks at the network with gates of its own; set callbacks=none, or callbacks.{key}=0."
            require(not value, f"{start}: callbacks.{key}={value}: {said}")


def own_words(words: Iterable[str]) -> list[str]:
    """The overrides that are about a run itself, and not about where or how it is launched."""
    return [word for word in words if not word.startswith(("hydra.", "hydra/", "sweep.", "resume="))]


def name_of(name: str | None, directory: Path) -> str:
    """The sweep's name; by default its directory's, with the day that it stands under."""
    return str(name or "/".join(directory.absolute().parts[-2:]))


def place(sweep: DictConfig) -> DictConfig:
    """The options under `sweep.`, as they are composed, with what is known only now filled in.

    The launcher has filled them in for its jobs. A job of another launcher, such as submitit's, reads them from Hydra;
    a single run has its words there, and no number.
    """
    if not isinstance(sweep, DictConfig) or sweep.get("job") is not None:
        return sweep
    hydra = HydraConfig.get()
    found = OmegaConf.create({**sweep, "overrides": own_words(hydra.overrides.task)})
    if not OmegaConf.is_missing(hydra.job, "num"):
        found.job, found.name = hydra.job.num, name_of(sweep.get("name"), Path(hydra.sweep.dir))
    return found
