"""Grids and films during training: when they come, where they go, and what a full disk costs."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

import softgate
from configs import TINY, configured
from softgate import SoftgateError
from softgate.surrogate.rule import Surrogate
from softgate.training import build
from softgate.training.callbacks import raw as raw_tensors
from softgate.training.callbacks.config import GridsConfig
from softgate.training.callbacks.film import FRAMES, Film
from softgate.training.callbacks.grids import SOFT, PullbackGrids, grid_targets
from softgate.training.callbacks.media import COLUMNS
from softgate.training.callbacks.raw import RawTensors
from trained import BARE_GRIDS, equal, fitted
from wandb_file import read_run


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
    cadence = PullbackGrids("x", Surrogate(), GridsConfig(every_n_epochs=10))
    assert [epoch for epoch in range(31) if cadence.due(epoch)] == [0, 1, 2, 4, 8, 10, 20, 30]
    steady = PullbackGrids("x", Surrogate(), GridsConfig(every_n_epochs=10, early=False))
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
    assert caption.startswith("epoch 2: trained with Sigmoid")

    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    records = read_run(files[0])
    rows = [history(r) for r in records if r.WhichOneof("record_type") == "history"]
    with_grid = [row for row in rows if "grids/pullbacks" in row]
    assert [row["epoch"] for row in with_grid] == [0, 1]
    for row in with_grid:  # media and scalars in one step
        assert {"grids/cells", "val/acc", "grids/flips/soft", "trainer/global_step", "grids/seconds"} <= row.keys()
        assert row["grids/pullbacks"]["caption"].startswith(f"epoch {row['epoch'] + 1}: ")
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
    assert (made.project, list(made.tags)) == ("softgate", ["a", "b", "digits", "resnet18", "sigmoid"])
    assert made.display_name == "digits-resnet18-excitation-seed0 trainer.max_epochs=2"
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


def test_a_film_and_its_file_end_growing(tmp_path):
    image, film = torch.rand(3, 4, 4), Film(tmp_path)
    sizes = []
    for epoch in range(300):
        film.add(epoch, image, {"hard": torch.full((3, 4, 4), float(epoch))}, 299)
        sizes.append((tmp_path / "film.pt").stat().st_size)
    assert len(film.frames) == FRAMES
    assert {0, 299} <= film.frames.keys()
    assert max(sizes) <= 1.02 * sizes[FRAMES - 1]
    assert all((frame["hard"] == torch.tensor(float(epoch)).bfloat16()).all() for epoch, frame in film.frames.items())
    with_all = film.frames
    film.load(before=299)  # killed after the last epoch's grid, and resumed from the checkpoint before it
    film.add(299, image, {"hard": torch.full((3, 4, 4), 299.0)}, 299)
    assert film.frames.keys() == with_all.keys()
    film.draw("film", "cell")
    with Image.open(tmp_path / "film.gif") as moving:
        assert moving.n_frames == FRAMES


@pytest.mark.parametrize(("keep", "kept"), [("3", [0, 1, 4]), ("1", [4]), ("all", [0, 1, 2, 3, 4]), ("auto", [0, 4])])
def test_raw_tensors_of_no_more_epochs_than_asked_for_stay(run, tmp_path, monkeypatch, keep, kept):
    monkeypatch.setattr(raw_tensors, "BUDGET", 1.0)
    words = ("trainer.max_epochs=5", "trainer.limit_train_batches=1", f"callbacks.grids.keep={keep}")
    fitted(tmp_path, *words, "callbacks.diagnostics.every_n_epochs=0", "callbacks.grids.film=false")
    names = sorted(path.name for path in (tmp_path / "grids").glob("*.pt"))
    assert names == [f"epoch={epoch:03d}.pt" for epoch in kept]
    assert len(list((tmp_path / "grids").glob("*.png"))) == 5  # every picture stays
    whole = torch.load(run / "grids" / "epoch=000.pt", weights_only=True)
    found = torch.load(tmp_path / "grids" / names[0], weights_only=True)
    assert {key: v.dtype for key, v in found.items() if isinstance(v, torch.Tensor)} == {
        key: v.dtype for key, v in whole.items() if isinstance(v, torch.Tensor)
    }


def test_a_budget_keeps_as_many_as_it_holds(tmp_path, monkeypatch):
    tensors = {"hard": torch.zeros(5, 6, 3, 128, 128), "soft": torch.zeros(5, 6, 3, 128, 128)}
    kept = RawTensors(tmp_path, "auto")
    for epoch in range(20):
        kept.add(epoch, tensors, 19)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 60e6
    assert kept.epochs == [0, 2, 8, 19]


def test_a_resumed_run_keeps_what_one_that_was_not_interrupted_keeps(tmp_path):
    def names(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    whole, cut = (RawTensors(tmp_path / name, 4) for name in ("whole", "cut"))
    for each in (whole, cut):
        each.directory.mkdir()
    (cut.directory / "epoch=1.pt").touch()  # none of ours
    (cut.directory / "epoch=0x1.pt").touch()
    for epoch in range(30):
        whole.add(epoch, {}, 29)
        cut.add(epoch, {}, 29)
        cut = RawTensors(cut.directory, 4)  # killed after each grid, before the checkpoint that has it
        cut.load(before=epoch)
        cut.add(epoch, {}, 29)
        assert names(whole.directory) == [
            name for name in names(cut.directory) if re.fullmatch(r"epoch=\d{3}.pt", name)
        ]
    assert {"epoch=1.pt", "epoch=0x1.pt"} <= set(names(cut.directory))


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
    data = build.data(configured(*TINY, *words, directory=tmp_path))
    data.val_listing.labels[0] = 1
    with pytest.raises(SoftgateError, match="class 'a' has no validation image"):
        data.probe(3, 0)


def test_a_run_ended_by_max_steps_has_a_last_grid(tmp_path):
    words = ("trainer.max_epochs=100", "trainer.max_steps=4", "trainer.limit_train_batches=1")
    fitted(tmp_path, *words, "callbacks.grids.every_n_epochs=50", *BARE_GRIDS)
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == ["epoch=000.png", "epoch=003.png"]


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
        ("keep", 0),
        ("keep", "al"),
        ("keep", True),
    ],
)
def test_grid_options_of_the_wrong_kind_are_named(key, value):
    with pytest.raises(SoftgateError, match=rf"callbacks\.grids\.{key}={value}"):
        GridsConfig.read({key: value})


def test_a_number_of_raw_tensors_without_any_is_refused():
    with pytest.raises(SoftgateError, match=r"callbacks\.grids\.keep=3: callbacks\.grids\.raw=true is needed too\."):
        GridsConfig.read({"raw": False, "keep": 3})


def test_a_grid_option_that_cannot_be_is_refused():
    with pytest.raises(SoftgateError, match=r"every_n_epochs=-1"):
        GridsConfig.read({"every_n_epochs": -1})


def test_films_count_epochs_from_one(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "softgate.training.callbacks.film.film_strip",
        lambda image, films, epochs, *_, **__: told.append(epochs) or Image.new("RGB", (1, 1)),
    )
    monkeypatch.setattr(
        "softgate.training.callbacks.film.animation", lambda image, films, epochs, *_, **__: told.append(epochs)
    )
    film = Film(tmp_path)
    for epoch in (0, 1, 4):
        film.add(epoch, torch.zeros(3, 8, 8), {"hard": torch.ones(3, 8, 8)}, 4)
    film.draw("", "cell")
    assert told == [[1, 2, 5], [1, 2, 5]]
