"""Forty mistyped commands: each is one sentence that names the option that was meant."""

from pathlib import Path

import pytest

from softgate.cli.words import own_configs

MEANT = {
    "lr=1": "optim.lr",
    "learning_rate=1": "optim.lr",
    "optim.learning_rate=1": "optim.lr",
    "optim.lrr=1": "optim.lr",
    "epochs=3": "trainer.max_epochs",
    "max_epochs=3": "trainer.max_epochs",
    "trainer.epochs=3": "trainer.max_epochs",
    "trainer.max_epoch=3": "trainer.max_epochs",
    "ckpt_path=x": "resume",
    "batch_size=3": "data.batch_size",
    "data.batchsize=3": "data.batch_size",
    "data.bs=3": "data.batch_size",
    "model.batch_size=3": "data.batch_size",
    "gpus=2": "trainer.devices",
    "devices=2": "trainer.devices",
    "precision=16": "trainer.precision",
    "num_workers=2": "data.num_workers",
    "data.workers=2": "data.num_workers",
    "weight_decay=0": "optim.weight_decay",
    "optim.wd=0": "optim.weight_decay",
    "momentum=0": "optim.momentum",
    "warmup=0": "optim.warmup",
    "temperature=1": "surrogate.gate.temperature",
    "surrogate.temperature=1": "surrogate.gate.temperature",
    "mix=1": "surrogate.mix",
    "surrogate.mixx=1": "surrogate.mix",
    "surogate.mix=1": "surrogate.mix",
    "gain=matched": "surrogate.gain",
    "weights=x": "model.weights",
    "model.weight=x": "model.weights",
    "pretrained=true": "model.weights",
    "image_size=3": "data.size",
    "data.sise=32": "data.size",
    "val_split=.1": "data.val_split",
    "download=true": "data.download",
    "sed=1": "seed",
    "compil=true": "compile",
    "callbacks.grid.every_n_epochs=1": "callbacks.grids.every_n_epochs",
    "callbacks.grids.every_n_epoch=1": "callbacks.grids.every_n_epochs",
    "optimizer=adam": "optim",
}


@pytest.mark.parametrize("word", MEANT)
def test_a_key_that_is_none_names_the_one_that_was_meant(word, typed):
    status, said = typed("train.py", word)
    assert status == 2
    assert said.count("\n") == 1
    assert said.rstrip().endswith(f"Did you mean {MEANT[word]}?")


def test_there_are_forty():
    assert len(MEANT) == 40


def test_a_folder_of_configs_beside_the_command_is_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert own_configs([], Path("elsewhere")) == []
    (tmp_path / "conf").mkdir()
    assert own_configs([], Path("elsewhere")) == [f'hydra.searchpath=["file://{tmp_path / "conf"}"]']
    assert own_configs([], tmp_path / "conf") == []
    assert own_configs(["hydra.searchpath=[]"], Path("elsewhere")) == []
