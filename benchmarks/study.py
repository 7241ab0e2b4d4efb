"""The study of docs/study.md, from the first run to its tables: `uv run benchmarks/study.py --data data`.

    uv run benchmarks/study.py --data data --cells B,A --workers 2 --budget 3h     # make runs; goes on where it stopped
    uv run benchmarks/study.py --cells B,A --status                                # what is done and left, and how long
    uv run benchmarks/study.py --merge OTHER_FOLDER                                # take the runs of another machine
    uv run benchmarks/study.py --report                                            # docs/study.md, CSV files, pictures

--data holds imagenette2-160/ and, for the cells G, I and J, cifar10-jpeg/{train,val}/CLASS/. Every run has one thread.
It may be stopped at any moment, by Ctrl-C or a power cut, and started anew with the same words.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # before torch reads them; workers inherit them
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

from budget import seconds
from generalization_study.drive import Driver, Run, outlook
from generalization_study.ledger import Ledger, versions
from generalization_study.plan import Plan

from softgate import files, locks
from softgate.errors import SoftgateError, Stopped, require

ROOT = Path(__file__).parents[1]
BEARABLE = 1.5
"""A bfloat16 step in float32 steps, beyond which the machine is said to be the wrong one."""

SLOW = "the plan's runs are in bfloat16, for which this processor has no instructions: a step takes"


def runner(root: Path, work: Path) -> Run:
    """What makes runs, in a worker."""
    import torch
    from generalization_study.runs import Runner

    torch.set_num_threads(1)
    return Runner(Plan(), root, work)


def status(plan: Plan, ledger: Ledger, chosen: dict[str, list[str]], workers: int) -> list[str]:
    """What is done, chosen and left, a line for each arm and cell."""
    rows = list(ledger.rows.values())
    left = plan.count(chosen, rows)
    lines = []
    for cell, arms in chosen.items():
        for arm in arms:
            choice = plan.choice(cell, arm, rows)
            means = ", ".join(f"{rate:g}: {100 * mean:.1f} %" for rate, mean in choice.means.items())
            rate = "not settled" if choice.rate is None else f"{choice.rate:g}" + " (a bound)" * choice.bound
            finals = f"{len(plan.finals(cell)) - left[cell, 'final', arm]} of {len(plan.finals(cell))} final runs"
            lines.append(f"{cell} {arm}: rate {rate} [{means}]; {finals}")
    coming = next(plan.left(chosen, rows), None)
    made = sum(float(row["seconds"]) for row in rows) / 3600
    lines.append(f"{len(rows)} runs made, {made:.1f} core-hours; {outlook(plan, ledger, chosen, workers)}")
    return [*lines, f"next: {coming.key}"] if coming else lines


def name_versions(ledger: Ledger) -> None:
    """Says so where the results are of several versions."""
    found = versions(ledger.rows.values())
    if len(found) > 1:
        each = "; ".join(f"softgate {a}, torch {b}: {count} runs" for (a, b), count in found.items())
        print(f"{ledger.folder}: results of several versions, which the report compares apart: {each}", flush=True)


BELONG = {
    "run": {"cells", "arms", "workers", "budget", "data", "folder"},
    "status": {"cells", "arms", "workers", "folder"},
    "merge": {"folder"},
    "report": {"unfinished", "folder"},
}
"""Which options go with what is done."""


def options(words: list[str]) -> tuple[str, argparse.Namespace]:
    """What is to be done, and with which options.

    Raises:
        SoftgateError: For an option that does not go with it.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="such as B,A, in the order in which they are run; default: all without a GPU")
    parser.add_argument("--arms", help="such as excitation_unit_rms,sugar; default: all of each cell")
    parser.add_argument("--workers", type=int, help="runs at the same time, of one thread each; default: 1")
    parser.add_argument("--budget", help="such as 3h: no run is begun that would not end by then")
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--folder", type=Path, help="of the results; default: outputs/study")
    parser.add_argument("--unfinished", action="store_true", help="with --report: no more runs will be made")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--merge", type=Path, action="append", help="take the runs of another folder")
    does.add_argument("--status", action="store_true", help="what is done and left")
    does.add_argument("--report", action="store_true", help="make tables and pictures of the results")
    given = parser.parse_args(words)
    what = next((name for name in ("merge", "status", "report") if getattr(given, name)), "run")
    for name, value in vars(given).items():
        odd = value and name not in BELONG and name not in BELONG[what]
        fits = f"--{what}" if what != "run" else "making runs"
        require(not odd, f"--{name}: it does not go with {fits}.")
    given.workers = 1 if given.workers is None else given.workers
    given.folder = given.folder or ROOT / "outputs" / "study"
    require(given.workers >= 1, f"--workers={given.workers}: a whole number >= 1 is needed.")
    return what, given


def command(what: str, given: argparse.Namespace) -> None:
    """Does what was asked for.

    Raises:
        SoftgateError: For whatever is wrong with it.
    """
    plan = Plan()
    chosen = plan.chosen(*(None if words is None else words.split(",") for words in (given.cells, given.arms)))
    budget = None if given.budget is None else seconds(given.budget)
    if what in ("status", "report"):
        ledger = Ledger(given.folder, plan)
        name_versions(ledger)
        if what == "status":
            print("\n".join(status(plan, ledger, chosen, given.workers)))
        else:
            from generalization_study.report import report

            report(plan, ledger, ROOT / "docs", given.unfinished)
        return
    if what == "run":
        check_places(plan, chosen, given.data)
        if not all(plan.cells[cell].get("gpu") for cell in chosen) and (ratio := bfloat16_ratio()) > BEARABLE:
            print(f"{SLOW} {ratio:.1f} times as long as in float32; a newer one makes them sooner", flush=True)
    with locks.held(files.folder(given.folder)):
        ledger = Ledger(given.folder, plan)
        name_versions(ledger)
        if what == "merge":
            merge(ledger, given.merge)
            return
        make = partial(runner, given.data.expanduser().resolve(), given.folder / "work")
        driver = Driver(plan, ledger, chosen, make, given.workers, budget, partial(print, flush=True))
        print(driver.outlook(), flush=True)
        driver.run()
        print("\n".join(status(plan, ledger, chosen, given.workers)), flush=True)


def check_places(plan: Plan, chosen: Iterable[str], data: Path | None) -> None:
    """Refuses cells whose images or whose GPU is not there, before anything is begun."""
    require(data is not None, "--data: the folder of the data sets is needed.")
    for cell in chosen:
        place = plan.place(cell, data.expanduser())
        require(place.is_dir(), f"--data={data}: there is no folder {place}, which cell {cell} takes its images from.")
    gpu = [cell for cell in chosen if plan.cells[cell].get("gpu")]
    if gpu:
        import torch

        require(torch.cuda.is_available(), f"--cells={','.join(gpu)}: a GPU is needed, and there is none.")


def bfloat16_ratio() -> float:
    """Seconds of a small network's training step under bfloat16 autocast, in those of one in float32; one thread."""
    import torch
    from torch import nn

    x, before = torch.randn(32, 3, 32, 32), torch.get_num_threads()
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
    torch.set_num_threads(1)
    took: dict[bool, list[float]] = {False: [], True: []}
    for low in (False, True) * 4:  # alternating; the first two warm up
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = net(x).float().square().mean()
        loss.backward()
        took[low].append(time.perf_counter() - begun)
    torch.set_num_threads(before)
    return min(took[True][1:]) / min(took[False][1:])


def merge(ledger: Ledger, others: Iterable[Path]) -> None:
    """Takes the runs of other folders."""
    for other in others:
        added, differ = ledger.merge(other)
        print(f"{other}: {added} runs taken.", flush=True)
        for key in differ:
            print(f"{other}: {key} was made here too, with another result; that of {ledger.folder} stays.", flush=True)
    ledger.export()
    name_versions(ledger)


def main(words: list[str]) -> int:
    """The command; its exit status."""
    try:
        command(*options(words))
    except Stopped as stop:
        print("stopped; the same command goes on", flush=True)
        return 128 + stop.signal
    except SoftgateError as error:
        print(error, file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
