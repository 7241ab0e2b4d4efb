"""A network, data, a callback and a metric of one's own, in one folder, through every command."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

FILES = {
    "my_model.py": """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, width, 3, 2), nn.ReLU()
        self.norm = nn.BatchNorm2d(width)
        self.deeper = nn.Sequential(nn.Conv2d(width, width, 3, 1), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.deeper(self.relu(self.norm(self.conv(x)))).mean((2, 3)))
""",
    "my_data.py": """
import random

import torch
from torch.utils.data import Dataset


class Stripes(Dataset):
    classes = ("across", "down", "plain")

    def __init__(self, count):
        self.targets = [i % 3 for i in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        x = (torch.arange(16) % 4 < 2).float().expand(3, 16, 16)
        x = (x, x.transpose(1, 2), 0 * x + 0.5)[self.targets[i]]
        return 0.5 * x + 0.4 * torch.rand(3, 16, 16) + 0.1 * random.random(), self.targets[i]


def make(count=96):
    return Stripes(count), Stripes(count // 2)
""",
    "my_parts.py": """
import torch
from pytorch_lightning.callbacks import Callback
from torchmetrics import Metric


class Steps(Callback):
    def __init__(self):
        self.seen = 0

    def on_train_batch_end(self, trainer, module, *rest):
        self.seen += 1
        module.log("my_steps", float(self.seen))

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Confidence(Metric):
    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits, labels):
        self.total += logits.softmax(1).amax(1).sum()
        self.count += len(labels)

    def compute(self):
        return self.total / self.count
""",
}

OWN = (
    *("model._target_=my_model.Net", "data._target_=my_data.make", "metrics.confidence._target_=my_parts.Confidence"),
    *("callbacks.steps._target_=my_parts.Steps", "callbacks.checkpoint.monitor=val/confidence", "data.batch_size=8"),
    *(
        "print_config=false",
        "trainer.enable_progress_bar=false",
        "trainer.max_epochs=4",
        "callbacks.paths.recordings=3",
    ),
    *("callbacks.paths.images=30", "callbacks.grids.keep=1", "callbacks.checkpoint.every_n_steps=5"),
)
TRUST = "trust=[my_model,my_data,my_parts]"


def started(cwd: Path, script: str, *words: str) -> subprocess.Popen[str]:
    quiet = {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / script), *words]
    return subprocess.Popen(line, cwd=cwd, env=os.environ | quiet, stdout=-1, stderr=-1, text=True)


def command(cwd: Path, script: str, *words: str) -> str:
    output, errors = (process := started(cwd, script, *words)).communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_what_the_built_in_choices_do_works_for_ones_own(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    command(tmp_path, "train.py", *OWN, "hydra.run.dir=whole")

    cut = started(tmp_path, "train.py", *OWN, "hydra.run.dir=cut")
    metrics = tmp_path / "cut" / "metrics.csv"
    while cut.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)
    cut.send_signal(signal.SIGKILL)
    cut.communicate()
    refused = started(tmp_path, "train.py", "resume=cut")
    said = refused.communicate()[1]
    assert refused.returncode == 2, "what stands in a run's directory alone was imported"
    assert "trust=[" in said
    command(tmp_path, "train.py", "resume=cut", TRUST)
    whole, gone_on = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == gone_on.keys()
    assert all(torch.equal(whole[key], gone_on[key]) for key in whole)
    columns = [
        [{key: row[key] for key in ("epoch", "val/confidence", "my_steps")} for row in csv.DictReader(path.open())]
        for path in (tmp_path / "whole" / "metrics.csv", metrics)
    ]
    assert columns[0] == columns[1]
    assert max(float(row["my_steps"] or 0) for row in columns[0]) == 40  # of 48 steps every tenth is logged

    arms = ("surrogate=none,excitation", "seed=0,1", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
    command(tmp_path, "train.py", "-m", *OWN, *arms)
    found = (
        *("runs=sweep/*", TRUST, "compare.sharpness.images=12", "compare.train_images=24"),
        "hydra.run.dir=compared",
    )
    command(tmp_path, "evaluate.py", *found)
    assert (tmp_path / "compared" / "report.html").is_file()

    few = ("alignment=full", "alignment.images=6", "alignment.dear_images=2", "alignment.draws=2")
    paths = ("paths=full", "paths.images=30", "paths.resamples=100", "compare=none")
    command(tmp_path, "evaluate.py", "runs=whole", TRUST, *few, *paths, "hydra.run.dir=seen")
    results = json.loads((tmp_path / "seen" / "results.json").read_text())
    made = {path.name for path in (tmp_path / "seen").rglob("*")}
    assert {"results.json", "grid.png"} <= made, (made, results)
