"""`evaluate(cfg)`: restores trained networks, measures them on the validation images, reads them out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError

from softgate import files, locks, memory, signals
from softgate.classes import Classes, match
from softgate.data import ImageData
from softgate.data.config import DataConfig
from softgate.errors import Stopped, require
from softgate.evaluation import alignment, compare, config, grids, networks
from softgate.evaluation.checkpoints import find_checkpoints, labelled
from softgate.evaluation.config import EvaluationConfig
from softgate.evaluation.confusion import Confusion, Tally
from softgate.evaluation.paths import PathStudy
from softgate.evaluation.reports import publish
from softgate.explainers.pullback import predict
from softgate.surrogate.description import names
from softgate.surrogate.rule import Surrogate
from softgate.tables import Terminal
from softgate.training import SoftgateModule, summary
from softgate.training.checkpoints import restore
from softgate.training.module import accuracies
from softgate.training.networks import title

SCHEMA = 1
"""Version of what `results.json` holds."""

NAMED = 4
"""How many runs that were not come to are named when an evaluation is stopped."""

TAKES_LESS = {
    "grid": "grid.rows, grid.columns or grid.chunk",
    "alignment": "alignment.images, alignment.dear_images or alignment.draws",
    "paths": "paths.chunk or paths.kernel_images",
}
"""Parts of an evaluation, and the options to set lower where memory is too short for them."""


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluates runs or networks as a config says; prints a table, writes `results.json` and pictures.

    Args:
        cfg: The config of `conf/evaluate.yaml`, composed.

    Returns:
        What `results.json` holds.

    Raises:
        SoftgateError: For a mistake in the config, a missing or damaged checkpoint, or data that does not fit it.
        CannotWrite: If the disk is full, or the directory is gone or cannot be written.
        OutOfMemory: If memory is too short even for the validation images, one by one.
        Stopped: After a signal in a command; what was measured by then is written.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    files.folder(directory)
    with locks.held(directory), memory.phrased("data.batch_size or data.num_workers lower, or data.cache=false"):
        return _evaluate(cfg, directory)


def _evaluate(cfg: DictConfig, directory: Path) -> dict[str, Any]:
    options = config.options(cfg)
    device = _device(options.accelerator)
    paths = None if options.paths is None else PathStudy(options.paths, options.readout)
    evaluation = Evaluation(options, device, directory, _study(options), paths)
    several = [] if options.networks else compare.wanted(options)
    if several:
        compared = compare.compare(options, several, device, directory, restore)
        return publish.publish(compared, directory, options.figures)
    found: list[dict[str, Any]] = []
    try:
        (evaluation.of_networks if options.networks else evaluation.of_runs)(found)
    except BaseException as error:
        if found:  # what took minutes is not thrown away with what failed
            evaluation.finish(found)
            if isinstance(error, Stopped):
                error.kept = evaluation.kept(found)
        raise
    return evaluation.finish(found)


def _study(options: EvaluationConfig) -> alignment.Study | None:
    asked = options.alignment
    if asked is None:
        return None
    alignment.check(asked, options.readout)
    judge = None
    if asked.judge is not None:
        module, data = restore(asked.judge, "alignment.evaluator")
        module.sites.detach()
        judge = module.net, DataConfig.read(data), module.classes
    return alignment.Study(asked, options.readout, judge)


@dataclass(frozen=True)
class Evaluation:
    """What looking at one run or network after the other needs.

    Attributes:
        options: Of the evaluation.
        device: Where to measure.
        directory: Where results go.
        study: Of the alignment metrics, if they are asked for; it collects what it measures.
        paths: Of the paths, if they are asked for; it collects what it measures.
        left: A line on each part that memory was too short for.
        hints: A line on each network that another choice would show more of.
        asked: The checkpoints or networks that are looked at, in their order, once they are known.
        confused: Which classes each of them takes for which, where that is measured.
    """

    options: EvaluationConfig
    device: torch.device
    directory: Path
    study: alignment.Study | None
    paths: PathStudy | None
    left: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    confused: list[Confusion] = field(default_factory=list)

    def _within_memory(self, label: str, part: str) -> AbstractContextManager[None]:
        """Leaves a part out, and notes it, if memory runs out; the rest of the evaluation goes on."""
        return memory.spared(lambda why: self.left.append(f"{label}: {part}: {why}; set {TAKES_LESS[part]} lower."))

    def of_runs(self, found: list[dict[str, Any]]) -> None:
        """Looks at the runs of `runs`, one after the other.

        Args:
            found: Takes what `results.json` holds of each, as soon as it is known.
        """
        checkpoints = find_checkpoints(self.options.patterns, self.options.checkpoint)
        self.asked.extend(map(str, checkpoints))
        labels = labelled(checkpoints)
        restored = [(module, self.options.data.onto(own)) for module, own in map(restore, checkpoints)]
        for label, path, (module, images) in zip(labels, checkpoints, restored, strict=True):
            if self.study is not None:
                judge, typed = self.study.options.judge, self.study.options.evaluator
                itself = judge is not None and _home(judge) == _home(path)
                require(
                    not itself, f"alignment.evaluator={typed}: it is of one of the runs; another network must judge."
                )
                self.study.expect(label, images, module.classes)
            if self.paths is not None:
                self.paths.expect(label, path, module.net)
        known: dict[str, ImageData] = {}
        for label, path, (module, images) in zip(labels, checkpoints, restored, strict=True):
            if repr(images) not in known:
                known[repr(images)] = ImageData(images, splits=("val",), measured=True)
            place = self.directory if len(checkpoints) == 1 else self.directory / label
            found.append(self._of_run(label, path, module, known[repr(images)], place))

    def _of_run(self, label: str, path: Path, module: SoftgateModule, data: ImageData, place: Path) -> dict[str, Any]:
        found = match(data.identity, Classes.of(module.classes), data.config.option, str(path))
        if self.study is not None:
            self.study.expect(label, data.config, module.classes, len(data.val_listing))
        grid = self.options.grid
        name = title(module.hparams["model"])
        subject = networks.Subject(name, module.net, module.classes, found.indexes, found)
        soft = self._readout(label, module.net, data)
        grid.require_fit(len(data.classes), len(module.classes))
        data.setup("validate")
        module.to(self.device).eval()
        scores = self._measured(subject, data, place, str(path), module) if self.options.measure else {}
        with self._within_memory(label, "grid"):
            grids.draw(subject, data, soft, grid, place, title=str(path))
        if self.study is not None:
            with self._within_memory(label, "alignment"):
                grids.scale(subject, data, [soft], grid)
                self.study.look(label, module.rule, subject, data, soft)
        if self.paths is not None:
            with self._within_memory(label, "paths"):
                self.paths.look(label, module.rule, module.net)
        module.cpu()
        model, rule = dict(module.hparams["model"]), module.rule.to_dict()
        named = {"checkpoint": str(path), "data": data.config.name, "images": len(data.val_listing)}
        named["measured"] = data.config.measured_images
        return {**named, "classes": str(found), "model": model, "surrogate": rule, **scores}

    def _measured(
        self, subject: networks.Subject, data: ImageData, place: Path, title: str, module: SoftgateModule | None = None
    ) -> dict[str, Any]:
        """Scores, and which classes are taken for which, which goes into files of its own too."""
        tally = Tally(subject.classes, len(subject.names), next(subject.net.parameters()).device)
        if module is None:
            scores = measure_among(subject, data, tally)
        else:
            scores = measure(module, data, subject.classes, tally)
        made = Confusion(data.classes, tally.counts())
        made.write(place, title, self.options.figures)
        self.confused.append(made)
        return {**scores, "confusion": made.plain()}

    def of_networks(self, found: list[dict[str, Any]]) -> None:
        """Looks at the networks of `model`, or of `models`, one after the other.

        Args:
            found: Takes what `results.json` holds of each, as soon as it is known.
        """
        options, grid, study = self.options, self.options.grid, self.study
        asked = options.networks
        self.asked.extend(network.called for network in asked)
        size = networks.image_size(asked[0], options.data)
        data = ImageData(options.data.whole(size), splits=("val",), measured=True)
        if study is not None:
            for network in asked:
                study.expect(network.called, data.config, data.classes, len(data.val_listing))
        subjects = [networks.build(network, data) for network in asked]
        for subject in subjects:
            grid.require_fit(len(data.classes), len(subject.names))
        data.setup("validate")
        for network, subject in zip(asked, subjects, strict=True):
            subject.net.to(self.device)
            soft = self._readout(network.called, subject.net, data)
            place = self.directory if len(asked) == 1 else self.directory / network.called
            title = networks.about(subject, network)
            scores = self._measured(subject, data, place, title) if options.measure else {}
            named = {"data": data.config.name, "images": len(data.val_listing)}
            named["measured"] = data.config.measured_images
            named |= {"classes": str(subject.found)} if subject.found else {}
            about = {"name": network.called, "weights": network.weights, "origin": networks.origin(network)}
            if not grid.figures:
                with self._within_memory(network.called, "grid"):
                    grids.draw(subject, data, soft, grid, place, title)
            if study is not None:
                with self._within_memory(network.called, "alignment"):
                    grids.scale(subject, data, [soft], grid)
                    study.look(network.called, None, subject, data, soft)
            found.append({**named, "model": about, "surrogate": None, **scores})
        if grid.figures:
            titles = [networks.about(subject, network) for subject, network in zip(subjects, asked, strict=True)]
            with self._within_memory("figures", "grid"):
                grids.paper_figures(subjects, titles, data, options.readout, grid, self.directory)

    def _readout(self, label: str, net: torch.nn.Module, data: ImageData) -> Surrogate:
        """The rule that a network is read out with; what is to be said of it is noted."""
        rule, why = networks.readout(net, self.options.readout, data)
        if why is not None:
            self.hints.append(f"readout: {label}: {why}.")
        hint = networks.scale_hint(label, net, rule)
        if hint is not None:
            self.hints.append(hint)
        return rule

    def finish(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Prints and writes what was found of each run or network; returns what `results.json` holds."""
        results: dict[str, Any] = {"schema": SCHEMA, "runs": runs}
        if self.left:
            results["left_out"] = self.left
        if self.hints:
            results["hints"] = self.hints
        with signals.deferred("writing the results"):
            if self.study is not None and self.study.measured:
                results["alignment"] = self.study.report(self.directory, self.options.figures)
            if self.paths is not None and self.paths.found:
                results["paths"] = self.paths.report(self.directory, self.options.figures)
            files.write_json(results, self.directory / "results.json")
            _print(results, self.directory, self.confused)
        return results

    def kept(self, runs: list[dict[str, Any]]) -> str:
        """What `finish` has written of an evaluation that was stopped, and how to go on."""
        left = self.asked[len(runs) :]
        key = "models" if self.options.networks else "runs"
        words = f"{key}={shlex.quote('[' + ','.join(left) + ']')}"
        others = f"{words} measures the others, " if 0 < len(left) <= NAMED else ""
        what = f"{len(runs)} of {len(self.asked)} are measured, see {self.directory / 'results.json'}"
        return f"{what}; {others}the same command all of them again"


@torch.inference_mode()
def measure_among(subject: networks.Subject, data: ImageData, tally: Tally | None = None) -> dict[str, float]:
    """Top-1 among all of a network's classes, and among the data's classes alone, on the validation images.

    Args:
        subject: The network.
        data: The images.
        tally: Counts which classes are taken for which.
    """
    classes, right, among, total = torch.tensor(subject.classes), 0, 0, 0
    device = next(subject.net.parameters()).device
    for x, labels in data.val_dataloader():
        logits = predict(subject.net, x.to(device))
        if tally is not None:
            tally.update(logits, labels.to(device))
        logits = logits.cpu()
        right += int((logits.argmax(1) == classes[labels]).sum())
        among += int((logits[:, classes].argmax(1) == labels).sum())
        total += len(x)
    return {"acc": right / total, "acc_among_data_classes": among / total}


def _home(path: Path) -> Path:
    """A run's directory for its checkpoints, whichever it is; other files are their own."""
    path = path.resolve()
    return path.parents[1] if path.parent.name == "checkpoints" else path


@torch.inference_mode()
def measure(
    module: SoftgateModule, data: ImageData, indexes: Sequence[int], tally: Tally | None = None
) -> dict[str, float]:
    """Top-1, top-5, cross entropy in nats and expected calibration error (15 bins) on the validation images.

    Args:
        module: The network.
        data: The images.
        indexes: For each class of the data, its index in the network.
        tally: Counts which classes are taken for which.
    """
    classes, numbers = len(module.classes), torch.tensor(indexes, device=module.device)
    scores: MetricCollection = accuracies(classes).to(module.device)
    calibration = MulticlassCalibrationError(classes, n_bins=15).to(module.device)
    loss = MeanMetric().to(module.device)
    for x, labels in data.val_dataloader():
        images, targets = x.to(module.device), numbers[labels.to(module.device)]
        parts = memory.in_chunks(lambda part: module(images[part]), len(images), len(images))  # noqa: B023  # called now
        logits = torch.cat(parts).float()
        scores.update(logits, targets)
        if tally is not None:
            tally.update(logits, labels.to(logits.device))
        calibration.update(logits.softmax(1), targets)
        loss.update(torch.nn.functional.cross_entropy(logits, targets), len(images))
    found = {key: float(value) for key, value in scores.compute().items()}
    return found | {"loss": float(loss.compute()), "ece": float(calibration.compute())}


def _device(accelerator: str) -> torch.device:
    usable = torch.cuda.is_available()
    require(accelerator != "gpu" or usable, "accelerator=gpu: this machine has no usable GPU; use accelerator=cpu.")
    return torch.device("cuda" if usable and accelerator != "cpu" else "cpu")


def _print(results: Mapping[str, Any], directory: Path, confused: Sequence[Confusion]) -> None:
    console = Terminal()
    for place, run in enumerate(results["runs"]):
        rows = {
            "model": title(run["model"]),
            "trained with": ", ".join(names(run["surrogate"])) if run["surrogate"] else run["model"]["origin"],
            "images": f"{run['images']}, {run['measured']}",
        }
        scores = {
            "top-1": "acc",
            "top-1 among the data's classes": "acc_among_data_classes",
            "top-5": "acc5",
            "loss": "loss",
            "ECE": "ece",
        }
        rows |= {name: run[key] for name, key in scores.items() if key in run}
        console.print(summary.table("evaluation", rows).rich())
        if place < len(confused):
            console.print(confused[place].lowest().rich())
        if "classes" in run:  # below the table, which would cut it off
            console.print(f"classes: {run['classes']}", soft_wrap=True, markup=False)
        if "checkpoint" in run:
            console.print(f"checkpoint: {run['checkpoint']}", soft_wrap=True, markup=False)
    for line in results.get("left_out", ()):
        console.print(f"left out: {line}", style="yellow", soft_wrap=True, markup=False)
    for line in results.get("hints", ()):
        console.print(f"hint: {line}", soft_wrap=True, markup=False)
    console.print(f"results and pictures: {directory}", soft_wrap=True, markup=False)
