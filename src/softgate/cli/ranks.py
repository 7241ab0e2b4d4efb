"""Ranks that torchrun or srun have started: whether there are any, and one run directory for all of them.

Lightning starts the ranks of `trainer=ddp` itself and hands them the first one's directory. Where another program has
started them, each would read its own clock; here they agree on one stamp before Hydra composes anything.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

PLACES = {"RUN": "hydra.run.dir", "MULTIRUN": "hydra.sweep.dir"}
_kept: list[Any] = []  # the store that rank 0 serves must live as long as the process


def torchrun(env: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in env


def srun(env: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this process for good, and not as a shell to type in."""
    by_hand = "SLURM_PTY_PORT" in env or env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_STEP_ID" in env and not by_hand


def several(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several ranks that another program has started."""
    if torchrun(env):
        return int(env.get("WORLD_SIZE", "1")) > 1
    return srun(env) and int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))) > 1


def rank(env: Mapping[str, str] = os.environ) -> int:
    """The number of this process among all ranks."""
    return int(env.get("RANK" if torchrun(env) else "SLURM_PROCID", "0"))


def first(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one among all ranks that writes; Lightning tells those it starts by LOCAL_RANK."""
    others = any(env.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK"))
    return not others and (rank(env) == 0 or not (torchrun(env) or srun(env)))


def agree(words: Sequence[str], env: Mapping[str, str] = os.environ) -> list[str]:
    """What is added to the command line so that all ranks write into one directory.

    Under srun the directory is named after the job and its step, so that a job that is queued again finds its own.
    Under torchrun rank 0 reads the clock; ranks that torchrun starts again after a failure find that first reading.

    Args:
        words: The command line.
        env: The environment.

    Returns:
        Hydra's overrides; none where the directory was given, or no other program started this process.
    """
    if not (torchrun(env) or srun(env)):
        return []
    swept = any(word in ("-m", "--multirun") for word in words)
    added = [] if rank(env) == 0 else ["hydra.output_subdir=null"]  # one writer is enough
    place = PLACES["MULTIRUN" if swept else "RUN"]
    if any(word.startswith(f"{place}=") for word in words):
        return added
    stamp = _clock_of_rank_0(env) if torchrun(env) else _slurm_job(words, env)
    return [f"{place}=outputs/sweeps/{stamp}" if swept else f"{place}=outputs/{stamp}-${{name}}", *added]


def _slurm_job(words: Sequence[str], env: Mapping[str, str]) -> str:
    # Two commands in one step must not meet; the same command with resume=true is the same run.
    typed = " ".join(sorted(word for word in words if not word.startswith("resume=")))
    return f"slurm/{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}-{zlib.crc32(typed.encode()) & 0xFFFF:04x}"


def _clock_of_rank_0(env: Mapping[str, str]) -> str:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, but not exported

    # Where torchrun serves a store on this port itself, rank 0 must not; elsewhere Lightning's process group will share
    # the one that rank 0 serves (multi_tenant).
    serves = rank(env) == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(
        env["MASTER_ADDR"],
        int(env["MASTER_PORT"]),
        is_master=serves,
        wait_for_workers=False,
        multi_tenant=True,
        timeout=timedelta(minutes=5),
    )
    _kept.append(store)
    key = "softgate/start"
    if rank(env) == 0:
        store.compare_set(key, "", datetime.now().strftime("%Y-%m-%d/%H-%M-%S"))
    stamp: str = store.get(key).decode()
    return stamp
