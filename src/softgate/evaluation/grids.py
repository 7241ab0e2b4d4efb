"""The pictures of an evaluation: grids of one network, and the paper's Figures 1 to 4 of several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from softgate import explainers
from softgate.data import ImageData
from softgate.evaluation import networks
from softgate.evaluation.config import GridConfig
from softgate.explainers.accentuation import AccentuationSettings
from softgate.explainers.layers import require_layer
from softgate.files import folder, save, save_picture
from softgate.grids import reading
from softgate.sites.calibration import calibrate
from softgate.sites.scales import scales_of
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks.grids import HARD, SOFT

FILES = {"raw": "grid", "ascent": "ascent", "accentuation": "accentuation"}


def draw(
    subject: networks.Subject,
    data: ImageData,
    soft: Surrogate,
    options: GridConfig,
    directory: Path,
    title: str,
) -> None:
    """Writes `grid.png`, `ascent.png` and `accentuation.png`, as `grid.kinds` says, and their raw tensors."""
    folder(directory)
    for kind in options.kinds:
        rules: dict[str, Any] = {HARD: None, SOFT: soft}
        if kind == "raw":
            rules |= {name: explainers.by_name(name) for name in options.explainers}
        grid = read(subject, data, rules, kind, options)
        save_picture(grid.picture(title, options.scale), directory / f"{FILES[kind]}.png")
        save(grid.tensors(), directory / f"{FILES[kind]}.pt")


def read(
    subject: networks.Subject, data: ImageData, rules: Mapping[str, Any], kind: str, options: GridConfig
) -> reading.Grid:
    """Reads a network out on the probe images of the data."""
    if kind == "accentuation" and options.accentuation.layer is not None:
        require_layer("grid.accentuation.layer", options.accentuation.layer, subject.net)
    rows = options.rows_of(len(data.classes))
    x, labels = data.probe(rows, seed=options.seed)
    own = [subject.classes[label] for label in labels.tolist()]
    targets = networks.targets(subject, own, options.columns_of(rows, len(subject.names)))
    ascent: dict[str, Any] = {"steps": options.steps, "step_size": options.step_size, "radius": options.radius}
    ascent["accentuation"] = AccentuationSettings(**dict(options.accentuation))
    places: dict[str, Any] = {"names": subject.names, "mean": data.mean, "std": data.std}
    x = x.to(next(subject.net.parameters()))
    scale(subject, data, rules.values(), options)
    return reading.read(subject.net, x, own, targets, rules, kind=kind, chunk=options.chunk, **places, **ascent)


def scale(subject: networks.Subject, data: ImageData, rules: Iterable[Any], options: GridConfig) -> None:
    """Measures the channel scales of a network that brings none, where a rule wants them."""
    for rule in rules:
        if isinstance(rule, Surrogate) and rule.scale == "channel" and not scales_of(subject.net):
            batches = math.ceil(options.calibrate / data.batch_size)
            calibrate(subject.net, data.val_dataloader(), rule, batches)


def paper_figures(
    subjects: Sequence[networks.Subject],
    titles: Sequence[str],
    data: ImageData,
    soft: Surrogate,
    options: GridConfig,
    directory: Path,
) -> None:
    """Writes `figure1.png` to `figure4.png`, one network below the other, and the raw tensors of each network.

    Figure 1: differences after 5 steps of the first network. Figure 2: gradients and excitation pullbacks. Figures 3
    and 4: images and differences after 10 steps along the excitation pullbacks, and along the gradients.
    """
    parts: dict[str, list[Image.Image]] = {"figure1": [], "figure2": [], "figure3": [], "figure4": []}
    short = options.model_copy(update={"steps": 5})
    along = "ascent along excitation pullbacks"
    for place, (subject, title) in enumerate(zip(subjects, titles, strict=True)):
        own, _ = networks.readout(subject.net, soft, data)
        wanted: dict[str, tuple[dict[str, Any], str, str, GridConfig]] = {
            "figure1": ({SOFT: own}, "ascent", along, short),
            "figure2": ({HARD: None, SOFT: own}, "raw", "pullbacks", options),
            "figure3": ({SOFT: own}, "ascent", along, options),
            "figure4": ({HARD: None}, "ascent", "ascent along gradients", options),
        }
        for figure, (rules, kind, said, asked) in wanted.items():
            if figure == "figure1" and place > 0:
                continue
            grid = read(subject, data, rules, kind, asked)
            parts[figure].append(grid.picture(f"{title}: {said}", options.scale))
            save(grid.tensors(), directory / f"{figure}-{subject.name}.pt")
    for figure, pictures in parts.items():
        save_picture(_stacked(pictures), directory / f"{figure}.png")


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet
