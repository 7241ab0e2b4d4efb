"""Memory that runs out beside training costs what was to be measured, and not the run."""

import csv
import json
import os
import signal

import pytest
import torch

import finished_sweep as finished
import softgate
from configs import TINY, composed
from softgate.errors import OutOfMemory
from softgate.paths import Recording
from softgate.training.callbacks import alignment, diagnostics, grids, paths
from softgate.training.module import SoftgateModule
from softgate.training.train import train

EVERYTHING = (
    *(*TINY, "callbacks=alignment", "callbacks.alignment.images=10", "callbacks.alignment.few=2"),
    *("callbacks.alignment.draws=2", "callbacks.alignment.dear_epochs=0", "callbacks.paths.recordings=2"),
    *("callbacks.paths.images=10", "callbacks.diagnostics.images=4", "trainer.num_sanity_val_steps=0"),
    *("data.batch_size=4", "callbacks.grids.classes=4", "optim.lr=0.001"),
)
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def weights(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def rows(directory):
    with (directory / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("align/soft/noise_cosine")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    train(composed(*EVERYTHING, directory=directory))
    return directory


@pytest.mark.slow
def test_where_few_images_fit_callbacks_take_them_in_smaller_chunks(plain, tmp_path, monkeypatch, recwarn):
    forward = torch.nn.Conv2d.forward

    def short(self, x):
        if len(x) > 4:
            raise MEMORY
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", short)
    train(composed(*EVERYTHING, directory=tmp_path))
    assert not [w for w in recwarn if "memory" in str(w.message)]
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(tmp_path).items())
    for one, other in zip(rows(plain), rows(tmp_path), strict=True):
        a, b = ([float(row[key]) for key in one if key.startswith("align/")] for row in (one, other))
        assert a == pytest.approx(b, abs=1e-4, nan_ok=True)
    assert len(rows(tmp_path)) == 2
    assert len(Recording(tmp_path / "paths").points) == len(Recording(plain / "paths").points)


@pytest.mark.slow
def test_what_does_not_fit_at_all_is_left_out_with_a_warning_and_training_is_the_same(plain, tmp_path, monkeypatch):
    def short(*args, **kwargs):
        raise MEMORY

    monkeypatch.setattr(grids, "read_out", short)
    monkeypatch.setattr(alignment.AlignmentCurves, "_cheap", short)
    monkeypatch.setattr(paths.PathRecorder, "_gates", short)
    monkeypatch.setattr(diagnostics, "diagnose", short)
    with pytest.warns(softgate.SoftgateWarning) as warned:
        train(composed(*EVERYTHING, directory=tmp_path))
    said = "\n".join(str(w.message) for w in warned)
    for start in (
        "callbacks.grids: epoch 1 has no grid: memory ran out at 20.00 MiB more",
        "callbacks.grids: epoch 2 has no grid",
        "callbacks.alignment: epoch 1 is not measured",
        "callbacks.alignment: epoch 2 is not measured",
        "callbacks.paths: step 0 is not recorded",
        "callbacks.diagnostics: epoch 2 has none",
    ):
        assert start in said
    assert said.count("set callbacks.") + said.count("set data.batch_size lower") == len(said.splitlines())
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(tmp_path).items())


def test_a_training_step_that_does_not_fit_ends_the_run_with_a_sentence_that_says_what_is_kept(tmp_path, monkeypatch):
    step = SoftgateModule.training_step

    def short(self, batch, index):
        if self.current_epoch == 1:
            raise MEMORY
        return step(self, batch, index)

    monkeypatch.setattr(SoftgateModule, "training_step", short)
    with pytest.raises(OutOfMemory) as end:
        train(composed(*TINY, "callbacks=none", directory=tmp_path))
    said = str(end.value)
    assert said.startswith("memory ran out at 20.00 MiB more; set data.batch_size lower")
    assert said.endswith(f"{tmp_path}/checkpoints/last.ckpt is kept, and resume={tmp_path} goes on from it.")


def test_a_process_that_loads_images_and_is_killed_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    root = finished.images(tmp_path)

    def killed(self, request):
        assert torch.utils.data.get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    words = ("data=folder", f"data.root={root}", "data.cache=false", "data.num_workers=1", "callbacks=none")
    monkeypatch.setattr("softgate.data.images.ImageFiles.__getitem__", killed)
    with pytest.raises(OutOfMemory, match=r"^data\.num_workers: a process that loads images was killed") as end:
        train(composed(*TINY, *words, "data.size=32", "trainer.num_sanity_val_steps=0", directory=tmp_path / "run"))
    assert "shared memory (/dev/shm)" in str(end.value)
