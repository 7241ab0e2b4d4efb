"""How long a command takes to answer: seconds until a refusal or `--help` is there, and until a run's first lines.

uv run benchmarks/startup.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from softgate.tables import Table, console

ROOT = Path(__file__).parents[1]

ANSWERED = {
    "help": ("train.py", "--help"),
    "config": ("train.py", "--cfg", "job"),
    "unknown key": ("train.py", "lr=1"),
    "unknown choice": ("train.py", "model=resnt18"),
    "wrong type": ("train.py", "optim.lr=fast"),
    "out of range": ("train.py", "data.size=4"),
    "unknown name": ("evaluate.py", "runs=x", "grid.kinds=[rwa]"),
}
"""Commands that end with an answer."""

STARTED = {
    "digits": ("train.py", "trainer.max_epochs=1", "data.size=16"),
    "own rule": ("train.py", "trainer.max_epochs=1", "data.size=16", "surrogate=sugar"),
    "small network": ("train.py", "trainer.max_epochs=1", "model=resnet20"),
}
"""Runs whose first lines are waited for."""


def answered(words: tuple[str, ...], folder: Path) -> float:
    """Seconds until a command has ended."""
    started = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - started


def lines(words: tuple[str, ...], folder: Path) -> tuple[float, float, float]:
    """Seconds until a run's first line, until its introduction, and until its first epoch's line."""
    started = time.perf_counter()
    line = [sys.executable, "-u", str(ROOT / words[0]), *words[1:]]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    seen: dict[str, float] = {}
    for said in process.stdout:
        now = time.perf_counter() - started
        seen.setdefault("first", now)
        for mark in ("data ", "epoch 1"):
            if said.startswith(mark):
                seen.setdefault(mark, now)
        if "epoch 1" in seen:
            process.terminate()
    process.wait()
    return seen["first"], seen["data "], seen["epoch 1"]


def main() -> None:
    """Measures every command in turn, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            for case, words in ANSWERED.items():
                rows.setdefault(f"{case}: answered", []).append(answered(words, Path(name)))
            for case, words in STARTED.items():
                for what, seconds in zip(
                    ("first line", "introduction", "first epoch"), lines(words, Path(name)), strict=True
                ):
                    rows.setdefault(f"{case}: {what}", []).append(seconds)
    shown = [
        [case, *(f"{seconds:.2f}" for seconds in (statistics.median(each), min(each), max(each)))]
        for case, each in rows.items()
    ]
    title = f"seconds, {options.rounds} rounds, {os.cpu_count()} cores"
    console().print(Table(["command", "median", "least", "most"], shown, title).rich())


if __name__ == "__main__":
    main()
