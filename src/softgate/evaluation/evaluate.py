"""`evaluate(cfg)`: restores trained networks, measures them on the validation images, reads them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError

from softgate import files
from softgate.data import ImageData
from softgate.errors import require, unknown
from softgate.evaluation import alignment, compare, grids, networks
from softgate.evaluation.paths import PathStudy
from softgate.evaluation.reports import publish
from softgate.evaluation.runs import find_checkpoints, labelled
from softgate.explainers.pullback import predict
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule, summary
from softgate.training import config as checks
from softgate.training.checkpoints import restore
from softgate.training.module import accuracies

SCHEMA = 1
"""Version of what `results.json` holds."""

ACCELERATORS = ("auto", "cpu", "gpu")


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluates runs or networks as a config says; prints a table, writes `results.json` and pictures.

    Args:
        cfg: The config of `conf/evaluate.yaml`, composed.

    Returns:
        What `results.json` holds.

    Raises:
        SoftgateError: For a mistake in the config, a missing or damaged checkpoint, or data that does not fit it.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    checks.load_plugins(config["plugins"])
    soft = checks.check_readout(config["readout"])
    grids.check(config["grid"])
    device = _device(config["accelerator"])
    study, paths = _study(config, soft), _paths(config, soft)
    if config["runs"] is None and config.get("model"):
        require(paths is None, "paths=full: it looks at recorded runs; give runs=, not model=.")
        results: dict[str, Any] = {"schema": SCHEMA, "runs": _networks(config, soft, device, directory, study)}
    else:
        require(not config.get("model"), "runs and model: only one of them can be given.")
        several = compare.wanted(config)
        if several:
            return publish.publish(compare.compare(config, several, soft, device, directory, restore), directory)
        results = {"schema": SCHEMA, "runs": []}
        try:
            _runs(config, soft, device, directory, study, paths, results["runs"])
        except BaseException:
            if results["runs"]:  # what took minutes is not thrown away with what failed
                _finish(results, directory, study, paths)
            raise
    return _finish(results, directory, study, paths)


def _finish(
    results: dict[str, Any], directory: Path, study: alignment.Study | None, paths: PathStudy | None
) -> dict[str, Any]:
    """Prints and writes what was found."""
    if study is not None and study.measured:
        results["alignment"] = study.report(directory)
    if paths is not None and paths.found:
        results["paths"] = paths.report(directory)
    files.write_json(results, directory / "results.json")
    _print(results, directory)
    return results


def _study(config: Mapping[str, Any], soft: Surrogate) -> alignment.Study | None:
    options = config.get("alignment")
    if options is None:
        return None
    require(isinstance(options, Mapping), f"alignment={options}: there is no such choice; allowed: full, null.")
    alignment.check(options, soft)
    judge = None
    if options["evaluator"] is not None:
        module, data = restore(Path(str(options["evaluator"])).expanduser(), "alignment.evaluator")
        module.sites.detach()
        judge = module.net, data, module.classes
    return alignment.Study(options, soft, judge)


def _paths(config: Mapping[str, Any], soft: Surrogate) -> PathStudy | None:
    options = config.get("paths")
    if options is None:
        return None
    require(isinstance(options, Mapping), f"paths={options}: there is no such choice; allowed: full, null.")
    return PathStudy(options, soft)


def _runs(
    config: Mapping[str, Any],
    soft: Surrogate,
    device: torch.device,
    directory: Path,
    study: alignment.Study | None,
    paths: PathStudy | None,
    found: list[dict[str, Any]],
) -> None:
    files = find_checkpoints(config["runs"], config["checkpoint"])
    labels = labelled(files)
    changed = {key: value for key, value in config["data"].items() if value is not None}
    restored = [restore(path) for path in files]
    for label, path, (module, options) in zip(labels, files, restored, strict=True):
        options |= changed
        if study is not None:
            judge = study.options["evaluator"]
            itself = judge is not None and _home(Path(str(judge)).expanduser()) == _home(path)
            require(not itself, f"alignment.evaluator={judge}: it is of one of the runs; another network must judge.")
            study.expect(label, options, module.classes)
        if paths is not None:
            paths.expect(label, path, module.net)
    known: dict[str, ImageData] = {}
    for label, path, (module, options) in zip(labels, files, restored, strict=True):
        if repr(options) not in known:
            known[repr(options)] = ImageData(options, splits=("val",))
        data = known[repr(options)]
        place = directory if len(files) == 1 else directory / label
        found.append(_run(config, soft, device, place, label, path, module, data, study, paths))


def _run(
    config: Mapping[str, Any],
    soft: Surrogate,
    device: torch.device,
    directory: Path,
    label: str,
    path: Path,
    module: SoftgateModule,
    data: ImageData,
    study: alignment.Study | None,
    paths: PathStudy | None,
) -> dict[str, Any]:
    options = data.options
    expected, found = module.classes, data.classes
    require(
        expected == found,
        f"data.root={options.get('root')}: its {len(found)} classes are not the {len(expected)} of {path}.",
    )
    if study is not None:
        study.expect(label, options, found, len(data.val_listing))
    subject = networks.Subject(str(module.hparams["model"]["name"]), module.net, found, list(range(len(found))))
    grids.check(config["grid"], len(found), len(found))
    data.setup("validate")
    module.to(device).eval()
    scores = measure(module, data) if config["measure"] else {}
    grids.draw(subject, data, soft, config["grid"], directory, title=str(path))
    if study is not None:
        grids.scale(subject, data, [soft], config["grid"])
        study.look(label, module.rule, subject, data)
    if paths is not None:
        paths.look(label, module.rule, module.net)
    module.cpu()
    model, rule = dict(module.hparams["model"]), module.rule.to_dict()
    named = {"checkpoint": str(path), "data": options["name"], "images": len(data.val_listing)}
    return {**named, "model": model, "surrogate": rule, **scores}


def _networks(
    config: Mapping[str, Any],
    soft: Surrogate,
    device: torch.device,
    directory: Path,
    study: alignment.Study | None,
) -> list[dict[str, Any]]:
    names = [str(name) for name in config["models"] or [config["model"]["name"]]]
    networks.check(config, names)
    options = dict(config["data"]) | {"size": networks.image_size(config, names[0])}
    options |= {"batch_size": options.get("batch_size") or 64}
    data = ImageData(options, splits=("val",))
    if study is not None:
        for name in names:
            study.expect(name, options, data.classes, len(data.val_listing))
    subjects, found = [networks.build(name, config["model"], data) for name in names], []
    for subject in subjects:
        grids.check(config["grid"], len(data.classes), len(subject.names))
    data.setup("validate")
    for name, subject in zip(names, subjects, strict=True):
        subject.net.to(device)
        scores = measure_among(subject, data) if config["measure"] else {}
        model = {"name": name, "weights": config["model"]["weights"]}
        named = {"data": options["name"], "images": len(data.val_listing)}
        found.append({**named, "model": model, "surrogate": None, **scores})
        if not config["grid"]["figures"]:
            place = directory if len(names) == 1 else directory / name
            title = networks.about(subject, config["model"])
            grids.draw(subject, data, soft, config["grid"], place, title)
        if study is not None:
            grids.scale(subject, data, [soft], config["grid"])
            study.look(name, None, subject, data)
    if config["grid"]["figures"]:
        grids.paper_figures(subjects, data, soft, config["grid"], directory, config["model"])
    return found


@torch.inference_mode()
def measure_among(subject: networks.Subject, data: ImageData) -> dict[str, float]:
    """Top-1 among all of a network's classes, and among the data's classes alone, on the validation images."""
    classes, right, among, total = torch.tensor(subject.classes), 0, 0, 0
    device = next(subject.net.parameters()).device
    for x, labels in data.val_dataloader():
        logits = predict(subject.net, x.to(device)).cpu()
        right += int((logits.argmax(1) == classes[labels]).sum())
        among += int((logits[:, classes].argmax(1) == labels).sum())
        total += len(x)
    return {"acc": right / total, "acc_among_data_classes": among / total}


def _home(path: Path) -> Path:
    """A run's directory for its checkpoints, whichever it is; other files are their own."""
    path = path.resolve()
    return path.parents[1] if path.parent.name == "checkpoints" else path


@torch.inference_mode()
def measure(module: SoftgateModule, data: ImageData) -> dict[str, float]:
    """Top-1, top-5, cross entropy in nats and expected calibration error (15 bins) on the validation images."""
    classes = len(data.classes)
    scores: MetricCollection = accuracies(classes).to(module.device)
    calibration = MulticlassCalibrationError(classes, n_bins=15).to(module.device)
    loss = MeanMetric().to(module.device)
    for x, labels in data.val_dataloader():
        images, targets = x.to(module.device), labels.to(module.device)
        logits = module(images).float()
        scores.update(logits, targets)
        calibration.update(logits.softmax(1), targets)
        loss.update(torch.nn.functional.cross_entropy(logits, targets), len(images))
    found = {key: float(value) for key, value in scores.compute().items()}
    return found | {"loss": float(loss.compute()), "ece": float(calibration.compute())}


def _device(accelerator: str) -> torch.device:
    if accelerator not in ACCELERATORS:
        raise unknown("accelerator", accelerator, ACCELERATORS)
    usable = torch.cuda.is_available()
    require(accelerator != "gpu" or usable, "accelerator=gpu: this machine has no usable GPU; use accelerator=cpu.")
    return torch.device("cuda" if usable and accelerator != "cpu" else "cpu")


def _print(results: Mapping[str, Any], directory: Path) -> None:
    console = Console()
    for run in results["runs"]:
        rows = {
            "model": run["model"]["name"],
            "trained with": run["surrogate"]["gate"]["name"] if run["surrogate"] else "published weights or a file",
            "images": run["images"],
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
        if "checkpoint" in run:
            console.print(f"checkpoint: {run['checkpoint']}", soft_wrap=True)
    console.print(f"results and pictures: {directory}", soft_wrap=True)
