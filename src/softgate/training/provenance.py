"""What a run was made with: versions, hardware, the commit. Kept in `summary.json`, so that a figure can be traced."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("softgate", "torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy")


def environment(devices: int = 1, kind: str = "cpu") -> dict[str, Any]:
    """Plain data on where this process runs.

    Args:
        devices: How many processes or GPUs took part.
        kind: "cpu", "cuda" or another torch device type.

    Returns:
        `python`, `platform`, `packages`, `commit`, `hardware`, `devices`, `cores`, `threads`.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "hardware": torch.cuda.get_device_name() if kind == "cuda" and torch.cuda.is_available() else _processor(),
        "devices": devices,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name; Linux tells it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit that softgate is at, with a plus sign where files were changed since; None outside of a repository."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        done = subprocess.run([*here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*here, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() + "+" * bool(changed.stdout.strip()) if done.returncode == 0 else None
