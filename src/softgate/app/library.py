"""What the page can show: runs and their moments, a network of `model=`, and the networks that are in memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from softgate import files
from softgate.app.config import AppConfig
from softgate.app.images import Images
from softgate.app.kept import Kept
from softgate.classes import Classes, match
from softgate.data.config import DataConfig
from softgate.errors import SoftgateError, is_number, printable, require, unknown
from softgate.evaluation import checkpoints, networks
from softgate.evaluation.checkpoints import saved_config
from softgate.evaluation.reports.path_results import Stability
from softgate.evaluation.runs import labels
from softgate.explainers.pullback import pullback
from softgate.paths.recording import Point, Recording
from softgate.sites.calibration import calibrate
from softgate.sites.inference import inner
from softgate.sites.scales import scales_of
from softgate.surrogate.rule import Surrogate
from softgate.training.checkpoints import restore
from softgate.training.probe import spread

CALIBRATED = 64
"""Validation images that channel scales are measured on, where a network brings none."""

PROBE = (5, 314)
"""Classes and seed of the probe images of a network that no run here trained: those of `conf/callbacks`."""

MEASURED = 8
"""Measurements of path stability that are kept in memory."""

SETS = 4
"""Data sets that are kept in memory."""


@dataclass(frozen=True)
class Moment:
    """A moment of a run that can be looked at.

    Attributes:
        key: Tells it from the run's others.
        words: What the page calls it.
        epochs: Epochs done.
        file: A checkpoint, a recording's directory, or a saved grid.
        point: Of a recording.
        weights: Whether there are weights; of a saved grid there are none, so that it can only be shown.
    """

    key: str
    words: str
    epochs: float
    file: Path
    point: Point | None = None
    weights: bool = True


@dataclass(frozen=True)
class Run:
    """A run, or a checkpoint by itself.

    Attributes:
        label: The shortest end of its path that no other shares.
        place: Its directory, or the checkpoint file.
    """

    label: str
    place: Path

    @property
    def called(self) -> str:
        """Its path as a snippet can have it: relative to where the app was started, else the name alone."""
        try:
            return self.place.absolute().relative_to(Path.cwd()).as_posix()
        except ValueError:
            return self.place.name

    def moments(self) -> list[Moment]:
        """What there is now, the earliest first; a run that goes on has more later.

        Raises:
            SoftgateError: If there is nothing to look at.
        """
        if self.place.is_file():
            return [Moment("checkpoint", "its checkpoint", 0.0, self.place)]
        found = [*self._recorded(), *self._checkpoints()]
        known = {moment.epochs for moment in found}
        found += [moment for moment in self._grids() if moment.epochs not in known]
        require(bool(found), f"run {self.label}: it has no checkpoint, no recorded weights and no saved grid.")
        return sorted(found, key=lambda moment: (moment.epochs, moment.key))

    def near(self, epochs: float) -> Moment:
        """The moment with weights that is nearest to so many epochs; a saved grid where there are no weights."""
        moments = self.moments()
        return min(moments, key=lambda moment: (not moment.weights, abs(moment.epochs - epochs)))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint of its network."""
        return bool(self._checkpoints())

    def checkpoint(self) -> Path:
        """Any checkpoint, for the network that recorded weights belong to."""
        return self._checkpoints()[0].file

    def _checkpoints(self) -> list[Moment]:
        summary = files.read_json(self.place / "summary.json")
        best, done = summary.get("best/epoch"), [float(moment.epochs) for moment in self._grids()]
        ends = {"best": best + 1.0 if is_number(best) else None, "last": max(done, default=None)}
        found = []
        for path in sorted((self.place / "checkpoints").glob("*.ckpt")):
            epochs = ends.get(path.stem)
            words = f"{path.stem} checkpoint" + (f", {_after(epochs)}" if epochs is not None else "")
            found.append(Moment(path.stem, words, float("inf") if epochs is None else epochs, path))
        return found

    def _recorded(self) -> list[Moment]:
        place = self.place / "paths"
        if not (place / "header.json").is_file() or not self._checkpoints():
            return []
        try:
            recording = Recording(place, "paths")
        except SoftgateError:  # damaged: its checkpoints are there all the same
            return []
        points = recording.points if recording.header.weights else []
        return [Moment(f"step={p.step}", f"{_after(p.epoch)} ({p.step} steps)", p.epoch, place, p) for p in points]

    def _grids(self) -> list[Moment]:
        found = []
        for path in sorted((self.place / "grids").glob("epoch=*.pt")):
            number = re.fullmatch(r"epoch=(\d+)", path.stem)
            if number:
                epochs = int(number[1]) + 1
                found.append(Moment(path.stem, f"saved grid, {_after(epochs)}", epochs, path, weights=False))
        return found


def _after(epochs: float) -> str:
    return f"after {epochs:.3g} epoch{'' if epochs == 1 else 's'}"


@dataclass(frozen=True)
class Network:
    """A network in memory.

    Attributes:
        net: In eval mode, on the device of the app.
        trained: The rule it was trained with, where that is known.
        names: Its classes' names.
        images: What it can be shown.
        code: Lines of Python that make `net`, `data` and `x` from `label`, `number`.
        probe: How many classes the run's grids have an image of, and the seed that picks them.
    """

    net: nn.Module
    trained: Surrogate | None
    names: Sequence[str]
    images: Images
    code: Sequence[str]
    probe: tuple[int, int]
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def soft(self) -> bool:
        """Whether it was trained through soft gates."""
        return self.trained is not None and self.trained.soft

    def own(self, label: int) -> int:
        """A class of the data as the network counts it."""
        data = self.images.data
        return match(data.identity, Classes.of(self.names), data.config.option, "the network").indexes[label]

    def calibrated(self, rule: Surrogate) -> None:
        """Measures the channel scales, once, where a rule wants them and the network brings none."""
        if rule.scale != "channel":
            return
        with self.lock:
            if not scales_of(inner(self.net)):
                x = spread(self.images.data, CALIBRATED)[0].to(next(self.net.parameters()))
                calibrate(self.net, [x], rule)


class Library:
    """The runs or the network of a config, and what was made of them; shared by all visitors, changed by none.

    Args:
        config: Of the app.
        size: Pixels a side of the images of a network of `model=`.
        empty: Whether there may be no runs yet.

    Attributes:
        runs: By their labels.

    Raises:
        SoftgateError: If there are no runs, or the network of `model=` cannot be built.
    """

    def __init__(self, config: AppConfig, size: int | None = None, empty: bool = False) -> None:
        self.config, self.options = config, config.app
        cuda = torch.cuda.is_available()
        wanted = config.accelerator
        require(wanted != "gpu" or cuda, "accelerator=gpu: this machine has no usable GPU; use accelerator=cpu.")
        self.device = torch.device("cuda" if cuda and wanted != "cpu" else "cpu")
        self.networks: Kept[Network] = Kept(config.app.networks)
        self.sets: Kept[Images] = Kept(SETS)
        self.measured: Kept[Stability] = Kept(MEASURED)
        self.runs: dict[str, Run] = {}
        self.fixed: dict[str, Network] = {}
        if config.model is not None:
            self.fixed = {config.model.called if hasattr(config.model, "called") else "network": self._given(size)}
        else:
            self.runs = find(config.patterns, empty)

    def refresh(self) -> None:
        """Looks for runs anew; where none are left, those known stay."""
        if self.config.model is None:
            self.runs = find(self.config.patterns, empty=True) or self.runs

    @property
    def labels(self) -> list[str]:
        """What can be looked at."""
        return [*self.fixed, *self.runs]

    def run(self, label: str) -> Run:
        """A run by its label."""
        if label not in self.runs:
            raise unknown("run", label, self.runs)
        return self.runs[label]

    def moments(self, label: str) -> list[Moment]:
        """What a run has; a network of `model=` has one moment."""
        if label in self.fixed:
            return [Moment("given", "its weights", 0.0, Path())]
        return self.run(label).moments()

    def moment(self, label: str, key: str) -> Moment:
        """One of `moments`, by its key."""
        found = {moment.key: moment for moment in self.moments(label)}
        if key not in found:
            raise unknown("checkpoint", key, found)
        return found[key]

    def network(self, label: str, key: str) -> Network:
        """The network of a run at a moment, read where it is not in memory.

        Raises:
            SoftgateError: If the moment is a saved grid or not there, the checkpoint is damaged or names code, or this
                machine cannot build its network.
        """
        if label in self.fixed:
            return self.fixed[label]
        run = self.run(label)
        moment = self.moment(label, key)
        require(moment.weights, f"run {label}: of {moment.words} no weights are kept; its picture can be shown only.")
        changed = moment.file.stat().st_mtime_ns
        return self.networks.get((run.place, key, changed), lambda: self._read(run, moment))

    def scrubbed(self, words: str) -> str:
        """A sentence without paths of this machine: of a run its label, of other files the name."""
        for label, run in self.runs.items():
            words = words.replace(str(run.place), label)
        return re.sub(r"(?<![\w.:/])/(?:[^\s/:;,'\"]+/)+", "", words)

    def said(self, error: Exception) -> str:
        """An error as a sentence for the page: without paths, in one line; of a bug the kind alone."""
        if not isinstance(error, SoftgateError):
            return f"something went wrong ({type(error).__name__}); the terminal that the app runs in has the details."
        return printable(self.scrubbed(" ".join(str(error).split())))

    def images(self, config: DataConfig) -> Images:
        """The images of a data set."""
        return self.sets.get(repr(config), lambda: Images(config))

    def _read(self, run: Run, moment: Moment) -> Network:
        file = run.checkpoint() if moment.point is not None else moment.file
        module, data = restore(file, "checkpoint")
        net = inner(module.net)
        path = repr(f"{run.called}" if run.place.is_file() else f"{run.called}/checkpoints/{file.name}")
        code = [
            "from softgate.data import ImageData",
            "from softgate.training.checkpoints import restore",
            "",
            f"module, options = restore(Path({path}))",
            "net = module.net",
        ]
        if moment.point is not None:
            recording = Recording(moment.file, "paths")
            kept = recording.weights(moment.point)
            net.load_state_dict(kept["net"])
            scales_of(net).load_state_dict(kept["scales"])
            code += [
                f"recording = sg.paths.Recording({run.called + '/paths'!r})",
                f"(point,) = [p for p in recording.points if p.step == {moment.point.step}]",
                'net.load_state_dict(recording.weights(point)["net"])',
            ]
        images = self.images(self.config.data.onto(data))
        changes = {key: value for key, value in self.config.data.values.items() if value is not None}
        options = f"{{**options, **{changes!r}}}" if changes else "options"
        code += [f'data = ImageData({options}, splits=("val",), measured=True)']
        given = (saved_config(run.place).get("callbacks") or {}).get("grids") or {}
        probe = int(given.get("classes", PROBE[0])), int(given.get("seed", PROBE[1]))
        return self._looked_at(net, module.rule, module.classes, images, code, probe)

    def _given(self, size: int | None) -> Network:
        config = self.config
        assert config.model is not None
        assert size is not None
        images = self.images(config.data.whole(size))
        subject = networks.build(config.model, images.data)
        code = [
            "from softgate.data import ImageData",
            "from softgate.evaluation import networks",
            "from softgate.training.networks import read_network",
            "",
            f"data = ImageData({images.config.plain!r}, splits=('val',), measured=True)",
            f"net = networks.build(read_network({config.model.plain!r}), data).net",
        ]
        return self._looked_at(subject.net, None, subject.names, images, code)

    def _looked_at(
        self,
        net: nn.Module,
        trained: Surrogate | None,
        names: Sequence[str],
        images: Images,
        code: Sequence[str],
        probe: tuple[int, int] = PROBE,
    ) -> Network:
        net = net.to(self.device).eval()
        if hasattr(images.config, "size") and images.config.size is not None:  # what fails shows before it is kept
            like: Tensor = next(net.parameters())
            pullback(net, like.new_zeros(1, images.channels, images.config.size, images.config.size), 0)
        return Network(net, trained, names, images, code, probe)


def find(patterns: Sequence[str], empty: bool = False) -> dict[str, Run]:
    """The runs and checkpoints that `runs` names, by their labels.

    Args:
        patterns: Directories, checkpoint files and globs of these.
        empty: Whether there may be none.

    Raises:
        SoftgateError: If there are none.
    """
    directories = checkpoints.directories(*patterns)
    lone = []
    for one in patterns:
        path = Path(one).expanduser()
        matched = [path] if path.exists() else checkpoints.matching(str(path))
        for each in matched:
            of_run = each.parent.name == "checkpoints" and each.parents[1] in directories
            if each.suffix == ".ckpt" and each.is_file() and not of_run:
                lone.append(each)
    places = [*directories, *lone]
    require(empty or bool(places), f"runs={', '.join(patterns)}: there is no run's directory and no checkpoint.")
    return {label: Run(label, place) for label, place in zip(labels(places), places, strict=True)}
