"""Mistakes of a command are one sentence before anything is loaded, and its exit status says which kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import softgate
from configs import CONF, ROOT, TINY, composed, configured
from softgate import SoftgateError
from softgate.cli import command, exits
from softgate.errors import CannotWrite, Diverged, Stopped
from softgate.training import build
from softgate.training.train import train


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("surrogate.gate.temperature=0", r"surrogate\.gate\.temperature=0: a finite number > 0"),
        ("surrogate.gate.temperature=nan", r"surrogate\.gate\.temperature=nan"),
        ("surrogate.gate.name=sigmod", r"surrogate\.gate\.name=sigmod.*Did you mean 'sigmoid'"),
        ("surrogate.mix=2", r"surrogate\.mix=2: a number from 0 to 1"),
        ("readout.gain=loud", r"readout: surrogate\.gain=loud"),
        ("ema=2", r"ema=2: null or a decay"),
        ("seed=-1", r"seed=-1"),
        ("compile=maybe", r"compile=maybe: true or false"),
        ("model.name=resnet81", r"model\.name=resnet81.*Did you mean 'resnet18'"),
        ("trainer.max_epochs=0", r"trainer\.max_epochs=0"),
        ("callbacks.grids.every_n_epochs=x", r"callbacks\.grids\.every_n_epochs=x"),
        ("plugins=[no_such_module]", r"plugins: no_such_module cannot be imported"),
        ("seed=99999999999", r"seed=99999999999"),
        ("trainer.limit_train_batches=0", r"trainer\.limit_train_batches=0: there is nothing to train on"),
        ("trainer.max_epochs=-1", r"trainer\.max_epochs=-1.*max_steps or max_time"),
        ("surrogate.sites.kinds=[relus]", r"surrogate\.sites\.kinds=relus.*Did you mean 'relu'"),
        ("surrogate.sites.depth=[1,0]", r"surrogate\.sites\.depth=\[1, 0\]: two numbers"),
        ("surrogate.schedule.mix=1", r"surrogate\.schedule\.mix=1: a dict such as"),
        ("surrogate.schedule.mix={start: 0, end: 1}", r"surrogate\.schedule\.mix=.*it lacks until"),
        ("surrogate.schedule.on={until: -3}", r"surrogate\.schedule\.on: begin=0\.0, until=-3"),
        ("surrogate.scale=layer", r"surrogate\.scale=layer.*allowed: channel, global"),
        ("callbacks.guard.max_loss=-1", r"callbacks\.guard\.max_loss=-1: null or a number > 0"),
        ("callbacks.guard.every_n_steps=x", r"callbacks\.guard\.every_n_steps=x"),
        ("callbacks.diagnostics.images=1", r"callbacks\.diagnostics\.images=1: a whole number >= 2"),
        ("seed=true", r"seed=True: a whole number"),
        ("callbacks.grids=null", r"callbacks\.grids=None: it has options under it"),
        ("callbacks.paths=3", r"callbacks\.paths=3: it has options under it"),
        ("sweep.resume=true", r"sweep\.resume=true: it is for sweeps"),
        ("sweep.resume=1", r"sweep\.resume=1: true or false"),
        ("optim.lr=fast", r"optim\.lr=fast: a number > 0"),
        ("data.batch_size=0", r"data\.batch_size=0: a whole number >= 1"),
        ("model.stem=tiny", r"model\.stem=tiny.*allowed: auto, cifar"),
        ("model.num_classes=ten", r"model\.num_classes=ten: a whole number >= 1"),
        ("model.new_head=1", r"model\.new_head=1: true or false"),
        ("model.weights=IMAGENET", r"model\.weights=IMAGENET: no such file, and resnet18 has only IMAGENET1K_V1"),
        ("trainer.max_epochs=true", r"trainer\.max_epochs=True: a whole number >= 1"),
        ("trainer.limit_train_batches=foo", r"trainer\.limit_train_batches=foo: a whole number >= 0, a share"),
        ("trainer.limit_val_batches=1.5", r"trainer\.limit_val_batches=1\.5: a whole number >= 0, a share"),
        ("trainer.accumulate_grad_batches=0", r"trainer\.accumulate_grad_batches=0: a whole number >= 1"),
        ("trainer.gradient_clip_algorithm=l2", r"trainer\.gradient_clip_algorithm=l2: norm or value or null"),
        ("trainer.deterministic=1", r"trainer\.deterministic=1: true or false or null or warn"),
        ("trainer.precision=8", r"trainer\.precision=8.*allowed: 16-mixed"),
        ("trainer.strategy=dpp", r"trainer\.strategy=dpp.*Did you mean 'ddp'"),
        ("trainer.accelerator=gpus", r"trainer\.accelerator=gpus.*Did you mean 'gpu'"),
        ("trainer.devices=0", r"trainer\.devices=0: a whole number >= 1"),
        ("trainer.devices=abc", r"trainer\.devices=abc: a whole number >= 1"),
        ("trainer.devices=[]", r"trainer\.devices=\[\]: a whole number >= 1"),
        ("+surogate=none", r"option=surogate.*Did you mean 'surrogate'"),
    ],
)
def test_a_wrong_value_is_one_sentence_before_any_data_is_loaded(word, message, monkeypatch):
    monkeypatch.setattr(build, "ImageData", None)
    with pytest.raises(SoftgateError, match=message):
        train(composed(*TINY, word, directory=Path("unused")))


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SoftgateError, match=r"trainer\.accelerator=gpu: this machine has no usable GPU"):
        configured("trainer=gpu", directory=Path("x"))


def test_lightnings_own_refusals_are_one_sentence(tmp_path):
    cfg = configured(*TINY, "trainer.plugins=[nonsense]", directory=tmp_path)
    with pytest.raises(SoftgateError, match="trainer: Found invalid type for plugin nonsense"):
        build.trainer(cfg, tmp_path)


def test_num_classes_must_fit_the_data(tmp_path):
    cfg = configured(*TINY, "model.num_classes=7", directory=tmp_path)
    with pytest.raises(SoftgateError, match=r"model\.num_classes=7: the data has 10 classes"):
        build.module(cfg, build.data(cfg))


def test_a_network_the_rule_does_not_cover_is_refused_and_trains_without_one(tmp_path):
    words = (*TINY, "model.name=mobilenet_v3_small", "data.size=32")
    cfg = configured(*words, directory=tmp_path)
    with pytest.raises(softgate.UnreachableSites, match="hardswish"):
        build.module(cfg, build.data(cfg))
    plain = configured(*words, "surrogate=none", directory=tmp_path)
    assert build.module(plain, build.data(plain)).rule.mix == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.max_epoch=3"], ["trainer.max_epoch: there is no such option", "Did you mean trainer.max_epochs"]),
        (
            ["model=resnet81"],
            ["model=resnet81: there is no such choice; allowed:", "densenet121", "Did you mean model=resnet18"],
        ),
        (["surrogate.gate.temperature=["], ["surrogate.gate.temperature=[: cannot be read as KEY=VALUE"]),
        (["surrogate.schedule.mix={start: 0, end: 2, until: 5}"], ["surrogate.schedule.mix: 2: a number from 0 to 1"]),
        (
            ["experiment=arms"],
            ["experiment=arms: there is no such choice; allowed: alignment/arms, generalization/digits"],
        ),
        (["experiment=arms"], ["imagenette, paper_figures, study/A", "Did you mean experiment=alignment/arms?"]),
        (["experiment=study/a"], ["experiment=study/a: there is no such choice", "Did you mean experiment=study/"]),
        (
            ["hydra/launcher=slrm"],
            ["hydra/launcher=slrm: there is no such choice", "Did you mean hydra/launcher=slurm?"],
        ),
        (["schedule=warm"], ["schedule=warm: there is no such choice; allowed: ", "Did you mean schedule=warmup"]),
        (["seed=0,1"], ["seed=0,1: several values make a sweep; add -m"]),
        (["hydra.launcher.njobs=2"], ["allowed under hydra.launcher: grace, jobs_per_gpu, n_jobs.", "n_jobs?"]),
        (["surrogate.schedule.mix.end=2"], ["allowed under surrogate.schedule: mix, on, temperature."]),
        (
            ["name=a=b[1]"],
            ["cannot be read as KEY=VALUE", """Quote a value that has such marks twice: 'name="a=b[1]"'."""],
        ),
        (["logger=[wandb,tensor_board]"], ["logger=tensor_board: there is no", "Did you mean 'tensorboard'"]),
        (["logger=null"], ["logger=null: one of its choices is needed: csv, tensorboard, wandb"]),
        (["readout=normal"], ["surrogate=normal: there is no such choice", "Did you mean surrogate=normal_cdf"]),
        (["data=folder"], ["data.root=data: there is no such folder"]),
    ],
)
def test_a_mistyped_command_ends_with_one_sentence_and_status_2(words, said, tmp_path, typed):
    status, errors = typed("train.py", *words)
    assert status == exits.MISTAKE
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    for part in said:
        assert part in lines[0]
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("*.ckpt"))


HALF = "half/train/cat/1.jpg"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=folder", "data.root=gone"], "data.root=gone: there is no such folder; expected gone/{train,val}/CLASS"),
        (["data=folder", "data.root=half"], "data.root=half: it has no folder 'val'; expected half/{train,val}/CLASS"),
        (["data=imagenet", "data.root=half"], "data.root=half: it has no folder 'val'"),
        (["data=imagenette", "data.root=gone"], "data.root=gone: there is no such folder; set data.root"),
        (["data=imagewoof", "data.root=half"], "data.root=half: there is no imagewoof2-160/ in it; set data.root"),
        (["data=cifar10", "data.root=gone"], "data.root=gone: there is no such folder; it should hold cifar10"),
        (["data=torchvision", "data.name=DTD", "data.root=gone"], "data.root=gone: there is no such folder"),
    ],
)
def test_data_that_is_not_there_is_told_before_a_directory_is_made(words, said, typed, tmp_path, monkeypatch):
    (tmp_path / HALF).parent.mkdir(parents=True)
    (tmp_path / HALF).touch()
    monkeypatch.setitem(sys.modules, "softgate.training.train", None)  # Lightning comes with it, which takes seconds
    status, errors = typed("train.py", *words)
    assert status == exits.MISTAKE
    assert errors.startswith(f"error: {said}")
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


@pytest.mark.parametrize("given", [False, True])
def test_what_only_the_data_can_tell_leaves_no_directory_but_a_given_one(given, tmp_path):
    words = ["data=digits", "data.classes=[3,11]", *["hydra.run.dir=mine"] * given]
    line = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == exits.MISTAKE
    assert done.stderr.startswith("error: data.classes=[3, 11]: '11': it is not found in the data set, with 10")
    assert done.stderr.count("\n") == 1
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")] == ["mine/.hydra"] * given


def test_a_mistyped_command_is_as_short_in_a_process_of_its_own(tmp_path):
    line = [sys.executable, str(ROOT / "train.py"), "trainer.max_epoch=3"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == exits.MISTAKE
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (
            "train.py",
            ["alignment=full", "alignment.images=20"],
            "error: alignment=full: softgate train has no group alignment, it is one of softgate evaluate; allowed "
            "groups: callbacks, data, debug, experiment, logger, model, optim, schedule, surrogate, trainer. Did you "
            "mean callbacks=alignment?\n",
        ),
        ("train.py", ["no.such=1", "compare=quick"], "compare=quick: softgate train has no group compare"),
        ("train.py", ["-m", "compare=quick,full"], "compare=quick,full: softgate train has no group compare"),
        ("evaluate.py", ["optim=sgd", "runs=x"], "optim=sgd: softgate evaluate has no group optim, it is one of"),
        ("evaluate.py", ["no.such=1", "callbacks=paths"], "callbacks=paths: softgate evaluate has no group callbacks"),
    ],
)
def test_a_group_of_another_command_is_refused_in_one_sentence(script, words, said, typed):
    status, errors = typed(script, *words)
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_a_command_leaves_the_environment_as_it_was(monkeypatch, before):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    if before is None:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    else:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    command.run(lambda: None, str(CONF), "train")
    assert os.environ.get("HYDRA_FULL_ERROR") == before


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(ZeroDivisionError):
        command.run(broken, str(CONF), "train")


def test_ctrl_c_is_status_130(monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        command.run(interrupted, str(CONF), "train")
    assert ended.value.code == exits.INTERRUPTED


def test_the_message_of_a_loading_process_arrives_without_its_stack_trace(capsys):
    def load(cfg: object) -> None:
        trace = "Caught SoftgateError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        raise SoftgateError(trace + "softgate.errors.SoftgateError: data.root: the image x cannot be read.")

    with pytest.raises(SystemExit) as ended:
        exits.job(load, None)
    assert ended.value.code == exits.MISTAKE
    assert capsys.readouterr().err == "error: data.root: the image x cannot be read.\n"


@pytest.mark.parametrize(
    ("error", "status"), [(SoftgateError("a"), 2), (Diverged("b"), 3), (CannotWrite("c"), 4), (Stopped(15), 143)]
)
def test_each_way_to_end_has_its_exit_status(error, status):
    def ends(cfg):
        raise error

    with pytest.raises(SystemExit) as ended:
        exits.job(ends, None)
    assert ended.value.code == status
