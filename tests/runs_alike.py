"""Whether two runs ended alike."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TIMES = ("started", "grids/seconds", "grids/share_of_epoch", "train/images_per_second")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def assert_alike(whole: Path, other: Path) -> None:
    """Two runs that cannot be told apart but by the clock."""
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, other))
    for key in one.keys() - {"softgate_run", "callbacks", "loops"}:
        assert same(one[key], two[key]), key
    assert rows(whole / "metrics.csv") == rows(other / "metrics.csv")
    if (whole / "diagnostics.csv").is_file():
        assert (whole / "diagnostics.csv").read_text() == (other / "diagnostics.csv").read_text()
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run in (whole, other)]
    assert names[0] == [name for name in names[1] if not name.endswith(".partial")]
    for name in names[0]:
        if name.endswith((".png", ".gif")) and name != "curves.png":
            assert (whole / name).read_bytes() == (other / name).read_bytes(), name
    best = [torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for run in (whole, other)]
    assert same(*best)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, other)]
    for summary in summaries:
        assert summary.pop("seconds") > 0
        assert summary.pop("peak_memory_gb") > 0
        for key in TIMES:
            summary.pop(key, None)
    assert summaries[0] == summaries[1]
