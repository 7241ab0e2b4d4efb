"""Do the tests notice? Small faults are put into the code, one at a time, and the tests must fail for each.

`uv run benchmarks/mutations.py` puts the faults of `mutations.toml` into a copy of the tree; the checkout is not
touched. For each the tests named beside it run first, then all tests of their folders, then all fast tests, until one
fails. That test must pass on the code as it is, or the command says so and fails. Results stand in `mutations.json`: a
command that was broken off goes on from there, and what was killed runs again only once its file has changed.

    uv run benchmarks/mutations.py                         # all of them, some twenty minutes on one core
    uv run benchmarks/mutations.py holm-ignored lock-shared
    uv run benchmarks/mutations.py --until named           # survivors of the named tests are not looked at further
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import importlib
import json
import multiprocessing
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CODE = Path("src", "softgate")
STAGES = ("named", "folder", "all")
LEAST = 0.95
"""Share of mutations that the tests must kill."""

LIMIT = 900
"""Seconds after which tests count as stuck, and a mutation as noticed."""

HEAVY = (
    "pytest",
    "hypothesis",
    "torchvision",
    "torchmetrics",
    "pytorch_lightning",
    "hydra",
    "scipy.stats",
    "captum.attr",
)
"""What takes seconds to import: once, and not for each mutation."""

UNUSABLE = (4, 5)
"""Exit statuses of pytest: it does not know such a test, or was given none."""

THIS = "tests/test_mutations.py"
"""Not in the copy: that each mutation applies is no longer so where one was applied."""


@dataclass(frozen=True)
class Mutation:
    """A fault; see `mutations.toml`."""

    id: str
    file: str
    old: str
    new: str
    breaks: str
    tests: Sequence[str]
    reason: str = ""

    def applied(self, text: str) -> str:
        """A file's text with the fault in it.

        Raises:
            ValueError: If the old text does not stand in it exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.id}: its old text stands {count} times in {self.file}, not once; renew it.")
        return text.replace(self.old, self.new)

    def digest(self) -> str:
        """Changes with the mutation and with the file that it is in."""
        parts = self.file, self.old, self.new, (ROOT / CODE / self.file).read_text(encoding="utf-8")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def stage(self, name: str) -> list[str]:
        """The paths below tests/ that a stage runs."""
        if name == "named":
            return list(self.tests)
        return sorted({str(Path(path).parent) for path in self.tests}) if name == "folder" else ["."]


def mutations() -> list[Mutation]:
    """The list."""
    with Path(__file__).with_suffix(".toml").open("rb") as file:
        return [Mutation(**each) for each in tomllib.load(file)["mutation"]]


class Copy:
    """A copy of the tree, to run tests of.

    Args:
        home: The folder it is made in.
    """

    def __init__(self, home: Path) -> None:
        self.tree, self.log = home / "tree", home / "output"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if name != THIS and (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.tree / name)
        # By their content: a fault is put in and taken out within one tick of the clock.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.tree / "src", quiet=1, invalidation_mode=checked)

    def failing(self, tests: Sequence[str], mutation: Mutation | None = None, every: bool = False) -> list[str]:
        """The tests that fail, with a fault in the code or without: the first one, or every one.

        Raises:
            RuntimeError: If no test was run.
        """
        if mutation is None:
            return self._run(tests, every)
        path = self.tree / CODE / mutation.file
        sound = path.read_text(encoding="utf-8")
        path.write_text(mutation.applied(sound), encoding="utf-8")
        try:
            return self._run(tests, every)
        finally:
            path.write_text(sound, encoding="utf-8")

    def _run(self, tests: Sequence[str], every: bool) -> list[str]:
        # Forked: importing PyTorch, Lightning and the others anew takes longer than most of the tests.
        context = multiprocessing.get_context("fork")
        theirs, mine = context.Pipe(duplex=False)
        child = context.Process(target=_pytest, args=(self.tree, self.log, tests, every, mine))
        child.start()
        mine.close()
        child.join(LIMIT)
        status = child.exitcode  # None where it is stuck
        with suppress(ProcessLookupError):  # also what a fault has kept from ending
            os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
        failed: list[str] = []
        with suppress(EOFError):  # it ended before it could say
            failed = theirs.recv()
        if status == 0 or failed:
            return failed
        if status in UNUSABLE:
            raise RuntimeError(f"pytest ran no test:\n{self.log.read_text(errors='replace')[-2000:]}")
        return ["(tests that never end)" if status is None else f"(a process that ended with {status})"]


def _pytest(tree: Path, log: Path, tests: Sequence[str], every: bool, pipe: Any) -> None:
    """Runs tests in a process of its own, and sends the names of those that fail."""
    import pytest

    class Failed:
        def __init__(self) -> None:
            self.names: dict[str, None] = {}

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                self.names[report.nodeid] = None

        pytest_collectreport = pytest_runtest_logreport

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.chdir(tree)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree / "src"))
    os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    failed = Failed()
    options = ["-n0", "-q", "-p", "no:cacheprovider", "--tb=short", *([] if every else ["-x"])]
    status = pytest.main([*options, *(f"tests/{path}" for path in tests)], [failed])
    pipe.send(list(failed.names))
    pipe.close()
    sys.stdout.flush()
    os._exit(int(status))


class Results:
    """What is known of each mutation, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, mutation: Mutation) -> dict[str, Any] | None:
        """What is known of a mutation, unless it or its file has changed since."""
        found = self.known.get(mutation.id)
        return found if found is not None and found["digest"] == mutation.digest() else None

    def put(self, mutation: Mutation, **found: Any) -> None:
        """Keeps what was found."""
        self.known[mutation.id] = {"digest": mutation.digest(), **found}
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.known, indent=2) + "\n")
        partial.replace(self.path)


def look(copy: Copy, mutation: Mutation, until: str) -> tuple[str | None, str]:
    """The test that notices a mutation, if one does, and the stage that it ended with."""
    for stage in STAGES[: STAGES.index(until) + 1]:
        failed = copy.failing(mutation.stage(stage), mutation)
        if failed:
            return failed[0], stage
    return None, until


def unsound(copy: Copy, results: Results, chosen: Sequence[Mutation]) -> list[str]:
    """The tests that have noticed a mutation and fail without one too; all others are confirmed."""
    new = [each for each in chosen if (found := results.of(each)) and found["killed_by"] and not found["confirmed"]]
    tests = {results.known[each.id]["killed_by"] for each in new}
    named = sorted(test.removeprefix("tests/") for test in tests if not test.startswith("("))
    failed = set(copy.failing(named, every=True)) if named else set()
    for each in new:
        found = results.known[each.id]
        if not any(found["killed_by"].startswith(name) for name in failed):
            results.put(each, **{**found, "confirmed": True})
    return sorted(failed)


def report(results: Results, chosen: Sequence[Mutation]) -> bool:
    """Prints the table and the figure; whether enough were killed and each survivor has a reason."""
    from softgate.tables import Table, console  # not before the last fork: tests must not find it imported

    rows, survived = [], []
    for each in chosen:
        found = results.of(each)
        if found is None:
            continue
        by = found["killed_by"] or f"SURVIVED ({found['stage']}) {each.reason}".rstrip()
        rows.append([each.id, each.file, each.breaks, by.removeprefix("tests/"), f"{found['seconds']:.0f}"])
        survived += [] if found["killed_by"] else [each]
    console(240).print(Table(["mutation", "file", "breaks", "killed by", "s"], rows, "mutations", align="llllr").rich())
    looked = sum(results.of(each) is not None for each in chosen)
    killed = looked - len(survived)
    print(f"killed: {killed} of {looked}" + (f"; not run: {len(chosen) - looked}" if looked < len(chosen) else ""))
    for each in survived:
        print(f"survived: {each.id} ({each.file}): {each.breaks}; {each.reason or 'it needs a test'}")
    return looked == len(chosen) and killed >= LEAST * looked and all(each.reason for each in survived)


def preload() -> None:
    """Imports what the tests import, softgate itself left out."""
    for name in HEAVY:
        importlib.import_module(name)
    assert not any(name.split(".")[0] == "softgate" for name in sys.modules)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="which ones; all if left out")
    parser.add_argument("--until", choices=STAGES, default="all", help="the tests that survivors run at most")
    parser.add_argument("--at-most", type=int, metavar="N", help="end after so many, to go on another time")
    parser.add_argument("--results", type=Path, default=ROOT / "mutations.json", help="the file with the results")
    given = parser.parse_args()
    every = mutations()
    unknown = sorted(set(given.ids) - {each.id for each in every})
    if unknown:
        parser.error(f"no such mutation: {', '.join(unknown)}")
    for each in every:  # all of them, before any is run
        each.applied((ROOT / CODE / each.file).read_text(encoding="utf-8"))
    chosen = [each for each in every if each.id in given.ids or not given.ids]
    results = Results(given.results)
    todo = [each for each in chosen if (found := results.of(each)) is None or not found["killed_by"]][: given.at_most]
    failed: list[str] = []
    if todo:
        preload()
    with tempfile.TemporaryDirectory(prefix="mutations-") as home:
        copy = Copy(Path(home))
        for number, each in enumerate(todo, 1):
            started = time.perf_counter()
            by, stage = look(copy, each, given.until)
            seconds = round(time.perf_counter() - started, 1)
            results.put(each, killed_by=by, stage=stage, seconds=seconds, confirmed=False)
            print(f"{number} of {len(todo)}: {each.id}: {by or 'SURVIVED'} ({seconds} s)", flush=True)
        failed = unsound(copy, results, chosen)
    fine = report(results, chosen)
    for test in failed:
        print(f"{test} fails without a mutation too: what it has killed does not count")
    return 0 if fine and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
