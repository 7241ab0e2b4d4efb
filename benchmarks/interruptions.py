"""What Ctrl-C and SIGTERM do at random moments: `uv run benchmarks/interruptions.py [--moments 30] [--cases train]`.

Starts train.py (a run, a sweep of two jobs) and evaluate.py (two runs, their alignment, a comparison) on a few digits,
ends each at moments spread over its whole life, and looks at what is left: exit status, no stack trace, one line that
says what is kept, every file whole, no process left, and whether going on as the line says ends as if nothing had been.
"""

import argparse
import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
QUIET = ("print_config=false", "trainer.enable_progress_bar=false")
SMALL = (
    *("data.size=16", "data.batch_size=8", "trainer.limit_train_batches=6", "trainer.limit_val_batches=3"),
    *("trainer.max_epochs=3", "callbacks.checkpoint.every_n_steps=2", "model=squeezenet1_1"),
)
SWEEP = ("-m", "surrogate=none,excitation", *SMALL, *QUIET)
FEW = ("alignment=full", "alignment.images=10", "alignment.dear_images=2", "alignment.draws=2", "measure=false")
QUICK = (
    *("compare=quick", "grid.rows=2", "grid.targets=2", "compare.corruptions.images=8"),
    *("compare.attack.steps=2", "compare.attack.images=8", "compare.sharpness.images=8"),
)
CASES = {
    "train": ("train.py", ("hydra.run.dir=out", *SMALL, *QUIET)),
    "sweep": ("train.py", ("hydra.sweep.dir=out", *SWEEP)),
    "evaluate": ("evaluate.py", ("hydra.run.dir=out", "runs=[runs/0,runs/1]", "compare=none")),
    "alignment": ("evaluate.py", ("hydra.run.dir=out", "runs=[runs/0,runs/1]", *FEW)),
    "compare": ("evaluate.py", ("hydra.run.dir=out", "runs=[runs/0,runs/1]", *QUICK)),
}
WAYS = {
    "Ctrl-C": ("group", [signal.SIGINT]),
    "SIGTERM": ("process", [signal.SIGTERM]),
    "SIGINT": ("process", [signal.SIGINT]),
    "Ctrl-C twice": ("group", [signal.SIGINT, signal.SIGINT]),
    "SIGTERM to all": ("group", [signal.SIGTERM]),
}
"""Whom a signal is sent to: a terminal and a service manager reach all processes at once."""

PATIENCE = 240.0
"""Seconds that a command may take to end."""


ENDING = 5.0
"""Seconds that Python may take to end after a command's last act; a signal in there changes nothing."""


SLACK = 0.3
"""Seconds after a command's last file in which moments still fall."""


@dataclass
class Ended:
    """How a command ended."""

    status: int
    output: str
    errors: str
    made: float  # the second in which its directory was there
    seconds: float
    sent: float  # the second in which the first signal was sent; 0 where it had ended by then
    faults: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The lines that say what is kept."""
        return [line for line in self.errors.splitlines() if line.startswith("stopped by ")]


def start(script: str, words: tuple[str, ...], folder: Path) -> tuple[subprocess.Popen, list[Path]]:
    outputs = [folder / "stdout.txt", folder / "stderr.txt"]
    with outputs[0].open("w") as out, outputs[1].open("w") as err:
        line = [sys.executable, str(ROOT / script), *words]
        process = subprocess.Popen(line, cwd=folder, stdout=out, stderr=err, start_new_session=True)
    return process, outputs


def run(
    script: str, words: tuple[str, ...], folder: Path, moment: float | None = None, way: str = "", late: bool = False
) -> Ended:
    """Runs a command.

    Args:
        script: Its script.
        words: Its words.
        folder: Where to.
        moment: Ends it after so many seconds, if that is given.
        way: One of `WAYS`.
        late: Count the seconds from when the command has made its directory.
    """
    begun = time.monotonic()
    process, outputs = start(script, words, folder)
    made = sent = 0.0
    while process.poll() is None and not made and (moment is None or late):
        time.sleep(0.05)
        made = time.monotonic() - begun if (folder / "out").is_dir() else 0.0
    if moment is not None:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            whom, numbers = WAYS[way]
            for number in numbers:
                send = os.killpg if whom == "group" else os.kill
                if process.poll() is None:
                    send(process.pid, number)
                    sent = sent or time.monotonic() - begun
                    time.sleep(0.3 if len(numbers) > 1 else 0)
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        ended = Ended(status, *(path.read_text() for path in outputs), made, time.monotonic() - begun, sent)
        ended.faults.append(f"did not end in {PATIENCE:.0f} s")
        return ended
    return Ended(status, *(path.read_text() for path in outputs), made, time.monotonic() - begun, sent)


def whole(folder: Path) -> list[str]:
    """The files that are broken or left over."""
    broken = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if path.suffix in (".ckpt", ".pt"):
                torch.load(path, map_location="cpu", weights_only=True)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                rows = list(csv.reader(path.open(newline="")))
                assert len({len(row) for row in rows}) <= 1, "rows of different lengths"
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>"), "cut short"
            else:
                assert path.suffix != ".partial", "left over"
        except Exception as error:  # whatever is wrong with it is what is looked for
            broken.append(f"{path.relative_to(folder)}: {error}")
    return broken


def left_behind(folder: Path) -> list[str]:
    """Processes that still work in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").resolve() == folder.resolve() and (place / "stat").read_text().split()[2] != "Z":
                found.append(place.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


def judge(ended: Ended, way: str, folder: Path) -> None:
    """Adds what is wrong with an end to its faults."""
    number = WAYS[way][1][0]
    unborn = ended.status == -number and not ended.errors  # before Python came to the script's first line
    if ended.status not in (0, 128 + number) and not unborn:
        ended.faults.append(f"status {ended.status}")
    if ended.status == 0 and ended.seconds > ended.sent + ENDING:
        ended.faults.append(f"went on for {ended.seconds - ended.sent:.1f} s as if no signal had come")
    expected = 1 if ended.status == 128 + number else 0
    if len(ended.lines) != expected:
        ended.faults.append(f"{len(ended.lines)} lines say what is kept: {ended.errors[-500:]!r}")
    logs = [path.read_text(errors="replace") for path in folder.rglob("output.log")]
    for text in (ended.output, ended.errors, *logs):
        for mark in ("Traceback", "Exception ignored"):
            if mark in text:
                ended.faults.append(f"{mark}: {text[text.index(mark) :][-700:]!r}")
    ended.faults += whole(folder)
    time.sleep(0.2)
    if left_behind(folder):
        time.sleep(3)  # a loading process, or a job just begun, sees within a second or two that its parent has gone
        ended.faults += [f"process {number} is left" for number in left_behind(folder)]


def go_on(case: str, ended: Ended, folder: Path) -> Ended:
    """Does what the line says."""
    script, words = CASES[case]
    told = re.search(r"uv run train\.py (.*?) (?:goes on|begins)", " ".join(ended.lines))
    if told:
        words = (*shlex.split(told[1]), *(word for word in words if not word.startswith("hydra.run.dir=")))
    elif case == "train" and "the run is finished" in " ".join(ended.lines):
        words = ("resume=out",)  # which says so, too
    elif case == "sweep" and re.search("sweep.resume=true|every job that was begun", " ".join(ended.lines)):
        words = (*words, "sweep.resume=true")
    return run(script, words, folder)


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for path in sorted(folder.glob("out/**/checkpoints/last.ckpt")):
        found[str(path.relative_to(folder))] = torch.load(path, weights_only=True)["state_dict"]
    return found


def same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[path][key]) for path, state in one.items() for key, value in state.items()
    )


def measure(case: str, moments: int, seed: int, base: Path) -> list[dict[str, object]]:
    script, words = CASES[case]
    draw, rows = random.Random(f"{case} {seed}"), []
    undisturbed = base / case / "whole"
    prepare(undisturbed, base)
    begun = time.time()
    first = run(script, words, undisturbed)
    assert first.status == 0, first.errors
    expected = weights(undisturbed)
    early = -(-moments // 4)
    files = [path for path in (undisturbed / "out").rglob("*") if path.is_file()]
    done = max(path.stat().st_mtime for path in files) - begun + SLACK  # what comes then is Python's own end
    for count in range(moments):
        folder = base / case / str(count)
        way = list(WAYS)[count % len(WAYS)]
        late = count >= early
        if late:
            moment = (count - early + draw.random()) / (moments - early) * (done - first.made)
        else:
            moment = (count + draw.random()) / early * first.made
        while True:
            prepare(folder, base)
            ended = run(script, words, folder, moment, way, late)
            if ended.sent:
                break
            shutil.rmtree(folder)  # it was faster than the undisturbed one
            moment *= 0.8
        judge(ended, way, folder)
        goes_on = script == "train.py" and (folder / "out").is_dir()
        if ended.status != 0 and (goes_on or count % 5 == 0):  # all else begins anew, as the undisturbed one did
            again = go_on(case, ended, folder)
            if again.status != 0 or "Traceback" in again.errors:
                ended.faults.append(f"going on ends with {again.status}: {again.errors[-500:]!r}")
            ended.faults += whole(folder)
            if script == "train.py" and not same(expected, weights(folder)):
                ended.faults.append("going on ends with other weights")
        said = (ended.lines[0] if ended.lines else ended.errors[-120:].strip() or "(Python was ending)").replace(
            f"{folder}/", ""
        )
        when = f"{moment:.1f} s {'after its directory was made' if late else ''}"
        row = {"case": case, "when": when, "sent": way, "status": ended.status, "said": said}
        rows.append(row | {"faults": "; ".join(ended.faults)})
        print(f"| {' | '.join(map(str, rows[-1].values()))} |", flush=True)
        if not ended.faults:
            shutil.rmtree(folder)
    return rows


def prepare(folder: Path, base: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "runs").symlink_to(base / "runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=30, help="of each case")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for what is left, in place of one that is thrown away")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what `&` and nohup start, and by its children
    base = given.keep or Path(tempfile.mkdtemp(prefix="interruptions-"))
    base = base.resolve()
    for number, rule in enumerate(("none", "excitation")):  # for evaluate.py
        if set(given.cases) - {"train", "sweep"} and not (base / "runs" / str(number) / "summary.json").is_file():
            base.mkdir(parents=True, exist_ok=True)
            words = (f"hydra.run.dir=runs/{number}", f"surrogate={rule}", *SMALL, *QUIET, "callbacks=none")
            made = run("train.py", words, base)
            assert made.status == 0, made.errors
    print("| command | ended after | by | status | what it said | faults |\n|---|---|---|---|---|---|")
    rows = [row for case in given.cases for row in measure(case, given.moments, given.seed, base)]
    for case in given.cases:
        faults = [bool(row["faults"]) for row in rows if row["case"] == case]
        print(f"{case}: {len(faults)} moments, {sum(faults)} with a fault")
    if any(row["faults"] for row in rows):
        raise SystemExit(f"what is left is in {base}")
    if given.keep is None:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
