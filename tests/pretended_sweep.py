"""Runs `train.py -m` within the test's process; its jobs are processes that only pretend to train."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from configs import ROOT
from softgate.cli import command as cli
from softgate.cli.sweep.jobs import Job
from softgate.cli.sweep.launch import Sweep

CHILD = """
import json, os, signal, sys, time, yaml
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--config-path") + 1])
run, config = folder.parent, yaml.safe_load((folder / "config.yaml").read_text())
tell = dict(argv=sys.argv[1:], begun=time.time(), env={k: os.environ.get(k) for k in NAMES})
(run / "told.json").write_text(json.dumps(tell))
do = json.loads(Path(PLAN).read_text()).get(str(config["sweep"]["job"]), "")
if do == "raise":
    raise RuntimeError("boom")
if do == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if do == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if do in ("wait", "stubborn", "slow"):
    (run / "waits").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(2 if do == "slow" else 0)
        (run / "checkpoint").touch()
        sys.exit(130)
time.sleep(0.3)
summary = {"best/val/acc": config["optim"]["lr"], "seconds": 1.5, "status": "finished"}
(run / "summary.json").write_text(json.dumps(summary))
(run / "told.json").write_text(json.dumps(tell | {"ended": time.time()}))
if do == "late":
    (run / "waits").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
"""
AT = "hydra.sweep.dir=sweep"
NAMES = ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_RUN_ID", "HYDRA_FULL_ERROR", "SLURM_JOB_NAME", "COLOUR"]


class Pretender:
    """`train.py -m WORDS` with pretended jobs.

    Attributes:
        plan: What each job does, by its number: raise, kill, wait (for Ctrl-C), slow (in leaving then), stubborn
            (ignores it), late (ends by Ctrl-C after its last act); else finish.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.plan, self._monkeypatch = directory, {}, monkeypatch
        monkeypatch.chdir(directory)
        code = f"NAMES = {NAMES}\nPLAN = {str(directory / 'plan.json')!r}\n{CHILD}"
        made = Job.command

        def command(job: Job) -> list[str]:
            return [sys.executable, "-c", code, *made(job)[2:]]

        monkeypatch.setattr(Job, "command", command)
        self.main = runpy.run_path(str(ROOT / "train.py"), run_name="train")["main"]

    def __call__(self, *words: str) -> int:
        """Runs a sweep and returns the exit status."""
        (self.directory / "plan.json").write_text(json.dumps(self.plan))
        self._monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
        self._monkeypatch.setattr(sys, "path", list(sys.path))
        self._monkeypatch.setattr(Sweep, "latest", None)
        GlobalHydra.instance().clear()
        try:
            cli.run(self.main, str(ROOT / "conf"), "train")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def told(self, sweep: str = "sweep") -> list[dict]:
        """What each job saw, in order of the jobs."""
        found = sorted(
            (self.directory / sweep).glob("*/told.json"), key=lambda path: int(path.parent.name.split("-")[0])
        )
        return [json.loads(path.read_text()) for path in found]


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "sweep" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pretend_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
