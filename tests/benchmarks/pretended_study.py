"""A study whose runs are pretended: they take milliseconds, and their results are a function of the job alone."""

import hashlib
import time
from functools import partial
from pathlib import Path

import numpy as np
from generalization_study.ledger import MEASURES, OVER_TRAINING, Ledger
from generalization_study.measures import packed
from generalization_study.plan import FINAL, Job, Plan

ARMS = ("true_gradient", "excitation_unit_rms", "excitation_matched")
COUNT = 200
"""Test images."""

EPOCHS = (0.0, 0.102, 0.2381, 0.585, 1.0, 3.0, 8.0, 20.0)
"""Moments of a final run, as the plan has them."""


def plan() -> Plan:
    """The study's own plan with three final seeds."""
    made = Plan()
    made.given["seeds"]["final"] = [0, 1, 2]
    return made


def chance(*words) -> float:
    """A number in [0, 1) that is a function of the words."""
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:8], 16) / 16**8


def row(job: Job, made: Plan, **other) -> dict:
    """The row of a run: the best rate is .05, and excitation_matched is two points better than the true gradient."""
    found = {**made.about(job), "epochs": 15, "status": "finished", "seconds": 100.0, "train_seconds": 90.0}
    found |= {key: chance(key, job.key) for key in MEASURES}
    found |= {"images_per_second": 900.0, "softgate": "0.1.0", "commit": "abc", "torch": "2.15.0", "threads": 1}
    found |= {"python": "3.11.7", "hardware": "pretended", "finished": "2026-11-26T00:00:00+00:00"}
    if job.stage == FINAL:
        share = 0.6 + 0.02 * (job.arm == "excitation_matched") + 0.005 * chance(job.seed)
        each = [0.8 * chance(job.seed, i) + 0.2 * chance(job.seed, job.arm, i) for i in range(COUNT)]
        right = np.array(each) < share
        found |= {"acc": float(right.mean()), "bits": packed(right)}
        if made.mechanism(job.cell):
            found["mechanism"] = [moment(job, made, epoch) for epoch in EPOCHS]
    else:
        found["acc"] = 0.7 - abs(job.rate - 0.05) + 0.001 * chance(job.key)
        found |= dict.fromkeys(set(MEASURES) - {"acc"})
    return found | other


def moment(job: Job, made: Plan, epoch: float) -> dict:
    """A row of what was measured while a run was trained."""
    found = {key: chance(key, job.key, epoch) for key in OVER_TRAINING}
    found |= dict.fromkeys(("died", "revived"), float("nan")) if epoch == 0 else {}
    return {"settings": made.mechanism_identity, "step": round(147 * epoch), "epoch": epoch, "seconds": 1.0, **found}


def make(seconds: float, log: Path | None = None):
    """What a worker calls once: returns what makes a run, which notes each run that it finishes."""

    def run(job: Job) -> dict:
        time.sleep(seconds * (0.5 + chance(job.key)))
        found = row(job, plan())
        if log is not None:
            with log.open("a") as file:
                file.write(f"{job.key}\n")
        return found

    return run


def maker(seconds: float = 0.0, log: Path | None = None):
    """`make` with its arguments, as the driver wants it."""
    return partial(make, seconds, log)


def whole(folder: Path, cells=("B",), arms=ARMS, **other) -> Ledger:
    """A ledger with all runs of some cells, without a driver."""
    made = plan()
    ledger, chosen = Ledger(folder, made), made.chosen(cells, arms)
    while (job := next(made.left(chosen, list(ledger.rows.values())), None)) is not None:
        ledger.put(row(job, made, **other))
    ledger.export()
    return ledger
