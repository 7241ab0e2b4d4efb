"""Deals the GPUs of this machine out to jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def wanted(accelerator: str, devices: Any, gpus: int, n_jobs: int) -> int | list[int]:
    """How many GPUs a job takes, or which, where `trainer.devices` is a list.

    Args:
        accelerator: The job's `trainer.accelerator`.
        devices: Its `trainer.devices`.
        gpus: How many there are.
        n_jobs: How many jobs run at a time; `trainer.devices=auto` is an equal share.
    """
    if not gpus or accelerator not in ("auto", "gpu", "cuda"):
        return 0
    if devices in ("auto", -1, "-1"):
        return max(1, gpus // n_jobs)
    return [int(number) for number in devices] if isinstance(devices, (list, tuple)) else int(devices)


class Dealer:
    """Keeps count of which GPU is free.

    Args:
        gpus: Their names.
        jobs_per_gpu: How many jobs may share one.
    """

    def __init__(self, gpus: Sequence[str], jobs_per_gpu: int = 1) -> None:
        self.gpus = list(gpus)
        self._free = dict.fromkeys(self.gpus, jobs_per_gpu)

    def take(self, share: int | list[int]) -> list[str] | None:
        """The names of the GPUs that a job gets, the least used first; None where it has to wait."""
        if isinstance(share, list):
            picked = [self.gpus[number] for number in share]
        else:
            picked = sorted(self.gpus, key=lambda gpu: -self._free[gpu])[:share]
        if any(self._free[gpu] < 1 for gpu in picked):
            return None
        for gpu in picked:
            self._free[gpu] -= 1
        return picked

    def give_back(self, picked: Sequence[str]) -> None:
        """Takes GPUs back from a job that has ended."""
        for gpu in picked:
            self._free[gpu] += 1
