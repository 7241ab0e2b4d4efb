"""Gate patterns over training: the gates of the same probe images, written at log-spaced moments."""

from __future__ import annotations

import hashlib
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from softgate import memory
from softgate.data import ImageData
from softgate.errors import SoftgateError, SoftgateWarning, require
from softgate.explainers.gated import CHUNK, record
from softgate.explainers.gates import Gates
from softgate.options import switched_on
from softgate.paths.packing import Layout
from softgate.paths.recording import Header, Point, Recorder, Recording, network_hash, probe_hash, size_on_disk
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks.config import PathsConfig
from softgate.training.config import check_range
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
        rule: The rule of the soft gates.
        options: What is recorded, of which images, and how often.
        split: Whether the probe images are "val" or "train" images, these as validation shows them.

    Raises:
        SoftgateError: If nothing is to be recorded, or soft gates of the rule do not fit into 8 bits.
    """

    def __init__(
        self, directory: str | Path, rule: Surrogate, options: PathsConfig, split: Literal["val", "train"] = "val"
    ) -> None:
        switched_on("callbacks.paths.recordings", options.recordings)
        self.directory, self.rule, self.options, self.split = Path(directory), rule, options, split
        if options.soft:
            check_range(rule)
        self._data: ImageData | None = None
        self._probe: tuple[Tensor, Tensor] | None = None
        self._recorder: Recorder | None = None
        self._plan: dict[int, float] = {}
        self._chunk = CHUNK  # images per pass, fewer where memory runs out

    def check(self, module: SoftgateModule, data: ImageData) -> None:
        """Raises `SoftgateError` where the recording would be larger than allowed; reads no image."""
        like = next(module.net.parameters())
        image = torch.zeros(data.config.channels, data.size, data.size, dtype=like.dtype, device=like.device)
        count = min(self.options.images, len(data.train_listing if self.split == "train" else data.val_listing))
        header = self._header(module, image[None], "", count)
        points = self.options.recordings + 1
        size = size_on_disk(header, module.net, image, points)
        said = f"{points} recordings of {count} images take {size / GB:.2f} GB; set it higher"
        require(
            size <= self.options.max_gb * GB,
            f"callbacks.paths.max_gb={self.options.max_gb}: {said}, or callbacks.paths.images, recordings, soft or "
            f"weights lower.",
        )
        place = next(parent for parent in (self.directory, *self.directory.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(place).free
        require(
            size <= free, f"callbacks.paths: the recording takes {size / GB:.2f} GB, and {free / GB:.2f} GB are free."
        )

    def prepare(self, data: ImageData, module: SoftgateModule) -> None:
        """Picks the probe images; what does not fit is said before training."""
        self.check(module, data)
        self._data, self._probe = data, data.sample(self.options.images, self.options.seed, self.split)
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
            step: step / per_epoch
            for step in log_spaced_steps(steps, per_epoch, self.options.recordings, self.options.first)
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
        if self.options.weights:
            state = {name: value.detach().cpu() for name, value in module.net.state_dict().items()}
            weights = {"net": state, "scales": module.sites.scales.state_dict()}
        try:
            with memory.spared(lambda why: self._left_out(step, why)):
                recorder.add(Point(step, self._plan[step]), lambda kind: self._gates(module, kind), weights)
        except OSError as error:
            self._recorder = None
            self._warn(f"recording stops at step {step}: {str(error).rstrip('.')}.")

    def _left_out(self, step: int, why: str) -> None:
        del self._plan[step]
        self._warn(f"step {step} is not recorded: {why}, with one image at a time; set data.batch_size lower.")

    def _warn(self, message: str) -> None:
        warnings.warn(f"callbacks.paths: {message}", SoftgateWarning, stacklevel=3)

    def _gates(self, module: SoftgateModule, kind: str) -> Iterator[Gates]:
        assert self._probe is not None
        assert self._data is not None
        rule, like = self.rule if kind == "soft" else None, next(module.net.parameters())
        order = torch.channels_last if module.channels_last else torch.contiguous_format
        with scaled(module, self._data, rule):
            images, done = self._probe[0], 0
            while done < len(images):
                part = images[done : done + self._chunk]
                try:
                    found = record(module.net, part.to(like.device, like.dtype).contiguous(memory_format=order), rule)
                except (RuntimeError, MemoryError) as error:
                    if self._chunk == 1 or not memory.ran_out(error):
                        raise
                    memory.give_back(error)
                    self._chunk //= 2
                    continue
                yield found
                done += len(part)

    def _header(self, module: SoftgateModule, image: Tensor, probe: str, count: int) -> Header:
        found = record(module.net, image)
        smooth = ", ".join(dict.fromkeys(site.kind for site in found.sites.values() if not site.hard))
        require(
            not smooth,
            f"callbacks.paths.recordings={self.options.recordings}: a recording is of gates that are open or closed, "
            f"and {type(module.net).__name__} has activations ({smooth}) without any; set it to 0.",
        )
        soft = Layout.of(found, soft=True) if self.options.soft else None
        return Header(
            type(module.net).__name__,
            network_hash(module.net),
            probe,
            count,
            Layout.of(found, soft=False),
            soft,
            self.rule.to_dict() if self.options.soft else None,
            self.options.weights,
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
