"""The options of `optim=` as types: an optimiser, its rate over the run, and what softens the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from softgate import targets
from softgate.errors import require
from softgate.options import Number, Options

Share = Annotated[Number, Field(ge=0, le=1)]
COSINE = "cosine"


class Plan(Options):
    """What every choice of `optim=` has: the learning rate over the run, and what softens the labels."""

    at: ClassVar[str] = "optim"

    warmup: Share = Field(0.0, description="share of all steps in which the rate climbs")
    label_smoothing: Share = Field(0.0, description="share of the target spread over all classes")
    mixup: Annotated[Number, Field(ge=0)] = Field(0.0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: Annotated[Number, Field(ge=0)] = Field(0.0, description="alpha of cutmix's Beta distribution; 0 is off")
    scheduler: Any = Field(COSINE, description="cosine, null for a constant rate, or a target of an LRScheduler")
    interval: Literal["step", "epoch"] = Field("epoch", description="when a scheduler of one's own is stepped")
    monitor: str = Field("val/loss", description="what ReduceLROnPlateau looks at")

    @model_validator(mode="after")
    def _scheduled(self) -> Self:
        own = isinstance(self.scheduler, Mapping) and targets.KEY in self.scheduler
        fine = own or self.scheduler in (None, COSINE)
        require(fine, f"optim.scheduler={self.scheduler}: cosine, null or a _target_ with its arguments is needed.")
        if own:
            targets.check(self.scheduler, "optim.scheduler", "torch.optim.lr_scheduler.LRScheduler")
            targets.check_arguments(self.scheduler, "optim.scheduler", ["*"])
        require(own or self.interval == "epoch", "optim.interval=step: it is for an optim.scheduler of your own.")
        plain = own or self.warmup == 0 or self.scheduler == COSINE
        require(plain, f"optim.warmup={self.warmup}: with optim.scheduler=null the rate is constant; 0 is needed.")
        return self


class OptimConfig(Plan):
    """The options of `optim=`: SGD or AdamW, its learning rate over the run, and what softens the targets."""

    name: Literal["sgd", "adamw"] = Field(description="SGD with Nesterov momentum, or AdamW")
    lr: Annotated[Number, Field(gt=0)] = Field(description="peak learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="Nesterov's, or AdamW's beta1")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(0.0, description="not applied to norms and biases")


class TargetOptim(Plan):
    """The options of `optim=` with a `_target_`: any optimiser of PyTorch's kind, with its own arguments."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    target: str = Field(alias="_target_", description="dotted name of an Optimizer, given the parameters first")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        targets.check(self.plain_target, "optim", "torch.optim.Optimizer")
        targets.check_arguments(self.plain_target, "optim", ["*"])
        return self

    @property
    def plain_target(self) -> dict[str, Any]:
        """`_target_` and the arguments."""
        return {"_target_": self.target, **(self.model_extra or {})}


def read_optim(given: Any) -> Any:
    """The options of `optim=`, of either kind."""
    if isinstance(given, Options):
        return given
    own = isinstance(given, Mapping) and targets.KEY in given
    return TargetOptim.read(given) if own else OptimConfig.read(given)
