"""Runs of version 0.1.0 are evaluated, compared and resumed by later code; tests/fixtures says how they were made."""

import csv
import json
import math
import tarfile
from pathlib import Path

import pytest
import torch

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.0.tar.xz"
CHEAP = (
    *("accelerator=cpu", "grid.rows=1", "grid.targets=1", "compare.train_images=64"),
    *("compare.corruptions.families=[]", "compare.attack.linf=null", "compare.attack.l2=null"),
    *("compare.sharpness.images=0", "compare.grids=false"),
)


@pytest.fixture
def old(tmp_path) -> Path:
    """A directory with the old `runs`, and in `expected` what version 0.1.0 made of them."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def read(path: Path):
    return json.loads(path.read_text())


def test_the_old_run_is_evaluated_to_the_numbers_of_its_time(old, typed):
    words = ("runs=runs/excitation", "checkpoint=last", "accelerator=cpu", "grid.rows=1", "grid.targets=1")
    status, said = typed("evaluate.py", *words, "hydra.run.dir=out")
    assert status == 0, said
    (found,), (expected,) = (read(path)["runs"] for path in (old / "out/results.json", old / "expected/evaluated.json"))
    assert (found["model"], found["surrogate"]) == (expected["model"], expected["surrogate"])
    assert found["images"] == expected["images"] == 359
    for key in ("acc", "acc5", "loss", "ece"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5), key


def test_the_old_runs_are_compared_to_the_numbers_of_their_time(old, typed):
    status, said = typed("evaluate.py", "runs=runs/*", *CHEAP, "hydra.run.dir=out")
    assert status == 0, said
    now, then = (read(path)["comparison"] for path in (old / "out/results.json", old / "expected/compared.json"))
    assert (now["arms"], now["baseline"]) == (then["arms"], then["baseline"]) == (["none", "excitation"], "none")
    assert len(now["runs"]) == len(then["runs"]) == 2
    for found, expected in zip(now["runs"], then["runs"], strict=True):
        assert [found[key] for key in ("label", "arm", "seed", "command")] == [
            expected[key] for key in ("label", "arm", "seed", "command")
        ]
        for key, value in expected["measures"].items():
            assert found["measures"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def epochs(path: Path) -> dict[tuple[int, str], float]:
    """The losses of a metrics.csv by epoch and key."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("train/loss", "val/loss", "sites/cosine", "sites/norm_ratio")
    return {(int(row["epoch"]), key): float(row[key]) for row in rows for key in keys if row.get(key)}


@pytest.mark.parametrize("name", ["excitation", "none"])
def test_the_old_run_goes_on_as_it_would_have_gone_on_in_its_time(old, typed, name):
    run = old / "runs" / name
    before = epochs(run / "metrics.csv")
    words = ("trainer.max_epochs=3", "print_config=false", "trainer.enable_progress_bar=false")
    status, said = typed("train.py", f"resume=runs/{name}", *words)
    assert status == 0, said
    found, expected = epochs(run / "metrics.csv"), epochs(old / "expected" / f"resumed-{name}.csv")
    assert {key: found[key] for key in before} == before
    assert found.keys() == expected.keys()
    assert {epoch for epoch, _ in found} == {0, 1, 2}
    for key, value in expected.items():
        # Other machines round otherwise, in bfloat16: losses by a hundredth, and what one step's gradients are to each
        # other (a probe of a few images) by a tenth.
        near = {"rel_tol": 0.02} if key[1].endswith("loss") else {"rel_tol": 0.2, "abs_tol": 0.1}
        assert math.isclose(found[key], value, **near), key
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 6)
    assert read(run / "summary.json")["status"] == "finished"
