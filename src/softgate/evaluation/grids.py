"""The pictures of an evaluation: grids of one network, and the paper's Figures 1 to 4 of several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from softgate import explainers
from softgate.data import ImageData
from softgate.errors import SoftgateError, is_whole, require, unknown
from softgate.evaluation import networks
from softgate.files import save, save_picture
from softgate.grids import reading
from softgate.grids.scaling import SCALES
from softgate.sites.calibration import calibrate
from softgate.sites.scales import scales_of
from softgate.surrogate.rule import Surrogate
from softgate.training.callbacks.grids import HARD, SOFT

FILES = {"raw": "grid", "ascent": "ascent"}


def check(options: Mapping[str, Any], rows: int | None = None, classes: int | None = None) -> None:
    """Raises `SoftgateError` for options of `grid` that are out of range.

    Args:
        options: The keys under `grid`.
        rows: How many classes the data has, where it is known.
        classes: How many the network has, where it is known.
    """
    kinds = options["kinds"]
    require(isinstance(kinds, list) and len(kinds) > 0, f"grid.kinds={kinds}: a list of raw and ascent is needed.")
    for kind in kinds:
        if kind not in reading.KINDS:
            raise unknown("grid.kinds", kind, reading.KINDS)
    if options["scale"] not in SCALES:
        raise unknown("grid.scale", options["scale"], SCALES)
    for name in options["explainers"]:
        try:
            explainers.by_name(name)
        except SoftgateError as error:
            raise SoftgateError(f"grid.{error}") from None
    least_of = {"steps": 1, "seed": 0, "chunk": 1, "rows": 1, "targets": 1, "calibrate": 1}
    for key, least in least_of.items():
        value = options[key]
        whole = is_whole(value, least)
        empty = value is None and key in ("chunk", "rows", "targets")
        require(whole or empty, f"grid.{key}={value}: a whole number >= {least} is needed.")
    for key in ("step_size", "radius"):
        value = options[key]
        require(isinstance(value, (int, float)) and value > 0, f"grid.{key}={value}: a number > 0 is needed.")
    if rows is not None and classes is not None:
        wanted = _rows(options, rows)
        require(wanted <= rows, f"grid.rows={wanted}: the data has {rows} classes.")
        count = _columns(options, wanted, classes)
        fits = wanted <= count <= classes
        require(fits, f"grid.targets={count}: a whole number from {wanted} to {classes} is needed.")


def draw(
    subject: networks.Subject,
    data: ImageData,
    soft: Surrogate,
    options: Mapping[str, Any],
    directory: Path,
    title: str,
) -> None:
    """Writes `grid.png` and `ascent.png`, as `grid.kinds` says, and their raw tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in options["kinds"]:
        rules: dict[str, Any] = {HARD: None, SOFT: soft}
        if kind == "raw":
            rules |= {name: explainers.by_name(name) for name in options["explainers"]}
        grid = read(subject, data, rules, kind, options)
        save_picture(grid.picture(title, options["scale"]), directory / f"{FILES[kind]}.png")
        save(grid.tensors(), directory / f"{FILES[kind]}.pt")


def read(
    subject: networks.Subject, data: ImageData, rules: Mapping[str, Any], kind: str, options: Mapping[str, Any]
) -> reading.Grid:
    """Reads a network out on the probe images of the data."""
    rows = _rows(options, len(data.classes))
    x, labels = data.probe(rows, seed=options["seed"])
    own = [subject.classes[label] for label in labels.tolist()]
    targets = networks.targets(subject, own, _columns(options, rows, len(subject.names)))
    settings = {key: options[key] for key in ("steps", "step_size", "radius", "chunk")}
    places: dict[str, Any] = {"names": subject.names, "mean": data.mean, "std": data.std}
    x = x.to(next(subject.net.parameters()))
    scale(subject, data, rules.values(), options)
    return reading.read(subject.net, x, own, targets, rules, kind=kind, **places, **settings)


def scale(subject: networks.Subject, data: ImageData, rules: Iterable[Any], options: Mapping[str, Any]) -> None:
    """Measures the channel scales of a network that brings none, where a rule wants them."""
    for rule in rules:
        if isinstance(rule, Surrogate) and rule.scale == "channel" and not scales_of(subject.net):
            batches = math.ceil(options["calibrate"] / data.batch_size)
            calibrate(subject.net, data.val_dataloader(), rule, batches)


def paper_figures(
    subjects: Sequence[networks.Subject],
    data: ImageData,
    soft: Surrogate,
    options: Mapping[str, Any],
    directory: Path,
    model: Mapping[str, Any],
) -> None:
    """Writes `figure1.png` to `figure4.png`, one network below the other, and the raw tensors of each network.

    Figure 1: differences after 5 steps of the first network. Figure 2: gradients and excitation pullbacks. Figures 3
    and 4: images and differences after 10 steps along the excitation pullbacks, and along the gradients.
    """
    parts: dict[str, list[Image.Image]] = {"figure1": [], "figure2": [], "figure3": [], "figure4": []}
    for place, subject in enumerate(subjects):
        title = networks.about(subject, model)

        def add(
            figure: str,
            rules: Mapping[str, Any],
            kind: str,
            said: str,
            more: Mapping[str, Any] | None = None,
            title: str = title,
            subject: networks.Subject = subject,
        ) -> None:
            grid = read(subject, data, rules, kind, {**options, **(more or {})})
            parts[figure].append(grid.picture(f"{title}: {said}", options["scale"]))
            save(grid.tensors(), directory / f"{figure}-{subject.name}.pt")

        if place == 0:
            add("figure1", {SOFT: soft}, "ascent", "ascent along excitation pullbacks", {"steps": 5})
        add("figure2", {HARD: None, SOFT: soft}, "raw", "pullbacks")
        add("figure3", {SOFT: soft}, "ascent", "ascent along excitation pullbacks")
        add("figure4", {HARD: None}, "ascent", "ascent along gradients")
    for figure, pictures in parts.items():
        save_picture(_stacked(pictures), directory / f"{figure}.png")


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _rows(options: Mapping[str, Any], classes: int) -> int:
    return int(options["rows"] or min(5, classes))


def _columns(options: Mapping[str, Any], rows: int, classes: int) -> int:
    return int(options["targets"] or min(max(6, rows + 1), classes))
