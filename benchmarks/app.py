"""What the app costs: seconds from the command to "ready", to the first page and picture, and for a raw ResNet-18 look.

uv run benchmarks/app.py --rounds 3
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `softgate app` does, before torch reads it

import torch

import softgate as sg
from softgate import files, models
from softgate.tables import Table, console

ROOT = Path(__file__).parents[1]
COMMAND = "import softgate_start; softgate_start.main()"
SIZES = (64, 224)
LAST_WORDS = 20
"""Seconds that the app is given to end."""


def started(folder: Path) -> tuple[float, float, float | None]:
    """Seconds to "ready", and from there to the whole first page and to the first picture in a browser."""
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
            address = said.removeprefix("ready: ").strip()
            ready = time.perf_counter()
            with urllib.request.urlopen(address) as page:
                page.read()
            whole = time.perf_counter() - ready
            return ready - begun, whole, pictured(address)
        finally:
            app.terminate()
            try:
                app.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                app.kill()


def pictured(address: str) -> float | None:
    """Seconds from the address to the first picture, in a browser that is open; None where there is no browser."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None or find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.set_default_timeout(120_000)
            begun = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("#picture img", state="attached")
            return time.perf_counter() - begun
        finally:
            browser.close()


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
    names = ("command to ready", "ready to first page", "address to first picture, in a browser")
    for name, every in zip(names, zip(*starts, strict=True), strict=True):
        times = [each for each in every if each is not None] or [math.nan]
        rows.append([name, f"{statistics.median(times):.2f}", f"{min(times):.2f}"])
    for size in SIZES:
        looked(size)
        times = [looked(size) for _ in range(rounds)]
        rows.append([f"raw look, resnet18, {size} px", f"{statistics.median(times):.2f}", f"{min(times):.2f}"])
    title = f"seconds of {rounds} rounds, {torch.get_num_threads()} threads"
    console().print(Table(["what", "median", "least"], rows, title, align="lrr").rich())


if __name__ == "__main__":
    main()
