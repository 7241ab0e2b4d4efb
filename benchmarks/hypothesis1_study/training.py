"""The runs: a small network on the 1,797 digits, recorded at ten epochs, and trained on from each with given gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import softgate as sg
from softgate.models.small_images import Plain
from softgate.paths.packing import Layout
from softgate.paths.recording import Header, Point, Recorder, Recording, network_hash, probe_hash
from softgate.training.optim import warmup_cosine

BATCH = 64
EPOCHS = 5
"""The shorter horizon; the longer one is twice that."""

GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Epochs s of the shorter horizon; twice these of the longer one."""

RATE = 0.05
PROBE = 200
"""Probe images, of training and of validation images alike."""

SPLITS = ("val", "train")
GATES = ("epoch", "own", "random", "last")
"""Whose gates: all at every second epoch of the grid, the first of them at every one."""


@dataclass(frozen=True, order=True)
class Setting:
    """One run that is recorded.

    Attributes:
        schedule: "cosine" to zero or "constant".
        epochs: The horizon.
        seed: Initial weights and order of the images.
    """

    schedule: str
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.schedule}-{self.epochs}-{self.seed}"

    @property
    def grid(self) -> tuple[float, ...]:
        """The epochs that it is recorded at, before the last."""
        return tuple(epoch * self.epochs / EPOCHS for epoch in GRID)


def settings(seeds: int) -> list[Setting]:
    """All of them, the shorter horizon first, seed by seed."""
    every = product((EPOCHS, 2 * EPOCHS), range(seeds), ("cosine", "constant"))
    return [Setting(schedule, epochs, seed) for epochs, seed, schedule in every]


@cache
def data() -> dict[str, tuple[Tensor, Tensor]]:
    """Images [N, 1, 8, 8] and labels [N]; a fixed fifth of every class validates."""
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(found.target)
    train, val = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=found.target)
    return {"train": (x[train], y[train]), "val": (x[val], y[val])}


def network(seed: int) -> nn.Module:
    """Three 3 x 3 convolutions with 16, 32 and 32 channels, max poolings after two of them, no normalisation."""
    torch.manual_seed(seed)
    return Plain((16, 32, 32), (1, 2), 10, 1)


def steps_per_epoch() -> int:
    """Of whole batches; what is left over waits for the next epoch's order."""
    return len(data()["train"][0]) // BATCH


def fit(run: nn.Module, net: nn.Module, setting: Setting, done: int = 0) -> Iterator[int]:
    """Trains from step `done` of a setting to its end; yields each step before it is made, and the last one.

    Args:
        run: Gives the logits; the network, or the network with given gates.
        net: The network whose weights are trained.
        setting: The horizon, the schedule, and the seed of the order.
        done: Steps that lie before; momentum begins anew.
    """
    each = steps_per_epoch()
    total = setting.epochs * each
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = warmup_cosine(optimizer, total, 0.0, done) if setting.schedule == "cosine" else None
    x, y = data()["train"]
    for step in range(done, total):
        yield step
        epoch, place = divmod(step, each)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * setting.seed + epoch))
        at = order[place * BATCH : (place + 1) * BATCH]
        optimizer.zero_grad()
        F.cross_entropy(run(x[at]), y[at]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    yield total


def record(setting: Setting, place: Path) -> None:
    """Trains a run normally and records it on training and on validation images."""
    net = network(setting.seed)
    each = steps_per_epoch()
    wanted = {round(epoch * each): epoch for epoch in (*setting.grid, float(setting.epochs))}
    recorders = {}
    for split in SPLITS:
        images, labels = probe(split)
        layout = Layout.of(sg.paths.record(net, images[:1]), soft=False)
        hashes = network_hash(net), probe_hash(images, labels)
        header = Header("Plain", *hashes, len(images), layout, None, None, weights=True)
        recorders[split] = Recorder(place / split, header)
        recorders[split].begin(images, labels, run=setting.name)
    for step in fit(net, net, setting):
        if step in wanted:
            kept = {"net": {key: value.clone() for key, value in net.state_dict().items()}, "scales": {}}
            for split in SPLITS:
                gates = sg.paths.record(net, probe(split)[0], chunk=PROBE)
                recorders[split].add(Point(step, wanted[step]), lambda kind, g=gates: iter([g]), kept)


@cache
def probe(split: str) -> tuple[Tensor, Tensor]:
    """The first twenty images of each class, the classes taking turns."""
    x, y = data()[split]
    rows = torch.stack([torch.nonzero(y == label)[: PROBE // 10, 0] for label in range(10)], 1).flatten()
    return x[rows], y[rows]


def trained_on(setting: Setting, recording: Recording, point: Point, gates: str) -> dict[str, float]:
    """Accuracy and loss of the weights of a moment, trained on to the end with given gates.

    Args:
        setting: Of the run that was recorded.
        recording: Of it.
        point: The moment s.
        gates: Whose: "epoch" of the network of s, "last" of the last one, "random" of an untrained one, "own".
    """
    net = network(setting.seed)
    net.load_state_dict(recording.weights(point)["net"])
    frozen = network(10_000 + setting.seed)
    if gates in ("epoch", "last"):
        source = point if gates == "epoch" else recording.points[-1]
        frozen.load_state_dict(recording.weights(source)["net"])
    with sg.attach(net, None) if gates != "own" else nullcontext() as sites:
        run = net if sites is None else sg.paths.FrozenGates(sites, frozen)
        for _ in fit(run, net, setting, point.step):
            pass
        return measured(run)


@torch.no_grad()
def measured(run: nn.Module) -> dict[str, float]:
    """Accuracy and mean cross-entropy on the validation and the training images."""
    found = {}
    for split in SPLITS:
        x, y = data()[split]
        logits = run(x)
        found[f"{split}_accuracy"] = float((logits.argmax(1) == y).double().mean())
        found[f"{split}_loss"] = float(F.cross_entropy(logits, y))
    return found
