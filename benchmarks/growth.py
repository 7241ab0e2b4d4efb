"""What grows in a long run: `uv run benchmarks/growth.py`, about ten minutes on two cores.

train.py with everything that can stand beside training, one batch an epoch: checkpoints, grids, film, alignment,
diagnostics, metrics.csv, TensorBoard and W&B offline. Resident memory (of W&B's own processes too), open files,
threads and seconds are noted as each epoch begins, and the medians of eleven epochs around epoch 20 are held against
those of the last eleven. Files are counted at the end. Other work on the machine moves the seconds by the clock more
than those of the processor.
"""

import argparse
import os
import re
import runpy
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

from common import report
from pytorch_lightning.callbacks import Callback

from softgate import files
from softgate.training import build

ROOT = Path(__file__).parents[1]
HALF = 5
"""Epochs on either side of a window's middle."""
ALLOWED = 1.05
"""At most so many times what it was around epoch 20."""
PAGE = os.sysconf("SC_PAGE_SIZE") / 1e6

WORDS = (
    *("model=squeezenet1_1", "data.size=32", "data.batch_size=16", "callbacks=alignment", "logger=[tensorboard,wandb]"),
    *("trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"),
    *("callbacks.alignment.images=16", "callbacks.alignment.few=2", "callbacks.alignment.draws=2"),
    *("callbacks.diagnostics.images=8", "callbacks.grids.classes=2", "ema=0.9", "optim.lr=0.001"),
    *("print_config=false", "trainer.enable_progress_bar=false"),
)


class Recorder(Callback):
    """Notes what the process holds as each epoch begins."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        """Adds a row."""
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "resident MB": resident(os.getpid()),
                "W&B resident MB": sum(resident(child) for child in children(os.getpid())),
                "open files": len(list(Path("/proc/self/fd").iterdir())),
                "threads": len(list(Path("/proc/self/task").iterdir())),
                "clock": time.perf_counter(),
                "processor": time.process_time(),
            }
        )


def resident(process: int) -> float:
    """Megabytes in memory; 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0.0


def children(process: int) -> Iterator[int]:
    """All processes that a process and its children started."""
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from children(child)


def compared(rows: list[dict[str, float]]) -> list[dict[str, object]]:
    """Medians around epoch 20 and at the end; seconds are those from one epoch's beginning to the next one's."""
    for row, after in pairwise(rows):
        row["seconds by the clock"] = after["clock"] - row["clock"]
        row["seconds of the processor"] = after["processor"] - row["processor"]
    whole = rows[:-1]
    early, late = whole[20 - HALF : 20 + HALF + 1], whole[-2 * HALF - 1 :]
    found: list[dict[str, object]] = []
    for name in ("resident MB", "W&B resident MB", "open files", "threads", *list(whole[0])[-2:]):
        before, after = (statistics.median(row[name] for row in window) for window in (early, late))
        within = "yes" if after <= ALLOWED * before else "no"
        found.append({"": name, "epoch 20": before, "end": after, "ratio": after / before, "within 5 %": within})
    return found


def written(directory: Path) -> list[dict[str, object]]:
    """Megabytes and number of files by kind: those that differ in numbers alone are one kind."""
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            inner = path.relative_to(directory)
            under = inner.parts[0] if inner.parts[0] in ("wandb", "tensorboard", ".hydra") else str(inner)
            kind = re.sub(r"\d+", "N", under)
            sizes[kind] += path.stat().st_size
            numbers[kind] += 1
    return [{"file": kind, "files": numbers[kind], "MB": size / 1e6} for kind, size in sizes.most_common()]


def run(directory: Path, words: list[str]) -> Recorder:
    """train.py in this process, with a recorder among its callbacks."""
    recorder, made = Recorder(), build.callbacks
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    sys.argv = ["train.py", *WORDS, *words, f"hydra.run.dir={directory}"]
    with mock.patch.object(build, "callbacks", lambda *given: [recorder, *made(*given)]):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return recorder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("growth.json"))
    parser.add_argument("words", nargs="*", help="further options of train.py")
    given = parser.parse_args()
    if given.epochs < 50:
        parser.error(f"--epochs {given.epochs}: at least 50 are needed, or the two windows are hardly apart.")
    with tempfile.TemporaryDirectory() as folder:
        recorder = run(Path(folder, "run"), [f"trainer.max_epochs={given.epochs}", *given.words])
        report("files at the end", written(Path(folder, "run")), given.out.with_stem(f"{given.out.stem}-files"))
    files.write_csv(recorder.rows, given.out.with_suffix(".csv"))
    report(f"{given.epochs} epochs of one batch, medians of {2 * HALF + 1}", compared(recorder.rows), given.out)
