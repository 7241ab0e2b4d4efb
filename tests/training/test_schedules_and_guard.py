"""Schedules, scales, diagnostics and the divergence guard in training, on real digits at 16 px."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import softgate
from configs import TINY, composed, configured
from softgate.errors import CannotWrite
from softgate.training import SoftgateModule, build
from softgate.training.callbacks import DivergenceGuard, SaveOnException
from softgate.training.callbacks.config import GuardConfig
from softgate.training.checkpoints import restore
from softgate.training.scales import scaled
from softgate.training.train import train

RULE = (
    "surrogate.scale=channel",
    "surrogate.schedule.mix={start: 0, end: 1, until: 2}",
    "surrogate.schedule.temperature={start: 3, end: 1, until: 6, unit: step, shape: cosine}",
)
QUIET = (*TINY, "callbacks.grids.every_n_epochs=0", "callbacks.diagnostics.every_n_epochs=0")


class Recorder(pl.Callback):
    """Notes the rule of every training step."""

    def __init__(self) -> None:
        self.rules: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.rules.append((trainer.global_step, pl_module.sites.rule))


def fit(directory: Path, *words: str, ckpt: Path | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Fits as train.py does, from a checkpoint or afresh; gives the rules of its steps and its last checkpoint."""
    cfg = configured(*words, directory=directory)
    directory.mkdir(exist_ok=True)  # as train() does
    data = build.data(cfg)
    pl.seed_everything(0, workers=True, verbose=False)
    module, recorder = build.module(cfg, data), Recorder()
    trainer = build.trainer(cfg, directory)
    trainer.callbacks.insert(0, recorder)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return recorder.rules, torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_a_resumed_run_goes_on_with_its_schedule_and_scales_bit_for_bit(tmp_path, monkeypatch):
    words = (*QUIET, *RULE, "trainer.num_sanity_val_steps=0")
    rules, whole = fit(tmp_path / "whole", *words)

    def interrupted(self: SoftgateModule) -> None:
        if self.current_epoch == 1:
            shutil.copy(tmp_path / "half" / "checkpoints" / "last.ckpt", tmp_path)  # as the epoch left it
            raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(SoftgateModule, "on_train_epoch_start", interrupted)
        with pytest.raises(RuntimeError, match="out of luck"):
            fit(tmp_path / "half", *words)
    half = tmp_path / "last.ckpt"
    again, resumed = fit(tmp_path / "again", *words, ckpt=half)
    assert [step for step, _ in again] == [4, 5, 6]
    assert again == rules[3:]
    factors = [2 + math.cos(math.pi * step / 6) for step in range(6)]  # from 3 to 1, before each step
    assert [rule.gate.temperature for _, rule in rules] == pytest.approx([0.3 * factor for factor in factors])
    assert [rule.mix for _, rule in rules] == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
    assert len(whole["softgate_scales"]) == 18
    assert same(resumed["softgate_scales"], whole["softgate_scales"])
    assert same(resumed["state_dict"], whole["state_dict"])


def test_a_schedule_is_logged_by_step_and_epoch_and_scales_come_back_with_the_network(tmp_path):
    train(composed(*TINY, *RULE, "readout.scale=channel", "trainer.log_every_n_steps=1", directory=tmp_path))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    mixes = [float(row["surrogate/mix_step"]) for row in rows if row["surrogate/mix_step"]]
    assert mixes == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
    ends = [(float(row["surrogate/mix"]), float(row["surrogate/on"])) for row in rows if row["surrogate/mix"]]
    assert ends == [pytest.approx((1 / 3, 1)), pytest.approx((5 / 6, 1))]
    assert json.loads((tmp_path / "summary.json").read_text())["surrogate/temperature"] > 0.3
    assert (tmp_path / "grids" / "epoch=001.png").is_file()
    path = tmp_path / "checkpoints" / "last.ckpt"
    kept = torch.load(path, weights_only=True)["softgate_scales"]
    assert same(restore(path)[0].sites.scales.state_dict(), kept)
    assert same(SoftgateModule.load_from_checkpoint(path).sites.scales.state_dict(), kept)
    assert not any("scale" in key for key in torch.load(path, weights_only=True)["state_dict"])


def test_given_weights_are_calibrated_before_training_and_read_out_by_channel(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pl.Trainer, "fit", lambda self, module, **kwargs: seen.append(module.sites.scales.copy()))
    state = build.module(c := configured(*TINY, directory=tmp_path), build.data(c)).net.state_dict()
    torch.save(state, tmp_path / "weights.pt")
    words = (
        "surrogate.scale=channel",
        f"model.weights='{tmp_path}/weights.pt'",
        "model.stem=small",
        "model.classes=data",
    )
    train(composed(*TINY, *words, directory=tmp_path / "run"))
    assert [len(scales) for scales in seen] == [18]
    assert all(scale.count == 32 for scale in seen[0].values())


def test_scales_for_a_readout_by_another_rule_are_dropped_afterwards(tmp_path):
    config = configured(*TINY, "model=squeezenet1_1", directory=tmp_path)
    data = build.data(config)
    module, readout = build.module(config, data), softgate.Surrogate(scale="channel")
    with scaled(module, data, readout):
        assert len(module.sites.scales) == len(module.sites.table())
    assert not module.sites.scales
    softgate.calibrate(module.net, [torch.randn(4, 3, 16, 16)], readout)
    before = module.sites.scales.state_dict()
    with scaled(module, data, readout):
        assert not same(module.sites.scales.state_dict(), before)
    assert same(module.sites.scales.state_dict(), before)


def test_training_is_bit_identical_with_diagnostics_on_and_off_and_they_are_written(tmp_path):
    words = (*TINY, "callbacks.grids.every_n_epochs=0", "surrogate.scale=channel", "callbacks.diagnostics.images=6")
    _, looked = fit(tmp_path / "on", *words)
    _, plain = fit(
        tmp_path / "off", *words, "callbacks.diagnostics.every_n_epochs=0", "callbacks.guard.every_n_steps=0"
    )
    assert same(looked["state_dict"], plain["state_dict"])
    assert same(looked["softgate_scales"], plain["softgate_scales"])
    assert not (tmp_path / "off" / "diagnostics.csv").exists()
    with (tmp_path / "on" / "diagnostics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "site", "kind", "cosine", "norm_ratio", "gate_mean", "dead", "revived"]
    assert [row["epoch"] for row in rows] == ["0"] * 18 + ["1"] * 18
    assert all(0 < float(row["cosine"]) < 1 and float(row["norm_ratio"]) > 0 for row in rows)
    assert rows[0]["revived"] == ""
    assert rows[18]["revived"] != ""
    with (tmp_path / "on" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["sites/cosine"]]
    found = sorted(float(row["cosine"]) for row in rows[18:])
    assert float(logged[1]["sites/cosine"]) == pytest.approx((found[8] + found[9]) / 2, rel=1e-6)


def diverging(directory: Path, *words: str) -> str:
    with pytest.raises(softgate.Diverged) as ended:
        train(composed(*QUIET, *words, directory=directory))
    assert "\n" not in str(ended.value)
    return str(ended.value)


def test_an_absurd_learning_rate_ends_the_run_with_a_sentence_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    original = SoftgateModule.training_step

    def spoilt(self: SoftgateModule, batch: Any, index: int) -> Any:
        return original(self, batch, index) * (1e30 if self.current_epoch == 1 else 1)

    monkeypatch.setattr(SoftgateModule, "training_step", spoilt)
    said = diverging(tmp_path, "optim.lr=1e30", "optim.warmup=1.0", "trainer.max_epochs=3")
    assert said.startswith("training diverged: at step ")
    for words in ("optim.lr=1e+30", "Sigmoid(temperature=0.3)", "surrogate.gain=matched", "schedule=warmup"):
        assert words in said
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "diverged"
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_without_the_guard_weights_that_are_no_numbers_are_not_saved_either(tmp_path, monkeypatch):
    original = SoftgateModule.training_step

    def spoilt(self: SoftgateModule, batch: Any, index: int) -> Any:
        return original(self, batch, index) * (float("nan") if self.current_epoch == 1 else 1)

    monkeypatch.setattr(SoftgateModule, "training_step", spoilt)
    off = (
        "callbacks.guard.every_n_steps=0",
        "callbacks.grids.every_n_epochs=0",
        "callbacks.diagnostics.every_n_epochs=0",
    )
    train(composed(*QUIET, *off, "trainer.max_epochs=2", directory=tmp_path))
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_a_loss_over_its_limit_ends_the_run_at_the_first_such_step_and_names_both(tmp_path):
    said = diverging(tmp_path, "callbacks.guard.max_loss=0.01", "callbacks.guard.every_n_steps=2")
    assert "at step 1 the training loss was" in said
    assert "callbacks.guard.max_loss=0.01" in said
    assert not list(tmp_path.glob("checkpoints/*.ckpt"))


def test_weights_that_the_last_step_spoilt_are_not_saved(tmp_path, monkeypatch):
    def spoil(self: SoftgateModule, outputs: Any, batch: Any, index: int) -> None:
        if self.global_step == 6:
            with torch.no_grad():
                next(self.net.parameters()).fill_(float("nan"))

    monkeypatch.setattr(SoftgateModule, "on_train_batch_end", spoil)
    assert "at step 6 a weight is no finite number any more" in diverging(tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_weights_that_a_step_within_an_epoch_spoilt_are_not_saved_either(tmp_path, monkeypatch):
    def spoil(self: SoftgateModule, outputs: Any, batch: Any, index: int) -> None:
        if self.global_step == 4:  # a module comes after its callbacks: step 4 is saved by now
            with torch.no_grad():
                next(self.net.parameters()).fill_(float("nan"))

    monkeypatch.setattr(SoftgateModule, "on_train_batch_end", spoil)
    diverging(tmp_path, "callbacks.checkpoint.every_n_steps=1")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_an_error_saves_the_weights_only_where_they_are_numbers_and_training_had_begun(tmp_path):
    def saved(error: BaseException | None = None, step: int = 3, weight: float = 1.0, world: int = 1) -> list[Any]:
        paths: list[Any] = []
        state = SimpleNamespace(fn="fit")
        trainer = SimpleNamespace(state=state, global_step=step, world_size=world, save_checkpoint=paths.append)
        module = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(module.weight, weight)
        SaveOnException(tmp_path / "exception.ckpt").on_exception(trainer, module, error or RuntimeError())
        return paths

    assert saved() == [tmp_path / "exception.ckpt"]
    assert saved(weight=math.nan) == saved(step=0) == saved(world=2) == []
    for error in (softgate.Diverged("it did"), KeyboardInterrupt(), CannotWrite("full")):
        assert saved(error) == []


def guarded(losses: list[float], accumulate: int = 1, **options: Any) -> str:
    """What the guard says at the end of an epoch of these losses, one a step; empty where it lets them pass."""
    guard, module = DivergenceGuard(GuardConfig(**options)), torch.nn.Linear(1, 1)
    module.device, module.optim, module.sites = torch.device("cpu"), None, SimpleNamespace(rule=None)
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    for step, loss in enumerate(losses, 1):
        trainer = SimpleNamespace(accumulate_grad_batches=accumulate, global_step=step, strategy=strategy)
        trainer.world_size, trainer.global_rank = 1, 0
        guard.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, None, 0)
    try:
        guard.on_train_epoch_end(trainer, module)
    except softgate.Diverged as ended:
        return str(ended)
    return ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_no_number_is_told_also_where_the_weights_still_are(bad):
    assert f"at step 2 the training loss was {bad}, " in guarded([1.0, bad, math.nan, 1.0])
    assert guarded([1.0, 1e30]) == ""


def test_the_losss_limit_is_of_the_whole_loss_where_batches_are_accumulated():
    assert "the training loss was 1.2 (callbacks.guard.max_loss=1)" in guarded([0.4, 0.6], accumulate=2, max_loss=1)
    assert guarded([0.6, 0.6], max_loss=1) == guarded([0.4, 0.4], accumulate=2, max_loss=1) == ""


def test_the_guard_reads_the_device_only_every_n_steps(monkeypatch):
    reads = []
    monkeypatch.setattr(DivergenceGuard, "_read", lambda self, *args, **kwargs: reads.append(args))
    guard = DivergenceGuard(GuardConfig(every_n_steps=4))
    trainer = type("T", (), {"accumulate_grad_batches": 1, "global_step": 0})
    for index in range(9):
        guard.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0, device="meta")}, None, index)
    assert len(reads) == 2  # and on the meta device any step that waited for a value would have failed


def test_a_compiled_network_runs_eagerly_while_its_schedule_moves(tmp_path):
    torch._dynamo.reset()
    words = ("surrogate.schedule.mix={start: 0, end: 1, until: 4, unit: step}", "compile=true")
    cfg = configured(*QUIET, *words, directory=tmp_path)
    module = build.module(cfg, build.data(cfg))
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    with pytest.warns(softgate.SoftgateWarning, match="while surrogate.schedule moves"):
        module.setup("fit")
    module.net.compile(backend=backend)
    module.eval()
    for moving in (True, True, False, False):
        module.moving = moving
        with torch.no_grad():
            module(torch.randn(2, 3, 16, 16))
        assert bool(compiled) == (not moving)
