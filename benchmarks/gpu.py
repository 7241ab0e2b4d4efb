"""Everything that is measured on a GPU, in pieces: `uv run benchmarks/gpu.py --data data --budget 8m`.

    uv run benchmarks/gpu.py --data data --budget 8m    # what is not done yet, while the time lasts; again for the rest
    uv run benchmarks/gpu.py --status                   # what is done and left, in seconds
    uv run benchmarks/gpu.py --items tests,step-fp32    # these, done or not
    uv run benchmarks/gpu.py --toy                      # small sizes, on the CPU too: does every item run?

An item is a command of gpu.yaml, in a process of its own: one that fails takes nothing with it. FOLDER/ITEM.json
has its table, with the card, the driver, the versions and the commit that it is of; what was measured of others is not
counted as done. FOLDER/gpu.md has all tables. docs/gpu.md says how to read them. Without an installation, `python3` in
the tree will do.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT, HERE = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

import yaml  # noqa: E402  (after the path)
from budget import seconds  # noqa: E402  (likewise)

from softgate import files  # noqa: E402  (likewise)
from softgate.errors import SoftgateError, require, unknown  # noqa: E402  (likewise)
from softgate.tables import Table  # noqa: E402  (likewise)


@dataclass(frozen=True)
class Item:
    """One command of the suite.

    Attributes:
        command: What follows Python, with names in braces to fill in.
        toy: The same, small.
        seconds: How long it takes on one H100, by estimate.
        rest: Whether it takes what is left of the budget, and goes on the next time.
    """

    command: str
    toy: str
    seconds: int
    rest: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether the data sets' folder is among its words."""
        return "{data}" in self.command


def items() -> dict[str, Item]:
    """All of them, in order."""
    return {name: Item(**given) for name, given in yaml.safe_load((HERE / "gpu.yaml").read_text()).items()}


def machine() -> dict[str, Any]:
    """What a measurement is of: card, driver, versions and commit."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if card != "no GPU" else ""
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    return {"card": card, "driver": driver, "torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit}


def _said(*line: str) -> str:
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip().split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Suite:
    """The items and what is known of them.

    Args:
        folder: For the tables.
        data: The folder of the data sets; None leaves out what needs it.
        toy: Whether everything is small.
    """

    def __init__(self, folder: Path, data: Path | None, toy: bool) -> None:
        self.folder, self.data, self.toy = folder, data, toy
        self.items, self.here = items(), machine() | {"toy": toy}

    def left(self) -> Iterator[str]:
        """What is not done on this machine at this commit."""
        for name, item in self.items.items():
            if (item.rest or not self._done(name)) and (self.data is not None or not item.needs_data):
                yield name

    def _done(self, name: str) -> bool:
        found = self.found(name)
        same = found is not None and all(found["machine"].get(key) == value for key, value in self.here.items())
        return bool(same and found and not found.get("error"))

    def found(self, name: str) -> Mapping[str, Any] | None:
        """The table of an item, of whatever machine."""
        path = self.folder / f"{name}.json"
        return files.read_json(path) if path.is_file() else None

    def run(self, name: str, left: float) -> str:
        """Runs an item and writes its table; the line that says how it went.

        Args:
            name: Its name.
            left: Seconds after which it is stopped.
        """
        item, out = self.items[name], self.folder / "work" / f"{name}.out"
        files.folder(out.parent)
        out.unlink(missing_ok=True)
        words = {"benchmarks": HERE, "root": ROOT, "data": self.data, "out": out, "left": int(left)}
        line = [each.format(**words) for each in shlex.split(item.toy if self.toy else item.command)]
        paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "WANDB_MODE": "offline"}
        begun = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *line], capture_output=True, text=True, cwd=out.parent, env=env, timeout=left + 60
            )
            said, error = done.stdout + done.stderr, None if done.returncode == 0 else f"exit status {done.returncode}"
        except subprocess.TimeoutExpired as stopped:
            said, error = str(stopped.stdout or ""), f"stopped after {left + 60:.0f} s"
        took = time.perf_counter() - begun
        files.write(said, self.folder / "work" / f"{name}.txt")
        table = _table(name, out, said)
        about = {"machine": self.here, "seconds": round(took, 1), "command": shlex.join(line), "error": error}
        files.write_json(about | table, self.folder / f"{name}.json")
        return f"{name}: {error or 'done'}, {took:.0f} s" + (f"; {_last(said)}" if error else "")

    def page(self) -> str:
        """All tables, as Markdown."""
        parts = ["# Measured on a GPU\n"]
        for name in self.items:
            found = self.found(name)
            if found is None:
                continue
            about = found["machine"]
            where = f"{about['card']}, driver {about['driver']}, PyTorch {about['torch']}, commit {about['commit']}"
            parts.append(f"## {name}\n\n{found['title']} ({where}; {found['seconds']} s)\n")
            if found["error"]:
                parts.append(f"**{found['error']}**\n")
            if found["rows"]:
                names = list(found["rows"][0])
                cells = [[_shown(row.get(key, "")) for key in names] for row in found["rows"]]
                parts.append(Table(names, cells).markdown() + "\n")
        return "\n".join(parts)


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1][:200]


def _table(name: str, out: Path, said: str) -> dict[str, Any]:
    """Title and rows of what an item has left: its own table, the tests' list, or its last line."""
    if not out.is_file():
        return {"title": name, "rows": [{"last line": _last(said)}]}
    if name == "tests":
        cases = list(ElementTree.parse(out).iter("testcase"))
        kinds = {
            kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")
        }
        bad = [f"{case.get('classname')}::{case.get('name')}" for case in kinds["failure"] + kinds["error"]]
        passed = len(cases) - sum(len(found) for found in kinds.values())
        row = {
            "tests": len(cases),
            "passed": passed,
            "skipped": len(kinds["skipped"]),
            "failed": " ".join(bad) or "none",
        }
        return {"title": "pytest -m gpu", "rows": [row]}
    found = files.read_json(out)
    return {"title": found["title"], "rows": found["rows"]}


def _counted(cases: list[ElementTree.Element]) -> dict[str, Any]:
    """How the tests of a JUnit file went."""
    skipped = [case for case in cases if case.find("skipped") is not None]
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    names = " ".join(f"{case.get('classname')}::{case.get('name')}" for case in bad) or "none"
    passed = len(cases) - len(skipped) - len(bad)
    return {"tests": len(cases), "passed": passed, "skipped": len(skipped), "failed": names}


def command(given: argparse.Namespace) -> int:
    """Does what was asked for; the number of items that failed.

    Raises:
        SoftgateError: For an item that does not exist, or a folder that does not.
    """
    require(given.data is None or given.data.is_dir(), f"--data={given.data}: there is no such folder.")
    suite = Suite(given.folder.absolute(), given.data and given.data.absolute(), given.toy)
    for name in given.items or ():
        if name not in suite.items:
            raise unknown("--items", name, list(suite.items))
        fits = suite.data is not None or not suite.items[name].needs_data
        require(fits, f"--items={name}: it needs the folder of the data sets, --data.")
    chosen = list(suite.left()) if given.items is None else given.items
    budget = seconds(given.budget) if given.budget else None
    if given.status:
        for name in suite.items:
            print(
                f"{name}: {'left' if name in chosen else 'done or without data'}, about {suite.items[name].seconds} s"
            )
        return 0
    begun, failed = time.perf_counter(), 0
    for name in chosen:
        left = (budget - (time.perf_counter() - begun)) if budget else 3600.0
        if not given.toy and left < suite.items[name].seconds:
            print(f"{name}: left for the next time, {suite.items[name].seconds} s are needed", flush=True)
            continue
        said = suite.run(name, left)
        failed += not said.startswith(f"{name}: done")
        print(said, flush=True)
    files.write(suite.page(), suite.folder / "gpu.md")
    print(f"written: {suite.folder / 'gpu.md'}")
    return failed


def options(words: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the data sets; left out: without what needs it")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "gpu", help="of the tables")
    parser.add_argument("--budget", help="such as 8m: no item is begun that would not end by then")
    parser.add_argument("--items", type=lambda text: text.split(","), help="only these")
    parser.add_argument("--toy", action="store_true", help="everything small, to try it out")
    parser.add_argument("--status", action="store_true", help="what is done and left")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        sys.exit(command(options(sys.argv[1:])) > 0)
    except SoftgateError as error:
        sys.exit(f"error: {error}")
