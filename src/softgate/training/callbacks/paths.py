"""Gate patterns over training: the gates of the same probe images, written at log-spaced moments."""

from __future__ import annotations

import hashlib
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from softgate.data import ImageData
from softgate.errors import SoftgateError, SoftgateWarning, is_number, is_whole, require
from softgate.paths.gates import Gates
from softgate.paths.packing import Layout
from softgate.paths.recording import Header, Point, Recorder, Recording, network_hash, probe_hash, size_on_disk
from softgate.paths.running import CHUNK, record
from softgate.surrogate import pools
from softgate.surrogate.rule import Surrogate
from softgate.training.module import SoftgateModule
from softgate.training.scales import scaled

GB = 1e9


class PathRecorder(Callback):
    """Writes a `softgate.paths.Recording` while a network trains.

    The initial network is recorded, and `recordings` moments spread evenly on a log scale from `first` epochs to the
    end; moments after more than one epoch are whole epochs. The process of rank 0 does it, with its own copy of the
    network in eval mode; training is bit-identical with and without. A resumed run goes on with the recording that is
    in the directory.

    Args:
        directory: Where the recording goes.
        rule: The rule of the soft gates, as plain data.
        images: Probe images, spread evenly over the classes.
        recordings: How many moments besides the initial network; fewer where they coincide.
        first: The first of them, in epochs; may be a fraction.
        soft: Keep soft gates too, in 8 bits each.
        weights: Keep the weights of each moment; `swap` needs them.
        max_gb: The recording may take so many gigabytes (1e9 bytes); one that would take more is refused before
            training.
        seed: Picks the probe images.

    Raises:
        SoftgateError: For a setting out of range.
    """

    def __init__(
        self,
        directory: str | Path,
        rule: Mapping[str, Any],
        images: int = 256,
        recordings: int = 10,
        first: float = 0.1,
        soft: bool = False,
        weights: bool = True,
        max_gb: float = 2.0,
        seed: int = 314,
    ) -> None:
        for key, value, least in (("images", images, 2), ("recordings", recordings, 1), ("seed", seed, 0)):
            whole = is_whole(value, least)
            require(whole, f"callbacks.paths.{key}={value}: a whole number >= {least} is needed.")
        for key, size in (("first", first), ("max_gb", max_gb)):
            number = is_number(size)
            require(number and 0 < size < math.inf, f"callbacks.paths.{key}={size}: a number > 0 is needed.")
        for key, flag in (("soft", soft), ("weights", weights)):
            require(isinstance(flag, bool), f"callbacks.paths.{key}={flag}: true or false is needed.")
        self.directory, self.rule = Path(directory), Surrogate.from_dict(rule)
        self.images, self.recordings, self.first = images, recordings, first
        self.soft, self.weights, self.max_gb, self.seed = soft, weights, max_gb, seed
        if soft:
            _check_range(self.rule)
        self._data: ImageData | None = None
        self._probe: tuple[Tensor, Tensor] | None = None
        self._recorder: Recorder | None = None
        self._plan: dict[int, float] = {}

    def check(self, module: SoftgateModule, data: ImageData) -> None:
        """Raises `SoftgateError` where the recording would be larger than allowed; reads no image."""
        like = next(module.net.parameters())
        image = torch.zeros(3, data.size, data.size, dtype=like.dtype, device=like.device)
        count = min(self.images, len(data.val_listing))
        header = self._header(module, image[None], "", count)
        points = self.recordings + 1
        size = size_on_disk(header, module.net, image, points)
        require(
            size <= self.max_gb * GB,
            f"callbacks.paths.max_gb={self.max_gb}: {points} recordings of {count} images take {size / GB:.2f} GB; set "
            f"it higher, or callbacks.paths.images, recordings, soft or weights lower.",
        )
        place = next(parent for parent in (self.directory, *self.directory.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(place).free
        require(
            size <= free, f"callbacks.paths: the recording takes {size / GB:.2f} GB, and {free / GB:.2f} GB are free."
        )

    def prepare(self, data: ImageData, module: SoftgateModule) -> None:
        """Picks the probe images; what does not fit is said before training."""
        self.check(module, data)
        self._data, self._probe = data, data.sample(self.images, self.seed)
        images, labels = self._probe
        like = next(module.net.parameters())
        header = self._header(module, images[:1].to(like), probe_hash(images, labels), len(images))
        self._recorder = Recorder(self.directory, header)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Plans the moments; records the initial network, or goes on with what an interrupted run recorded."""
        assert isinstance(pl_module, SoftgateModule)
        if self._recorder is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit(datamodule=)
            self.prepare(data, pl_module)
        assert self._recorder is not None
        assert self._probe is not None
        steps, per_epoch = _length(trainer)
        self._plan = {
            step: step / per_epoch for step in log_spaced_steps(steps, per_epoch, self.recordings, self.first)
        }
        done = trainer.global_step
        if done and (self.directory / "header.json").is_file():
            found = Recording(self.directory, "callbacks.paths").header
            fits = replace(found, run=None).identity() == self._recorder.header.identity()
            require(
                fits,
                f"callbacks.paths: the run to resume recorded another probe set, network or kind of gates in "
                f"{self.directory}; set the options of callbacks.paths as they were, or remove it.",
            )
        elif done:
            self._warn(f"the run goes on at step {done} and nothing was recorded before; {self.directory} is new.")
        trainer.strategy.barrier()  # every process has read what is there
        if trainer.is_global_zero:
            self._recorder.begin(*self._probe, after=done, run=_run(pl_module))
            self._record(pl_module, done)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Records a planned moment, once."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, SoftgateModule)
            self._record(pl_module, trainer.global_step)

    def _record(self, module: SoftgateModule, step: int) -> None:
        recorder = self._recorder
        if recorder is None or step not in self._plan or recorder.has(step):
            return
        weights = None
        if self.weights:
            state = {name: value.detach().cpu() for name, value in module.net.state_dict().items()}
            weights = {"net": state, "scales": module.sites.scales.state_dict()}
        try:
            recorder.add(Point(step, self._plan[step]), lambda kind: self._gates(module, kind), weights)
        except OSError as error:
            self._recorder = None
            self._warn(f"recording stops at step {step}: {error}.")

    def _warn(self, message: str) -> None:
        warnings.warn(f"callbacks.paths: {message}", SoftgateWarning, stacklevel=3)

    def _gates(self, module: SoftgateModule, kind: str) -> Iterator[Gates]:
        assert self._probe is not None
        assert self._data is not None
        rule, like = self.rule if kind == "soft" else None, next(module.net.parameters())
        order = torch.channels_last if module.channels_last else torch.contiguous_format
        with scaled(module, self._data, rule):
            for part in torch.split(self._probe[0], CHUNK):
                yield record(module.net, part.to(like.device, like.dtype).contiguous(memory_format=order), rule)

    def _header(self, module: SoftgateModule, image: Tensor, probe: str, count: int) -> Header:
        found = record(module.net, image)
        soft = Layout.of(found, soft=True) if self.soft else None
        return Header(
            type(module.net).__name__,
            network_hash(module.net),
            probe,
            count,
            Layout.of(found, soft=False),
            soft,
            self.rule.to_dict() if self.soft else None,
            self.weights,
        )


def _run(module: SoftgateModule) -> str:
    """Tells a run from others: a hash of what is trained, how, and from which weights."""
    found = hashlib.sha256(repr(sorted(module.hparams.items())).encode())
    for value in module.net.state_dict().values():
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def log_spaced_steps(steps: int, per_epoch: float, count: int, first: float) -> list[int]:
    """0, and `count` optimiser steps from `first` epochs to the last step, spread evenly on a log scale.

    Those after more than an epoch are whole epochs; fewer where they coincide.
    """
    begin = min(max(1.0, first * per_epoch), steps)
    found = {0, steps}
    for step in np.geomspace(begin, steps, count) if count > 1 else ():
        epochs = step / per_epoch
        found.add(min(steps, max(1, round(round(epochs) * per_epoch if epochs > 1 else step))))
    return sorted(found)


def _length(trainer: pl.Trainer) -> tuple[int, float]:
    """Optimiser steps of the whole run, and of one epoch."""
    total = trainer.estimated_stepping_batches
    if not math.isfinite(total):
        raise SoftgateError(
            f"callbacks.paths: trainer.max_epochs={trainer.max_epochs}: the number of steps must be known to spread "
            f"the recordings; set trainer.max_epochs or trainer.max_steps."
        )
    batches = trainer.num_training_batches
    per_epoch = max(1.0, math.ceil(batches / trainer.accumulate_grad_batches)) if math.isfinite(batches) else total
    return int(total), per_epoch


def _check_range(rule: Surrogate) -> None:
    """Raises unless the rule's gates lie in [0, 1], as 8 bits need."""
    values = rule(torch.linspace(-20, 20, 4001))
    fits = not rule.matches and float(values.min()) >= 0 and float(values.max()) <= 1
    require(
        fits and not isinstance(rule.pool, pools.SoftmaxFull),
        f"callbacks.paths.soft=true: gates and pooling weights of {rule.gate} with {rule.pool} and gain={rule.gain} "
        f"leave [0, 1]; choose another readout.",
    )
