"""What the app costs: seconds from the command to "ready", to the first page, and for a raw look at a ResNet-18.

uv run benchmarks/app.py --rounds 3
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch

import softgate as sg
from softgate import files, models
from softgate.tables import Table, console

ROOT = Path(__file__).parents[1]
COMMAND = "import softgate_start; softgate_start.main()"
SIZES = (64, 224)


def started(folder: Path) -> tuple[float, float]:
    """Seconds to "ready", and from there to the whole first page, of a network with the digits."""
    weights = folder / "weights.pth"
    files.save(models.build("plain8", 10).state_dict(), weights)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["model=plain8", f"model.weights={weights}", "model.classes=data", "data=digits", f"app.port={port}"]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    begun = time.perf_counter()
    line = [sys.executable, "-c", COMMAND, "app", *words]
    with subprocess.Popen(
        line, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as app:
        assert app.stdout is not None
        try:
            for said in app.stdout:
                if said.startswith("ready: "):
                    break
            else:
                raise SystemExit("the app did not start")
            ready = time.perf_counter()
            with urllib.request.urlopen(said.removeprefix("ready: ").strip()) as page:
                page.read()
            return ready - begun, time.perf_counter() - ready
        finally:
            app.terminate()


def looked(size: int) -> float:
    """Seconds for the gradient and the pullback of two logits of one image."""
    net = models.build("resnet18", 10).eval()
    x, rule = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)), sg.Surrogate()
    begun = time.perf_counter()
    for each in (None, rule):
        sg.pullback(net, x, [0, 1], each)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        starts = [started(Path(folder)) for _ in range(rounds)]
    for name, times in zip(("command to ready", "first page"), zip(*starts, strict=True), strict=True):
        rows.append([name, f"{statistics.median(times):.2f}", f"{min(times):.2f}"])
    for size in SIZES:
        looked(size)
        times = [looked(size) for _ in range(rounds)]
        rows.append([f"raw look, resnet18, {size} px", f"{statistics.median(times):.2f}", f"{min(times):.2f}"])
    title = f"seconds of {rounds} rounds, {torch.get_num_threads()} threads"
    console().print(Table(["what", "median", "least"], rows, title, align="lrr").rich())


if __name__ == "__main__":
    main()
