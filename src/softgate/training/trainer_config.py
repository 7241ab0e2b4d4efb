"""The options of `trainer=`: every argument of Lightning's Trainer, and whether this machine has what they ask for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from softgate import targets
from softgate.errors import is_whole, require, unknown
from softgate.options import Count, Number, Options, Says, Whole

PRECISIONS = (
    *("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true"),
    *("transformer-engine", "transformer-engine-float16"),
)

STRATEGIES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
"""The usual ones of Lightning's, which must be there to name others."""

Batches = Annotated[
    Whole | Annotated[float, Field(ge=0, le=1)] | None,
    Says("a whole number >= 0, a share from 0.0 to 1.0, or null is needed"),
]
"""So many batches where it is an int, this share of them where it is a float."""

Interval = Annotated[
    Count | Annotated[float, Field(gt=0, le=1)] | str | dict[str, int] | None,
    Says("a whole number >= 1, a share above 0 and up to 1.0, a time as DD:HH:MM:SS, or null is needed"),
]


class TrainerConfig(Options):
    """The options of `trainer=`; `conf/trainer/cpu.yaml` says what each is for."""

    at: ClassVar[str] = "trainer"

    accelerator: str = Field("cpu", description="cpu, gpu, mps or auto")
    devices: Any = Field(1, description="how many, a list of GPU numbers, -1 for all, or auto")
    num_nodes: Count = Field(1, description="machines")
    strategy: str = Field("auto", description="auto, ddp, ...")
    precision: str | int | None = Field("32-true", description="one of `PRECISIONS`, or bits")
    max_epochs: Any = Field(6, description="passes over the training images; -1 with max_steps or max_time")
    min_epochs: Whole | None = Field(None, description="at least so many epochs")
    max_steps: Annotated[Count | Literal[-1], Says("a whole number >= 1, or -1 is needed")] = Field(
        -1, description="optimiser steps; -1 is no limit"
    )
    min_steps: Whole | None = Field(None, description="at least so many steps")
    max_time: str | dict[str, int] | None = Field(None, description="stop after DD:HH:MM:SS")
    accumulate_grad_batches: Count = Field(1, description="batches summed into one optimiser step")
    gradient_clip_val: Annotated[Number, Field(ge=0)] | None = Field(None, description="greatest size of the gradient")
    gradient_clip_algorithm: Literal["norm", "value"] | None = Field(None, description="what that size is")
    limit_train_batches: Batches = Field(None, description="training batches of an epoch")
    limit_val_batches: Batches = Field(None, description="validation batches")
    limit_test_batches: Batches = Field(None, description="test batches")
    limit_predict_batches: Batches = Field(None, description="batches of a prediction")
    overfit_batches: Batches = Field(0.0, description="train and validate on so many batches, over and over")
    fast_dev_run: Annotated[bool | Whole, Says("true, false or a number of batches is needed")] = Field(
        False, description="run one batch of everything, write nothing"
    )
    val_check_interval: Interval = Field(None, description="validate within an epoch, every so many batches")
    check_val_every_n_epoch: Count | None = Field(1, description="validate every n epochs")
    num_sanity_val_steps: Annotated[Whole | Literal[-1], Says("a whole number >= 0, or -1 is needed")] = Field(
        1, description="validation batches tried before training; -1 is all"
    )
    log_every_n_steps: Whole = Field(10, description="steps between two logged step losses")
    enable_checkpointing: bool | None = Field(True, description="write checkpoints")
    enable_progress_bar: bool = Field(True, description="the live bar")
    enable_model_summary: bool = Field(False, description="Lightning's table of layers")
    deterministic: Annotated[bool | Literal["warn"] | None, Says("true or false or null or warn is needed")] = Field(
        None, description="refuse operations that differ from run to run"
    )
    benchmark: bool | None = Field(None, description="let cuDNN try out convolution algorithms")
    inference_mode: bool = Field(True, description="validate without autograd")
    use_distributed_sampler: bool = Field(True, description="split the data over processes")
    sync_batchnorm: bool | Literal["auto"] = Field(
        False, description="share BatchNorm statistics over GPUs; auto is where there are several"
    )
    profiler: Annotated[
        Literal["simple", "advanced", "pytorch", "xla"] | None,
        Says("null or simple or advanced or pytorch or xla is needed"),
    ] = Field(None, description="time what Lightning does")
    detect_anomaly: bool = Field(False, description="find the operation that makes a NaN; slow")
    barebones: bool = Field(False, description="Lightning with everything off, for timing")
    plugins: Any = Field(None, description="Lightning plugins by name, or each a _target_ with its arguments")
    reload_dataloaders_every_n_epochs: Whole = Field(0, description="rebuild the loaders every n epochs")
    enable_autolog_hparams: bool = Field(True, description="hand the hyper-parameters to the loggers")
    model_registry: str | None = Field(None, description="Lightning's model registry")

    @field_validator("limit_train_batches")
    @classmethod
    def _some(cls, batches: float | None) -> float | None:
        said = f"trainer.limit_train_batches={batches}: there is nothing to train on; null is no limit."
        require(batches is None or batches > 0, said)
        return batches

    @field_validator("plugins")
    @classmethod
    def _named(cls, plugins: Any) -> Any:
        each = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
        fine = all(isinstance(one, str) or (isinstance(one, Mapping) and targets.KEY in one) for one in each)
        require(fine, f"trainer.plugins={plugins}: names, or dicts with a _target_, are needed, or null.")
        for one in each:
            if isinstance(one, Mapping):
                targets.check(one, "trainer.plugins")
                targets.check_arguments(one, "trainer.plugins")
        return plugins

    @field_validator("precision")
    @classmethod
    def _precise(cls, precision: str | int | None) -> str | int | None:
        if precision is not None and str(precision) not in (*PRECISIONS, "64", "32", "16", "bf16"):
            raise unknown("trainer.precision", precision, PRECISIONS)
        return precision

    @field_validator("strategy")
    @classmethod
    def _known(cls, strategy: str) -> str:
        if strategy not in STRATEGIES:
            from pytorch_lightning.strategies import (
                StrategyRegistry,  # takes seconds, which the usual ones need not wait
            )

            strategies = ["auto", *StrategyRegistry.available_strategies()]
            if strategy not in strategies:
                raise unknown("trainer.strategy", strategy, strategies)
        return strategy

    @model_validator(mode="after")
    def _ends(self) -> Self:
        epochs, limited = self.max_epochs, self.max_steps != -1 or self.max_time is not None
        fine = is_whole(epochs, 1) or (epochs in (None, -1) and not isinstance(epochs, bool) and limited)
        require(fine, f"trainer.max_epochs={epochs}: a whole number >= 1 is needed, or -1 with max_steps or max_time.")
        return self

    @model_validator(mode="after")
    def _possible_here(self) -> Self:
        """More devices than this machine has are refused."""
        accelerator, devices, gpus = self.accelerator, self.devices, _gpus(self.accelerator)
        if accelerator not in ACCELERATORS:
            from pytorch_lightning.accelerators import AcceleratorRegistry

            accelerators = {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
            if accelerator not in accelerators:
                raise unknown("trainer.accelerator", accelerator, accelerators)
        require(
            accelerator not in ("gpu", "cuda") or gpus > 0,
            f"trainer.accelerator={accelerator}: this machine has no usable GPU; use trainer=cpu.",
        )
        numbers = isinstance(devices, (list, tuple)) and len(devices) > 0 and all(is_whole(each, 0) for each in devices)
        typed = isinstance(devices, str) and (devices == "auto" or re.fullmatch(r"\d+(, ?\d+)*,?", devices) is not None)
        require(
            is_whole(devices, 1) or (devices == -1 and is_whole(devices, -1)) or numbers or typed,
            f"trainer.devices={devices}: a whole number >= 1, a list of GPU numbers, -1 for all, or auto is needed.",
        )
        most = len(devices) if isinstance(devices, (list, tuple)) else devices
        if not isinstance(most, int) or most == -1:
            return self
        if gpus and accelerator in ("auto", "gpu", "cuda"):
            require(most <= gpus, f"trainer.devices={devices}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}.")
        else:  # two processes are let pass on one core, to try out what several would do
            cores = os.cpu_count() or 1
            require(most <= max(2, cores), f"trainer.devices={devices}: this machine has no GPU and {cores} CPU cores.")
        return self


def _gpus(accelerator: str) -> int:
    """How many GPUs of this machine may be meant; for a CPU none, and torch is not imported to count them."""
    if accelerator == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()
