"""What memory is too short for is left out of an evaluation and said; the rest of it is written."""

import json

import pytest
import torch

import finished_sweep as finished
from compared import CHEAP, FEW, evaluated
from softgate.errors import OutOfMemory
from softgate.evaluation import evaluate, grids
from softgate.evaluation.generalization import sharpness

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return finished.run(tmp_path_factory.mktemp("one") / "run", finished.options(images), "excitation", 0)


def short(*args, **kwargs):
    raise MEMORY


def fitting(monkeypatch, most: int) -> None:
    """Makes every convolution of more images than that run out of memory."""
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: short() if len(x) > most else forward(self, x))


def test_a_grid_and_an_alignment_that_do_not_fit_are_named_and_the_scores_are_written(
    run, tmp_path, monkeypatch, capsys
):
    words = (f"runs={run}", "accelerator=cpu", "alignment=full", "alignment.images=4", "alignment.dear_images=2")
    monkeypatch.setattr(grids, "draw", short)
    monkeypatch.setattr(evaluate.alignment.Study, "look", short)
    found = evaluated(tmp_path, *words, "alignment.draws=2")
    size = "memory ran out at 20.00 MiB more"
    assert found["left_out"] == [
        f"run: grid: {size}; set grid.rows, grid.columns or grid.chunk lower.",
        f"run: alignment: {size}; set alignment.images, alignment.dear_images or alignment.draws lower.",
    ]
    assert 0 <= found["runs"][0]["acc"] <= 1
    assert json.loads((tmp_path / "results.json").read_text()) == found
    said = capsys.readouterr().out
    assert all(f"left out: {line}" in said for line in found["left_out"])


def test_images_that_do_not_fit_at_once_are_measured_in_smaller_chunks(run, tmp_path, monkeypatch):
    words = (f"runs={run}", "accelerator=cpu", "grid.rows=1", "grid.targets=1")
    whole = evaluated(tmp_path / "a", *words)["runs"]
    with monkeypatch.context() as patch:
        fitting(patch, 3)
        parts = evaluated(tmp_path / "b", *words)["runs"]
    assert parts[0]["acc"] == whole[0]["acc"]
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    fitting(monkeypatch, 0)
    with pytest.raises(OutOfMemory, match=r"^memory ran out at 20.00 MiB more; set data\.batch_size"):
        evaluated(tmp_path / "c", *words)


def test_a_measure_of_a_comparison_that_does_not_fit_is_named_in_its_report(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(sharpness, "largest_eigenvalue", short)
    words = (*FEW, *CHEAP, "compare.sharpness.images=4")
    found = evaluated(tmp_path, f"runs=[{swept}/none-0,{swept}/excitation-0]", *words)["comparison"]
    said = "no sharpness: memory ran out at 20.00 MiB more; set compare.sharpness.images lower."
    assert [note for note in found["notes"] if "memory" in note] == [f"none-0: {said}", f"excitation-0: {said}"]
    measured = {row["measure"] for row in found["differences"]}
    assert {"acc", "nll", "train_acc", "gap"} <= measured
    assert "sharpness" not in measured
    assert said in (tmp_path / "report.html").read_text()
