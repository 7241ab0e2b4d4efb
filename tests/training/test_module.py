"""The LightningModule, its optimiser and the callbacks, on real digits at 16 px."""

import copy
import csv
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

import softgate
from configs import TINY, composed, container
from softgate import SoftgateError
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule, build, optim, tracking
from softgate.training.callbacks.film import Film, spread
from softgate.training.callbacks.grids import SOFT, PullbackGrids, grid_targets
from softgate.training.callbacks.media import COLUMNS
from softgate.training.train import train
from wandb_file import read_run

BARE_GRIDS = ("callbacks.grids.raw=false", "callbacks.grids.film=false", "callbacks.grids.early=false")
GRID_MISTAKES = [
    *(("classes", "a"), ("extra_targets", None), ("every_n_epochs", 1.5), ("chunk", 0)),
    *(("kind", "rwa"), ("scale", "x"), ("film", 1)),
]
SETTINGS = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "warmup": 0.1, "label_smoothing": 0.0}


def fitted(directory: Path, *overrides: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains as train.py does; gives the weights of last.ckpt and the summary."""
    summary = train(composed(*TINY, *overrides, directory=directory))
    state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state, summary


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    fitted(directory)
    return directory


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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
    cfg = container(*TINY, "surrogate=none", directory=tmp_path)
    data = build.data(cfg)
    pl.seed_everything(0, verbose=False)
    module = build.module(cfg, data)
    bare = copy.deepcopy(module.net)
    bare_sites = bare.__dict__["forward"].__self__.sites
    bare_sites.detach()
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    module.net.train()
    bare.train()
    nn.functional.cross_entropy(module.net(x), y).backward()
    nn.functional.cross_entropy(bare(x), y).backward()
    for p, q in zip(module.net.parameters(), bare.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


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


def test_norms_and_biases_have_no_weight_decay():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    built = optim.build_optimizer(net, SETTINGS)
    decays = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert len(decays) == len(list(net.parameters()))
    for name, p in net.named_parameters():
        assert decays[id(p)] == (0.01 if name in ("0.weight", "2.weight") else 0.0), name


def test_warmup_climbs_linearly_and_cosine_ends_at_zero():
    net = nn.Linear(2, 2)
    built = optim.build_optimizer(net, SETTINGS)
    schedule = optim.warmup_cosine(built, steps=100, warmup=0.1)
    rates = []
    for _ in range(101):
        rates.append(built.param_groups[0]["lr"])
        built.step()
        schedule.step()
    rises = [b - a for a, b in pairwise(rates[:11])]
    assert max(rises) - min(rises) < 1e-12
    assert rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05, abs=1e-6)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.5),
        ("weight_decay", -1),
        ("warmup", 2),
        ("label_smoothing", "a"),
    ],
)
def test_optimiser_options_out_of_range_are_named(key, value):
    with pytest.raises(SoftgateError, match=rf"optim\.{key}={value}"):
        optim.check({**SETTINGS, key: value})


def test_extra_targets_are_drawn_once_from_the_other_classes():
    labels = torch.tensor([0, 2, 4, 6, 8])
    targets = grid_targets(labels, 10, 2, seed=314)
    assert targets[:5] == [0, 2, 4, 6, 8]
    assert len(set(targets)) == 7
    assert targets == grid_targets(labels, 10, 2, seed=314)
    with pytest.raises(SoftgateError, match=r"extra_targets=6: there are 5"):
        grid_targets(labels, 10, 6, seed=0)


def test_grids_come_every_n_epochs_and_after_the_last(tmp_path):
    overrides = ("trainer.max_epochs=6", "trainer.limit_train_batches=1", "callbacks.grids.every_n_epochs=4")
    fitted(tmp_path, *overrides, "callbacks.grids.raw=false", "callbacks.grids.early=false")
    names = sorted(path.name for path in (tmp_path / "grids").iterdir())
    assert names == ["epoch=000.png", "epoch=004.png", "epoch=005.png", "film.gif", "film.png", "film.pt"]


def test_early_epochs_have_grids_at_powers_of_two():
    cadence = PullbackGrids("x", Surrogate().to_dict(), every_n_epochs=10)
    assert [epoch for epoch in range(31) if cadence.due(epoch)] == [0, 1, 2, 4, 8, 10, 20, 30]
    steady = PullbackGrids("x", Surrogate().to_dict(), every_n_epochs=10, early=False)
    assert [epoch for epoch in range(31) if steady.due(epoch)] == [0, 10, 20, 30]


def history(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in record.history.item:
        *outer, last = list(item.nested_key) or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def test_grids_go_to_tensorboard_and_to_the_offline_wandb_run(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ("logger=[tensorboard,wandb]", "logger.wandb.tags=[a,b]", "callbacks.grids.artifact=true")
    fitted(tmp_path, *words)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert {"grids/pullbacks", "grids/film"} <= set(events.Tags()["images"])
    assert {"val/acc", "grids/seconds", "grids/flips/soft"} <= set(events.Tags()["scalars"])
    steps = [event.step for event in events.Scalars("val/acc")]
    assert [event.step for event in events.Images("grids/pullbacks")] == steps
    assert [event.step for event in events.Scalars("grids/flips/hard")] == steps
    encoded = io.BytesIO(events.Images("grids/pullbacks")[0].encoded_image_string)
    with Image.open(encoded) as logged, Image.open(tmp_path / "grids" / "epoch=000.png") as saved:
        assert logged.convert("RGB").tobytes() == saved.convert("RGB").tobytes()
    caption = events.Tensors("grids/caption/text_summary")[1].tensor_proto.string_val[0].decode()
    assert caption.startswith("epoch 1: trained with Sigmoid")

    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    records = read_run(files[0])
    rows = [history(r) for r in records if r.WhichOneof("record_type") == "history"]
    with_grid = [row for row in rows if "grids/pullbacks" in row]
    assert [row["epoch"] for row in with_grid] == [0, 1]
    for row in with_grid:  # media and scalars in one step
        assert {"grids/cells", "val/acc", "grids/flips/soft", "trainer/global_step", "grids/seconds"} <= row.keys()
        assert row["grids/pullbacks"]["caption"].startswith(f"epoch {row['epoch']}: ")
        picture = next(tmp_path.glob("wandb/offline-run-*/files")) / row["grids/pullbacks"]["path"]
        assert picture.read_bytes()[:4] == b"\x89PNG"
    (table,) = [
        json.loads(p.read_text()) for p in tmp_path.glob("wandb/offline-run-*/files/" + row["grids/cells"]["path"])
    ]
    assert table["columns"] == list(COLUMNS)
    raw = torch.load(tmp_path / "grids" / "epoch=001.pt", weights_only=True)
    assert len(table["data"]) == 2 * len(raw["labels"]) * len(raw["targets"])
    logits = [line[COLUMNS.index("logit before")] for line in table["data"][: len(raw["targets"])]]
    assert logits == pytest.approx(raw["hard/before"][0].tolist())
    assert any("grids/film" in row for row in rows)
    assert (
        sum(r.request.WhichOneof("request_type") == "log_artifact" for r in records)
        + sum(r.WhichOneof("record_type") == "artifact" for r in records)
        >= 2
    )
    (made,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
    assert (made.project, made.display_name, list(made.tags)) == ("softgate", "digits-resnet18-excitation", ["a", "b"])
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
    import wandb

    assert wandb.run is None  # finished: the next job of a sweep starts a run of its own


def test_the_film_has_every_epoch_and_can_be_drawn_anew(run, tmp_path):
    with Image.open(run / "grids" / "film.gif") as moving:
        assert moving.n_frames == 2
    raw = [torch.load(run / "grids" / f"epoch=00{epoch}.pt", weights_only=True) for epoch in (0, 1)]
    found = torch.load(run / "grids" / "film.pt", weights_only=True)
    for epoch in (0, 1):
        assert torch.equal(found["frames"][epoch][SOFT], raw[epoch]["soft"][0, 0].bfloat16())
    for name in ("film.pt", "film.png"):
        (tmp_path / name).write_bytes((run / "grids" / name).read_bytes())
    film = Film(tmp_path)
    film.load(before=99)
    film.draw(f"class '{raw[0]['names'][0]}', over the epochs", "cell")
    assert (tmp_path / "film.png").read_bytes() == (run / "grids" / "film.png").read_bytes()
    film.load(before=1)  # a run resumed after epoch 0
    assert list(film.frames) == [0]
    (tmp_path / "film.pt").write_bytes(b"cut")
    film.load(before=99)
    assert film.draw("", "cell") == []


def test_a_strip_shows_the_first_and_the_last_epoch_and_is_denser_early():
    assert spread(5, 12) == [0, 1, 2, 3, 4]
    chosen = spread(100, 12)
    assert chosen[0] == 0
    assert chosen[-1] == 99
    assert len(chosen) <= 12
    gaps = [b - a for a, b in pairwise(chosen)]
    assert gaps[0] < gaps[-1]


def test_a_full_disk_costs_pictures_and_one_warning_but_no_training(run, tmp_path, monkeypatch):
    def full(path: Path) -> None:
        if "grids" in Path(path).parts:
            raise OSError(28, "No space left on device")
        return original(path)

    original = softgate.files.replacing
    monkeypatch.setattr(softgate.files, "replacing", full)
    with pytest.warns(softgate.SoftgateWarning, match="No space left.*training goes on") as warned:
        state, summary = fitted(tmp_path)
    assert len([w for w in warned if issubclass(w.category, softgate.SoftgateWarning)]) == 1
    assert summary["status"] == "finished"
    assert list((tmp_path / "grids").iterdir()) == []
    assert equal(state, torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def test_ascent_grids_on_a_shared_scale_and_a_logger_without_pictures(run, tmp_path, monkeypatch):
    class Plain(CSVLogger):
        """Takes no pictures."""

    monkeypatch.setattr(build, "loggers", lambda cfg, directory, step: [Plain(directory, name="", version="")])
    words = ("callbacks.grids.kind=ascent", "callbacks.grids.scale=shared", "callbacks.grids.chunk=2")
    state, _ = fitted(tmp_path, *words)
    raw = torch.load(tmp_path / "grids" / "epoch=001.pt", weights_only=True)
    assert raw["kind"] == "ascent"
    assert (raw["soft/after"] > raw["soft/before"]).float().mean() > 0.8
    assert equal(state, torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    costs = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["grids/seconds"]]
    assert len(costs) == 2
    assert all(0 < float(row["grids/share_of_epoch"]) < 1 for row in costs)


def test_a_class_without_a_probe_image_is_named_before_training(tmp_path):
    for split in ("train", "val"):
        for k, name in enumerate("abc"):
            path = tmp_path / "images" / split / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (16, 16), (80 * k, 0, 0)).save(path)
    words = ("data=folder", f"data.root={tmp_path}/images", "data.size=16", "callbacks.grids.classes=3")
    data = build.data(container(*TINY, *words, directory=tmp_path))
    data.val_listing.labels[0] = 1
    with pytest.raises(SoftgateError, match="class 'a' has no validation image"):
        data.probe(3, 0)


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


def test_a_run_ended_by_max_steps_has_a_last_grid(tmp_path):
    words = ("trainer.max_epochs=100", "trainer.max_steps=4", "trainer.limit_train_batches=1")
    fitted(tmp_path, *words, "callbacks.grids.every_n_epochs=50", *BARE_GRIDS)
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == ["epoch=000.png", "epoch=003.png"]


def test_a_network_that_no_rule_covers_trains_without_one_and_shows_the_gradient_alone(tmp_path):
    words = ("model.name=mobilenet_v3_small", "surrogate=none", "trainer.max_epochs=1", "data.size=32")
    with pytest.warns(softgate.SoftgateWarning, match=r"no soft read-out, the gradient alone: .*hardswish"):
        fitted(tmp_path, *words)
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "a"),
        ("extra_targets", None),
        ("every_n_epochs", 1.5),
        ("chunk", 0),
        ("kind", "rwa"),
        ("scale", "x"),
        ("film", 1),
    ],
)
def test_grid_options_of_the_wrong_kind_are_named(key, value):
    with pytest.raises(SoftgateError, match=rf"callbacks\.grids\.{key}={value}"):
        PullbackGrids("x", Surrogate().to_dict(), **{key: value})


def test_a_grid_option_that_cannot_be_is_refused():
    with pytest.raises(SoftgateError, match=r"every_n_epochs=-1"):
        PullbackGrids("x", Surrogate().to_dict(), every_n_epochs=-1)
