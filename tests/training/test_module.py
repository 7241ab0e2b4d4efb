"""A training run on real digits at 16 px: what it leaves, what it repeats bit for bit, what its options do."""

import copy
import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn

import softgate
from configs import TINY, composed, configured
from softgate import SoftgateError
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule, build, networks, tracking
from softgate.training.plugins import StepSeeds
from softgate.training.train import train
from trained import BARE_GRIDS, equal, fitted


def test_a_run_leaves_everything_a_comparison_needs(run):
    for name in (
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "summary.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    ):
        assert (run / name).is_file(), name
    for epoch in (0, 1):
        assert (run / "grids" / f"epoch=00{epoch}.png").is_file()
    raw = torch.load(run / "grids" / "epoch=001.pt", weights_only=True)
    assert raw["soft"].shape == raw["hard"].shape == (2, 3, 3, 16, 16)
    assert not torch.equal(raw["soft"], raw["hard"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert {
        "val/acc",
        "val/acc5",
        "val/loss",
        "train/loss",
        "train/acc",
        "best/epoch",
        "best/val/acc",
    } <= summary.keys()


def test_same_seed_same_weights_bit_for_bit_and_another_seed_others(run, tmp_path):
    first = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert equal(first, fitted(tmp_path / "again")[0])
    assert not equal(first, fitted(tmp_path / "other", "seed=1")[0])


def test_training_is_bit_identical_with_grids_on_and_off(run, tmp_path):
    with_grids = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    without, _ = fitted(tmp_path, "callbacks=none")
    assert not (tmp_path / "grids").exists()
    assert equal(with_grids, without)


def test_the_rule_changes_what_is_learnt(run, tmp_path):
    soft = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not equal(soft, fitted(tmp_path, "surrogate=none")[0])


def test_surrogate_none_is_plain_training_of_the_bare_network(tmp_path):
    cfg = configured(*TINY, "surrogate=none", directory=tmp_path)
    data = build.data(cfg)
    pl.seed_everything(0, verbose=False)
    module = build.module(cfg, data)
    bare = copy.deepcopy(module.net)
    softgate.detach(bare)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    module.net.train()
    bare.train()
    nn.functional.cross_entropy(module.net(x), y).backward()
    nn.functional.cross_entropy(bare(x), y).backward()
    for p, q in zip(module.net.parameters(), bare.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_the_validation_loss_is_the_cross_entropy_without_smoothing(tmp_path):
    cfg = configured(*TINY, "model=squeezenet1_1", "optim.label_smoothing=0.5", directory=tmp_path)
    module = build.module(cfg, build.data(cfg)).eval()
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    module.validation_step((x, y), 0)
    torch.testing.assert_close(module.val_loss.compute(), nn.functional.cross_entropy(module(x), y))
    assert module.criterion(module(x), y) != nn.functional.cross_entropy(module(x), y)


def test_what_a_step_draws_is_a_function_of_seed_process_epoch_and_batch():
    def drawn(seed: int = 0, rank: int = 0, epoch: int = 0, batch: int = 0) -> tuple[float, ...]:
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeeds(seed).on_train_batch_start(trainer, None, None, batch)
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002  (the global state is what is looked at)

    random_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  (the global state is what is looked at)
    with torch.random.fork_rng():
        cases = [{}, {"seed": 1}, {"rank": 1}, {"epoch": 1}, {"batch": 1}]
        found = [drawn(**case) for case in cases]
        assert [drawn(**case) for case in cases] == found
    random.setstate(random_state)
    np.random.set_state(numpy_state)  # noqa: NPY002  (the global state is what is looked at)
    for numbers in zip(*found, strict=True):  # of torch, NumPy and Python
        assert len(set(numbers)) == len(cases)


def test_checkpoints_hold_plain_data_and_load_through_lightning(run):
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    json.dumps(checkpoint["hyper_parameters"])
    json.dumps(checkpoint["datamodule_hyper_parameters"])
    module = SoftgateModule.load_from_checkpoint(path)
    assert module.rule == Surrogate()
    assert equal(module.state_dict(), checkpoint["state_dict"])


def test_a_trained_checkpoint_loads_into_a_bare_torchvision_model(tmp_path):
    state, _ = fitted(tmp_path, "model.stem=imagenet", "data.size=32")
    bare = torchvision.models.resnet18(num_classes=10)
    bare.load_state_dict({key.removeprefix("net."): value for key, value in state.items()})


def test_ema_weights_are_validated_and_saved(tmp_path, run):
    state, summary = fitted(tmp_path, "ema=0.5")
    plain = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not equal(state, plain)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    # The weights that are trained are the ones of the run without EMA.
    assert equal(checkpoint["current_model_state"], plain)
    assert "val/acc" in summary


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_the_best_checkpoint_holds_the_validated_weights_and_nothing_to_go_on_with(tmp_path, ema):
    state, _ = fitted(tmp_path, f"ema={ema}", "trainer.max_epochs=1", "callbacks=none", "optim.lr=0.01")
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert equal(best["state_dict"], state)  # of the only epoch: with ema, the average in both
    assert not {"optimizer_states", "current_model_state", "averaging_state"} & best.keys()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["state"]
    assert ("current_model_state" in last) == (ema != "null")
    weights = sum(value.nbytes for value in state.values())
    assert (tmp_path / "checkpoints" / "best.ckpt").stat().st_size < 1.1 * weights


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim=adamw", "optim.label_smoothing=0.1"),
        ("optim.mixup=0.2", "optim.cutmix=1.0"),
        ("trainer.precision=bf16-mixed",),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5", "channels_last=false"),
    ],
    ids=["adamw", "mixup", "bf16", "accumulate"],
)
def test_training_options_run_and_give_finite_metrics(tmp_path, overrides):
    state, summary = fitted(tmp_path, "trainer.max_epochs=1", *overrides)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert 0 <= summary["val/acc"] <= 1


@pytest.mark.slow
def test_a_compiled_network_trains_like_an_eager_one(tmp_path):
    overrides = ("trainer.max_epochs=1", "optim.lr=0.001")
    eager, _ = fitted(tmp_path / "eager", *overrides)
    compiled, _ = fitted(tmp_path / "compiled", *overrides, "compile=true")
    assert eager.keys() == compiled.keys()
    for key in eager:
        assert torch.allclose(eager[key], compiled[key], rtol=1e-2, atol=1e-3), key


def test_an_exception_leaves_its_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    def broken(self: SoftgateModule, batch: Any, index: int) -> Tensor:
        if self.global_step == 2:
            raise RuntimeError("out of luck")
        return original(self, batch, index)

    original = SoftgateModule.training_step
    monkeypatch.setattr(SoftgateModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        fitted(tmp_path)
    state = SoftgateModule.load_from_checkpoint(tmp_path / "checkpoints" / "exception.ckpt").state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())


def test_an_exception_during_validation_does_not_swap_trained_and_averaged_weights(tmp_path, monkeypatch):
    def broken(self: SoftgateModule, batch: Any, index: int) -> None:
        if self.trainer.current_epoch == 1 and not self.trainer.sanity_checking:
            raise RuntimeError("out of luck")

    fitted(tmp_path / "whole", "ema=0.5", "callbacks=none")
    monkeypatch.setattr(SoftgateModule, "validation_step", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        fitted(tmp_path / "broken", "ema=0.5", "callbacks=none")
    paths = [tmp_path / "whole" / "checkpoints" / "last.ckpt", tmp_path / "broken" / "checkpoints" / "exception.ckpt"]
    load = [torch.load(path, weights_only=True) for path in paths]
    assert load[0]["global_step"] == load[1]["global_step"]
    assert equal(load[0]["state_dict"], load[1]["state_dict"])
    assert equal(load[0]["current_model_state"], load[1]["current_model_state"])


def test_epochs_without_validation_have_their_checkpoint_and_grid_too(tmp_path):
    words = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "trainer.limit_train_batches=1")
    fitted(tmp_path, *words, "callbacks.grids.every_n_epochs=2", *BARE_GRIDS)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == ["epoch=000.png", "epoch=002.png"]


def test_a_network_that_no_rule_covers_trains_without_one_and_shows_the_gradient_alone(tmp_path, monkeypatch):
    def shrinking(architecture: Any, num_classes: int, option: str = "model") -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Hardshrink(), nn.Flatten(), nn.Linear(256, num_classes))

    monkeypatch.setattr(networks, "build", shrinking)
    with pytest.warns(softgate.SoftgateWarning, match=r"no soft read-out, the gradient alone: .*hardshrink"):
        fitted(tmp_path, "surrogate=none", "trainer.max_epochs=1", "data.size=32")
    raw = torch.load(tmp_path / "grids" / "epoch=000.pt", weights_only=True)
    assert "hard" in raw
    assert "soft" not in raw


def test_double_precision_trains_and_is_read_out(tmp_path):
    fitted(tmp_path, "trainer.precision=64-true", "trainer.max_epochs=1")
    assert (tmp_path / "grids" / "epoch=000.png").is_file()


def test_fast_dev_run_and_barebones_write_no_checkpoint_and_no_grid(tmp_path):
    for word in ("debug=fast_dev_run", "trainer.barebones=true"):
        train(composed(*TINY, word, directory=tmp_path))
        assert not (tmp_path / "grids").exists()
        assert not (tmp_path / "checkpoints").exists()


def test_wandb_without_a_login_is_one_sentence_before_data_is_read(tmp_path, monkeypatch):
    import wandb

    def refuse(**kwargs: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(tracking, "_trouble", lambda: None)  # the server answers
    monkeypatch.setattr(build.ImageData, "setup", None)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(SoftgateError, match=r"logger=wandb: api_key not configured.*logger\.wandb\.offline=true"):
        fitted(tmp_path, "logger=wandb")


@pytest.mark.parametrize("word", ["trainer.val_check_interval=1000", "trainer.limit_train_batches=0.0001"])
def test_what_lightning_refuses_only_in_fit_is_one_sentence(tmp_path, word):
    words = [w for w in TINY if not w.startswith("trainer.limit")]
    with pytest.raises(SoftgateError, match="trainer: "):
        train(composed(*words, word, directory=tmp_path))
