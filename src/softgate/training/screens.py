"""What a run tells its user on the first and the last screen: what is about to happen, and what became of it."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from softgate import targets
from softgate.data import ImageData
from softgate.figures import FORMATS
from softgate.quoting import quoted
from softgate.rounding import percent, rounded
from softgate.surrogate.description import sentence
from softgate.surrogate.selection import Kind
from softgate.training import networks
from softgate.training.config import TrainConfig
from softgate.training.module import SoftgateModule
from softgate.training.optim_config import OptimConfig

WIDTH = 10
"""Columns of the names in front of the lines."""


def line(name: str, said: str) -> str:
    """One line of a screen, in rich's markup."""
    return f"[bold]{name:<{WIDTH}}[/]{said}"


def first(
    config: TrainConfig,
    data: ImageData,
    module: SoftgateModule,
    device: torch.device,
    directory: Path,
    readout: str | None = None,
) -> str:
    """Six lines: data, network, rule, recipe, device, directory; a seventh where the rule of read-outs was completed.

    Args:
        config: The run's.
        data: Its images.
        module: Its network.
        device: Where it is trained.
        directory: Where it writes.
        readout: What was added to the rule of read-outs, and why.
    """
    images = f"{len(data.train_listing):,} training and {len(data.val_listing):,} validation images"
    channels = ", grey" if data.config.channels == 1 else ""
    about = f"{data.config.name}: {images}, {len(data.classes)} classes, {data.size} px{channels}"
    name, stem = networks.title(module.architecture), module.architecture.get("stem")
    parameters = sum(p.numel() for p in module.net.parameters()) / 1e6
    network = f"{name}: {rounded(parameters)} M parameters, {_sites(module)}" + (f", {stem} stem" if stem else "")
    if module.found:
        network += f"; classes of the weights: {module.found}"
    if module.sites.unaffected:
        network += f"; with a gradient of their own: {'; '.join(module.sites.unaffected)}"
    lines = {"data": about, "network": network, "rule": _rule(config, module), "recipe": _recipe(config, data)}
    lines |= {} if readout is None else {"read-out": readout}
    lines |= {"device": _device(config, device), "directory": str(shortened(directory))}
    return "\n".join(line(name, escape(said)) for name, said in lines.items())


def _sites(module: SoftgateModule) -> str:
    """The call sites by kind; what a network of ReLUs lacks is not told of."""
    titles: dict[str, str] = {Kind.RELU: "ReLU", Kind.MAX_POOL2D: "max-pool"}
    counts = Counter(str(site.kind) for site in module.sites if site.covered)
    named = [(kind, counts[kind]) for kind in titles if kind in counts or not counts]
    said = [f"{count} {titles[kind]}" for kind, count in named]
    said += [f"{count} {kind}" for kind, count in counts.items() if kind not in titles]
    return f"{' and '.join(filter(None, (', '.join(said[:-1]), said[-1])))} call sites"


def _rule(config: TrainConfig, module: SoftgateModule) -> str:
    asked = config.gates_from
    if asked.given:
        whose = {"epoch": "the network frozen there", "last": "that run's last network", "random": "an untrained one"}
        return f"weights of epoch {asked.epoch} of {asked.run}, trained on with the gates of {whose[asked.gates]}"
    return sentence(module.rule)


def _recipe(config: TrainConfig, data: ImageData) -> str:
    optim, trainer = config.optim, config.trainer
    how = f"{optim.name}, learning rate {optim.lr}" if isinstance(optim, OptimConfig) else optim.target
    count = "1 epoch" if trainer.max_epochs == 1 else f"{trainer.max_epochs} epochs"
    if config.gates_from.run is not None:
        count = f"from epoch {config.gates_from.epoch} to {trainer.max_epochs}"
    long = count if trainer.max_epochs not in (None, -1) else "no limit of epochs"
    steps = f", at most {trainer.max_steps} steps" if trainer.max_steps != -1 else ""
    robust = f"; {said}" if (said := config.train.sentence()) else ""
    return f"{how}; {long}{steps}, {data.batch_size} images a step and device{robust}; seed {config.seed}"


def _device(config: TrainConfig, device: torch.device) -> str:
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    several = f", {config.trainer.strategy}" if config.trainer.strategy != "auto" else ""
    return f"{name}{threads}, {config.trainer.precision}{several}" + (", compiled" if config.compile else "")


def last(status: str, found: Mapping[str, Any], directory: Path, config: TrainConfig) -> str:
    """How the run ended, what it reached, its pictures, and what one does next.

    Args:
        status: finished, interrupted or diverged.
        found: Its summary.
        directory: Its directory.
        config: Its config. Where its gates are another network's, there is nothing to evaluate.
    """
    given = config.gates_from.given
    lines = [f"[bold {'green' if status == 'finished' else 'red'}]{status}[/]"]
    if "best/val/acc" in found:
        now = f"; {percent(found['val/acc'])} after the last" if "val/acc" in found else ""
        reached = f"{percent(found['best/val/acc'])} at its best, after epoch {found['best/epoch'] + 1}{now}"
        lines.append(line("val acc", reached))
    losses = [f"{rounded(found[f'{split}/loss'])} {split}" for split in ("train", "val") if f"{split}/loss" in found]
    if losses:
        lines.append(line("loss", ", ".join(losses)))
    took = str(timedelta(seconds=round(found["seconds"])))
    speed = f", {found['train/images_per_second']:,.0f} images/s" if "train/images_per_second" in found else ""
    lines.append(line("time", took + speed))
    if "peak_memory_gb" in found:
        lines.append(line("memory", f"{rounded(found['peak_memory_gb'])} GB at its peak"))
    grids = directory / "grids"
    curves = (directory / f"curves.{kind}" for kind in FORMATS)
    pictures = (*curves, max(grids.glob("epoch=*.png"), default=None), grids / "film.png")
    shown = [str(shortened(path)) for path in pictures if path is not None and path.is_file()]
    if shown:
        lines.append(line("pictures", escape(f"\n{'':<{WIDTH}}".join(shown))))
    directory = shortened(directory)
    lines.append(line("directory", escape(str(directory))))
    place = directory if _plain(directory) else quoted(directory)
    train, evaluate = commands()
    again = f"{train} {shlex.quote(f'resume={place}')}"
    go_on = f"{again} trainer.max_epochs=N" if status == "finished" else again
    if not given:
        look = f"{evaluate} {shlex.quote(f'runs={place}')}"
        lines.append(line("next", escape(f"{look}  # its grids, and measures of it")))
    lines.append(line("next" if given else "", escape(f"{go_on}  # go on with it")))
    if status == "finished" and not given:
        lines.append(line("", escape(f"{train} {_other_arm(config)}, to compare with")))
    return "\n".join(lines)


def _other_arm(config: TrainConfig) -> str:
    """The words of the same run through other gates, and what these are."""
    words = [word for word in config.sweep.overrides if not word.startswith(("surrogate", "name="))]
    other, said = ("none", "the true gradient") if config.surrogate.soft else ("excitation", "through soft gates")
    return f"{shlex.join([*words, f'surrogate={other}'])}  # {said}"


def shortened(path: Path) -> Path:
    """A path as seen from here, where it lies here."""
    return path.absolute().relative_to(Path.cwd()) if path.absolute().is_relative_to(Path.cwd()) else path


def _plain(path: Path) -> bool:
    return all(letter.isalnum() or letter in "_./:@%-" for letter in str(path))


def commands() -> tuple[str, str]:
    """The commands that train and evaluate, as they are typed here."""
    if Path(sys.argv[0]).resolve().parent == Path(targets.HERE):  # the scripts of an installed package
        return "softgate train", "softgate evaluate"
    return "uv run train.py", "uv run evaluate.py"


def peak_memory() -> float:
    """Gigabytes (1e9 bytes): of the GPU where there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource  # there is none on Windows, where nothing else of this would run either

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
