"""Recordings: what is written is read back, what is broken or foreign is refused, training is left alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import softgate as sg
from configs import TINY, composed, configured
from path_networks import RULE, images, some
from softgate import SoftgateError
from softgate.paths.packing import Layout
from softgate.paths.recording import HEAD_SIZE, Recorder
from softgate.training import build
from softgate.training.callbacks import PathRecorder
from softgate.training.callbacks.config import PathsConfig
from softgate.training.callbacks.paths import log_spaced_steps
from softgate.training.train import train

SMALL = (
    *TINY,
    "callbacks=paths",
    "model=squeezenet1_1",  # small files
    "callbacks.grids.every_n_epochs=0",
    "callbacks.diagnostics.every_n_epochs=0",
    "callbacks.paths.images=12",
    "callbacks.paths.recordings=4",
)


def weights(directory: Path) -> dict:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recorded")
    train(composed(*SMALL, "callbacks.paths.soft=true", directory=directory))
    return directory


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["odd", "resnet18"])
def test_packed_gates_are_read_back(name, soft):
    net, size = some(name, torch.float32)
    gates = sg.paths.record(net, images(3, size, torch.float32), RULE if soft else None)
    layout = Layout.of(gates, soft)
    again = Layout.from_plain(json.loads(json.dumps(layout.to_plain())))
    rows = layout.pack(gates)
    assert rows.shape == (3, layout.row)
    for name, site in again.unpack(rows).sites.items():
        if soft:
            assert (site.values - gates.sites[name].weights()).abs().max() <= 0.5001 / 255
        else:
            assert torch.equal(site.values, gates.sites[name].values)
            assert site.window == gates.sites[name].window


def test_hard_gates_take_one_bit_and_choices_no_more_than_a_bit_for_each_element():
    net, _ = some("resnet18", torch.float32)
    layout = Layout.of(sg.paths.record(net, images(1, 64, torch.float32)), soft=False)
    assert [site.bits for site in layout.sites if site.window] == [4]
    assert sum(site.size for site in layout.sites if not site.window) * 8 == sum(
        site.values for site in layout.sites if not site.window
    )
    assert layout.bits_per_gate <= 1


def test_a_run_is_recorded_and_its_recording_is_of_its_own_networks(recorded):
    found = sg.paths.Recording(recorded / "paths")
    assert [point.step for point in found.points] == [0, 1, 2, 3, 6]
    assert [point.epoch for point in found.points] == pytest.approx([0, 1 / 3, 2 / 3, 1, 2])
    assert found.images.shape == (12, 3, 16, 16)
    net = build.module(c := configured(*SMALL, directory=recorded), build.data(c)).net
    found.check_model(net)
    for point in found.points:
        net.load_state_dict(found.weights(point)["net"])
        for kind, rule in (("hard", None), ("soft", found.rule())):
            mine = sg.paths.record(net, found.images, rule)
            theirs = found.gates(point, slice(3, 9), kind)
            for name, site in mine[3:9].sites.items():
                worst = (site.weights() - theirs.sites[name].weights()).abs().max()
                assert worst <= (0.51 / 255 if kind == "soft" else 0), name
    last = weights(recorded)
    assert all(torch.equal(last[f"net.{key}"], value) for key, value in found.weights(found.points[-1])["net"].items())


def test_training_is_bit_identical_with_and_without(recorded, tmp_path):
    train(composed(*TINY, "model=squeezenet1_1", "callbacks=none", directory=tmp_path))
    on, off = weights(recorded), weights(tmp_path)
    assert on.keys() == off.keys()
    assert all(torch.equal(on[key], off[key]) for key in on)


def test_rows_are_memory_mapped(recorded):
    found = sg.paths.Recording(recorded / "paths")
    rows = found.rows(found.points[0])
    assert isinstance(rows, np.memmap)
    assert rows.shape == (12, found.header.hard.row)


def copy(recorded: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded / "paths", tmp_path / "paths")
    return tmp_path / "paths"


def test_a_recording_goes_on_from_a_moment_that_stays_and_loses_later_ones(recorded, tmp_path):
    place = copy(recorded, tmp_path)
    found = sg.paths.Recording(place)
    Recorder(place, found.header).begin(found.images, found.labels, after=3)
    again = sg.paths.Recording(place)
    assert [point.step for point in again.points] == [0, 1, 2, 3]
    assert again.header == replace(found.header, hard=again.header.hard, soft=again.header.soft)
    assert not list(place.glob("step=00000006.*"))


def test_truncated_damaged_and_foreign_recordings_are_refused_in_one_sentence(recorded, tmp_path):
    place = copy(recorded, tmp_path)
    gates, header, probe = place / "step=00000003.gates", place / "header.json", place / "probe.pt"
    weights = place / "step=00000006.pt"
    kept = {path: path.read_bytes() for path in (gates, header, probe, weights)}

    def refused(words: str) -> None:
        with pytest.raises(SoftgateError, match=words) as caught:
            sg.paths.Recording(place)
        assert str(caught.value).count("\n") == 0
        for path, content in kept.items():
            path.write_bytes(content)

    for cut in (0, 20, HEAD_SIZE, len(kept[gates]) - 1):
        gates.write_bytes(kept[gates][:cut])
        refused("truncated")
    gates.write_bytes(kept[gates] + b"\0")
    refused("truncated or damaged")
    foreign = bytearray(kept[gates])
    foreign[10] ^= 1  # in the identity
    gates.write_bytes(foreign)
    refused("another recording")
    header.write_bytes(kept[header][:-20])
    refused("header.json is truncated")
    header.write_text(json.dumps(json.loads(kept[header]) | {"version": 2}))
    refused("version 2")
    header.write_text("[]")
    refused("header")
    probe.write_bytes(kept[probe][:-100])
    refused("probe.pt")
    probe.write_bytes((place / "step=00000003.pt").read_bytes())
    refused("probe")
    gates.unlink()
    sg.paths.Recording(place)  # a moment less is a recording still
    with pytest.raises(SoftgateError, match="no path recording"):
        sg.paths.Recording(tmp_path)
    weights.write_bytes(kept[weights][:1000])
    refused("step=00000006.pt is truncated or damaged")
    weights.unlink()
    refused("step=00000006.pt is missing")
    middle = bytearray(kept[weights])
    middle[100:20000] = bytes(19900)
    weights.write_bytes(middle)
    whole = sg.paths.Recording(place)
    with pytest.raises(SoftgateError, match=r"step=00000006\.pt is truncated or damaged"):
        whole.weights(whole.points[-1])


def last_weights(place: Path) -> dict:
    found = sg.paths.Recording(place)
    return found.weights(found.points[-1])


def test_files_of_another_run_of_the_same_network_and_probe_set_are_refused(recorded, tmp_path):
    place = copy(recorded, tmp_path)
    words = (*SMALL, "callbacks.paths.soft=true", "surrogate=none")
    train(composed(*words, directory=tmp_path / "other"))
    other = tmp_path / "other" / "paths"
    sg.paths.Recording(place).check_same(sg.paths.Recording(other))  # they may be compared, not mixed
    for suffix in ("gates", "pt"):
        path = place / f"step=00000006.{suffix}"
        before = path.read_bytes()
        shutil.copy(other / path.name, path)
        with pytest.raises(SoftgateError, match=rf"step=00000006\.{suffix} belongs to another recording"):
            last_weights(place)
        path.write_bytes(before)


def test_recordings_made_before_runs_were_told_apart_are_read(recorded, tmp_path):
    place = copy(recorded, tmp_path)
    found = sg.paths.Recording(place)
    old = sg.paths.recording.replace(found.header, run=None)
    (place / "header.json").write_text(json.dumps(old.plain()))
    for path in [*place.glob("*.gates"), *place.glob("*.soft")]:
        content = bytearray(path.read_bytes())
        content[8:40] = old.identity()
        path.write_bytes(content)
    for path in place.glob("step=*.pt"):
        kept = torch.load(path, weights_only=True)
        torch.save({key: kept[key] for key in ("net", "scales")}, path)
    again = sg.paths.Recording(place)
    assert again.points == found.points
    assert again.weights(again.points[-1]).keys() == {"net", "scales"}


def test_recordings_of_other_probe_sets_or_architectures_cannot_be_compared(recorded, tmp_path):
    found = sg.paths.Recording(recorded / "paths")
    words = (*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    for name, change, said in (
        ("seed", "callbacks.paths.seed=1", "probe sets"),
        ("net", "model=resnet18", "architectures"),
    ):
        train(composed(*words, change, directory=tmp_path / name))
        other = sg.paths.Recording(tmp_path / name / "paths")
        with pytest.raises(SoftgateError, match=f"different {said}"):
            found.check_same(other)
    with pytest.raises(SoftgateError, match="another architecture"):
        found.check_model(some("resnet18")[0])
    found.check_same(found)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("callbacks.paths.max_gb=0.01", r"callbacks.paths.max_gb=0.01: 5 recordings of 12 images take 0.02"),
        ("callbacks.paths.images=1", "callbacks.paths.images=1: a whole number >= 2"),
        ("callbacks.paths.recordings=-1", "callbacks.paths.recordings=-1"),
        ("callbacks.paths.first=0", "callbacks.paths.first=0: a number > 0"),
        ("callbacks.paths.soft=2", "callbacks.paths.soft=2: true or false"),
        ("callbacks.paths.seed=x", "callbacks.paths.seed=x"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_data_are_read(word, said, tmp_path, monkeypatch):
    monkeypatch.setattr(build.ImageData, "setup", lambda *args: pytest.fail("data were read"))
    with pytest.raises(SoftgateError, match=said):
        train(composed(*SMALL, word, directory=tmp_path))


def test_gates_outside_of_0_to_1_are_not_kept_in_8_bits():
    for rule in (
        sg.Surrogate(sg.gates.BSiLU()),
        sg.Surrogate(gain="unit_rms"),
        sg.Surrogate(pool=sg.pools.SoftmaxFull()),
    ):
        with pytest.raises(SoftgateError, match=r"leave \[0, 1\]"):
            PathRecorder("x", rule, PathsConfig(recordings=1, soft=True))


def test_the_bound_is_kept(recorded):
    size = sum(path.stat().st_size for path in (recorded / "paths").iterdir())
    found = sg.paths.Recording(recorded / "paths")
    module = build.module(c := configured(*SMALL, directory=recorded), build.data(c))
    bound = sg.paths.recording.size_on_disk(found.header, module.net, found.images[0], len(found.points))
    assert size <= bound <= 1.02 * size + 2**20


def test_moments_are_log_spaced_with_whole_epochs_after_the_first():
    steps = log_spaced_steps(2960, 148, 10, 0.1)
    assert steps[0] == 0
    assert steps[-1] == 2960
    assert len(steps) == 11
    assert all(step % 148 == 0 for step in steps if step > 148)
    assert log_spaced_steps(3, 3, 1, 0.1) == [0, 3]
    assert log_spaced_steps(1, 1, 10, 5.0) == [0, 1]


def test_a_resumed_run_goes_on_with_its_recording(recorded, tmp_path, monkeypatch):
    def fit(*words: str, ckpt: Path | None = None) -> Path:
        cfg = configured(*words, directory=tmp_path)
        data = build.data(cfg)
        pl.seed_everything(0, workers=True, verbose=False)
        module = build.module(cfg, data)
        build.trainer(cfg, tmp_path).fit(module, datamodule=data, ckpt_path=ckpt)
        return tmp_path / "checkpoints" / "last.ckpt"

    words = (*SMALL, "trainer.limit_train_batches=3")
    kept = fit(*words, "trainer.max_epochs=1")
    kept = Path(shutil.copy(kept, tmp_path / "half.ckpt"))
    before = (tmp_path / "paths" / "step=00000001.gates").read_bytes()
    shutil.copy(tmp_path / "paths" / "step=00000003.gates", tmp_path / "paths" / "step=00000005.gates")
    fit(*words, ckpt=kept)
    found = sg.paths.Recording(tmp_path / "paths")
    assert [point.step for point in found.points] == [0, 1, 2, 3, 6]
    assert (tmp_path / "paths" / "step=00000001.gates").read_bytes() == before
    with pytest.raises(SoftgateError, match="the run to resume recorded another probe set"):
        fit(*words, "callbacks.paths.seed=9", ckpt=kept)
    shutil.rmtree(tmp_path / "paths")
    with pytest.warns(sg.SoftgateWarning, match="nothing was recorded before"):
        fit(*words, ckpt=kept)
    assert [point.step for point in sg.paths.Recording(tmp_path / "paths").points] == [3, 6]


def test_a_full_disk_stops_the_recording_and_not_the_run(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("softgate.paths.recording.Recorder._rows", full)
    with pytest.warns(sg.SoftgateWarning, match="recording stops at step 0"):
        summary = train(composed(*SMALL, "trainer.max_epochs=1", directory=tmp_path))
    assert summary["status"] == "finished"


def test_training_images_are_recorded_beside_validation_images_as_validation_shows_them(tmp_path):
    train(composed(*SMALL, "trainer.max_epochs=1", "callbacks.paths.probe=both", directory=tmp_path))
    config = configured(*SMALL)
    data = build.data(config)
    data.setup("fit")
    seen = {sg.paths.Recording(tmp_path / name): name for name in ("paths", "paths-train")}
    for recording, name in seen.items():
        found = data.sample(12, 314, "val" if name == "paths" else "train")
        assert torch.equal(recording.images, found[0])
        assert torch.equal(recording.labels, found[1])
        assert recording.header.weights
    listing = data.train_listing
    shown = torch.cat([images for images, _ in data.still(listing, len(listing), 0)])
    mine = sg.paths.Recording(tmp_path / "paths-train").images
    assert all(any(torch.equal(image, other) for other in shown) for image in mine)  # none is augmented
