"""Kills a run by SIGKILL at random moments, resumes it each time, and lets it end.

Run by tests/training/test_resume.py, as `python kill_and_resume.py FOLDER KILLS SEED WORDS...`: `FOLDER/whole` is
the run that nobody disturbs, `FOLDER/killed1` another (and `killed2`, ... where that ends too early),
`FOLDER/kills.json` says when they were killed. Every part is a forked process, so that 20 of them cost 20 times the
training and not 20 times the imports.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from configs import composed
from softgate.training.train import train

QUIET = ("print_config=false", "trainer.enable_progress_bar=false")


def part(directory: Path, words: list[str], resume: bool) -> int:
    """Starts a part of a run; its process id."""
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    status = 1
    try:
        out = os.open(directory.parent / f"{directory.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        train(composed(*QUIET, *words, *(["resume=true"] if resume else []), directory=directory))
        status = 0
    finally:
        os._exit(status)


def ended(pid: int) -> bool:
    """Waits for a process; whether it ended well and not by a signal."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a part ended with status {os.WEXITSTATUS(status)}")
    return os.WIFEXITED(status)


def work(folder: Path, kills: int, seed: int, words: list[str]) -> None:
    begun = time.monotonic()
    ended(part(folder / "whole", words, resume=False))
    seconds = time.monotonic() - begun
    draw, moments, runs = random.Random(seed), [], 1
    longest = min(0.6, 3 / kills)  # long enough to come to training, short enough not to come to the end too early
    while len(moments) < kills:
        directory = folder / f"killed{runs}"
        pid = part(directory, words, resume=True)
        moment = draw.uniform(0.02, longest) * seconds
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        if ended(pid):  # it was finished before the blow fell: another run takes the rest
            runs += 1
            continue
        last = directory / "checkpoints" / "last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"] if last.is_file() else None
        moments.append({"run": runs, "seconds": round(moment, 3), "step of last.ckpt": step})
    ended(part(folder / f"killed{runs}", words, resume=True))
    (folder / "kills.json").write_text(json.dumps({"seconds of the whole run": seconds, "kills": moments}, indent=1))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
