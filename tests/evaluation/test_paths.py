"""`evaluate.py paths=full` on recorded runs: what it writes, what it says, what it refuses before it begins."""

import csv
import json
import shutil
import signal

import pytest
import torch
from PIL import Image

from configs import TINY, composed
from softgate import SoftgateError, signals
from softgate.evaluation.evaluate import evaluate
from softgate.evaluation.paths import PathStudy, thinned
from softgate.figures.panels import Line
from softgate.figures.paths import heat_maps, swap_curves
from softgate.paths.swapping import CONTROLS
from softgate.training.train import train

QUICK = (
    *TINY,
    "model=squeezenet1_1",
    "callbacks=paths",
    "callbacks.grids.every_n_epochs=0",
    "callbacks.guard.every_n_steps=0",
)
SMALL = (*QUICK, "callbacks.diagnostics.every_n_epochs=0", "callbacks.paths.images=60", "callbacks.paths.recordings=3")
BOTH = "callbacks.paths.probe=both"
ASKED = ("paths=full", "measure=false", "grid.rows=2", "grid.targets=2", "paths.images=20", "paths.kernel_images=50")
FEW = ("paths.kernel_moments=2", "paths.moments=3", "paths.resamples=100", "accelerator=cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for name in ("none", "excitation"):
        train(composed(*SMALL, BOTH, f"surrogate={name}", directory=place / name))
    return place


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluated")
    words = (*ASKED, *FEW, "checkpoint=last", "paths.kernel_images=0")
    cfg = composed(f"runs={runs}/*", *words, name="evaluate", directory=place)
    return evaluate(cfg), place


def test_two_arms_are_reported_in_files_and_pictures(results):
    found, place = results
    paths = json.loads((place / "results.json").read_text())["paths"]
    assert [run["trained"] for run in paths["runs"]] == ["soft", "hard"]
    for run in paths["runs"]:
        count = len(run["epochs"])
        assert run["epochs"][0] == 0
        assert run["steps"][-1] == 6
        for kind in ("hard", "soft"):
            swap = run["swap"][kind]
            assert len(swap["within"]) == len(swap["pooled"][0]) == count == 3
            assert set(swap["controls"]) == set(CONTROLS)
            assert [len(part) for part in swap["above_controls"]] == [3, 3, 3]
            assert len(swap["settled"]) == 3
        assert run["swap"]["hard"]["pooled"][-1][-1] == pytest.approx(1)
        assert run["agreement"]["kappa"][1][1] == pytest.approx(1)
        assert len(run["agreement"]["epochs"]) >= count
        assert run["kernels"] is None
    assert set(paths["settled"]) == {"trained hard", "trained soft"}
    with (place / "paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    measures = {row["measure"] for row in rows}
    assert {
        "swap_within",
        "swap_pooled",
        "swap_within_shuffled",
        "swap_within_same_class",
        "swap_within_class_mean",
        "swap_within_f(s)",
        "swap_within_above_controls",
        "kappa",
        "hamming",
        "path_cosine_per_site",
    } <= measures
    for name in ("paths.png", "paths-none.png", "paths-excitation.png"):
        with Image.open(place / name) as picture:
            assert min(picture.size) > 300
    assert found["paths"]["threshold"] == 0.9


def test_the_page_holds_every_table_and_picture_and_needs_no_other_file(results):
    text = (results[1] / "report.html").read_text()
    assert text.count("<h2>") == 3  # when paths settle, and each run
    assert text.count("data:image/svg+xml") == 3
    assert "src='http" not in text


def test_the_terminal_says_when_paths_settle_and_what_kernels_say(runs, tmp_path, capsys):
    words = (*ASKED, *FEW, "paths.later=true", "paths.probe=train")
    found = evaluate(composed(f"runs={runs}/none", *words, name="evaluate", directory=tmp_path))
    said = capsys.readouterr().out
    for shown in (
        "swap hard, within class",
        "control, hard, within: shuffled",
        "settled",
        "accuracy of K_Gamma",
        "train images",
    ):
        assert shown in said
    kernels = found["paths"]["runs"][0]["kernels"]
    assert kernels["cka"]["soft"][1][1] == pytest.approx(1)
    assert 0 <= kernels["accuracy"]["hard"][0] <= 1
    assert len(kernels["network"]) == 2
    assert 0.3 < kernels["pixels"]["accuracy"] <= 1  # digits are told apart by their pixels


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("paths.threshold=2",), "paths.threshold=2: a number between 0 and 1"),
        (("paths.images=3",), "paths.images=3: a whole number >= 10"),
        (("paths.moments=1",), "paths.moments=1: a whole number >= 2"),
        (("paths.probe=both",), "paths.probe=both: there is no such name; allowed: train, val"),
        (("paths.later=1",), "paths.later=1: true or false"),
        (("paths.kernel_images=12",), "paths.kernel_images=12: 1 image"),
        (("readout.gain=matched",), "readout.gain=matched"),
        (("readout=none",), "choose a soft rule"),
        (("model=resnet18", "data=digits", "runs=null"), "it looks at recorded runs"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(runs, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr("softgate.evaluation.evaluate.measure", lambda *args: pytest.fail("measured"))
    words = [word.replace("readout=", "surrogate@readout=") for word in words]
    cfg = composed(f"runs={runs}/none", *ASKED, *words, name="evaluate", directory=tmp_path)
    with pytest.raises(SoftgateError, match=said):
        evaluate(cfg)


def test_runs_without_a_whole_comparable_recording_are_refused(runs, tmp_path):
    def refused(words: str, *places: object) -> None:
        listed = ",".join(map(str, places))
        with pytest.raises(SoftgateError, match=words):
            evaluate(composed(f"runs=[{listed}]", *ASKED, name="evaluate", directory=tmp_path / "out"))

    bare = shutil.copytree(runs / "none", tmp_path / "bare")
    shutil.rmtree(bare / "paths")
    refused("holds no recording; train with callbacks=paths,", bare)
    shutil.rmtree(bare / "paths-train")
    words = (f"runs={bare}", *ASKED, "paths.probe=train")
    with pytest.raises(SoftgateError, match=r"train with callbacks=paths callbacks\.paths\.probe=train,"):
        evaluate(composed(*words, name="evaluate", directory=tmp_path / "train"))
    train(composed(*SMALL, "callbacks.paths.seed=5", "trainer.max_epochs=1", directory=tmp_path / "other"))
    refused("different probe sets", runs / "none", tmp_path / "other")
    broken = shutil.copytree(runs / "none", tmp_path / "broken")
    last = max((broken / "paths").glob("*.gates"))
    last.write_bytes(last.read_bytes()[:-5])
    refused("truncated", broken)


def test_what_was_measured_is_written_also_where_a_later_run_fails(runs, tmp_path):
    place = shutil.copytree(runs, tmp_path / "runs")
    damaged = place / "none" / "paths" / "step=00000006.pt"
    content = bytearray(damaged.read_bytes())
    content[100:20000] = bytes(19900)  # its index at the end is whole
    damaged.write_bytes(content)
    words = (*ASKED, *FEW, "checkpoint=last", "paths.kernel_images=0")
    with pytest.raises(SoftgateError, match=r"step=00000006\.pt is truncated or damaged"):
        evaluate(composed(f"runs={place}/*", *words, name="evaluate", directory=tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["label"] for run in kept["paths"]["runs"]] == ["excitation"]
    assert (tmp_path / "out" / "paths.csv").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_is_written_also_where_the_rest_is_called_off(runs, tmp_path, monkeypatch, number):
    look = PathStudy.look

    def once(self, label, *others):
        if self.found:
            signal.raise_signal(number)
        look(self, label, *others)

    monkeypatch.setattr(PathStudy, "look", once)
    words = (*ASKED, *FEW, "checkpoint=last", "paths.kernel_images=0")
    with pytest.raises(KeyboardInterrupt), signals.raised():
        evaluate(composed(f"runs={runs}/*", *words, name="evaluate", directory=tmp_path))
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [run["label"] for run in kept["paths"]["runs"]] == ["excitation"]


def test_moments_are_thinned_evenly_with_both_ends():
    assert thinned(list(range(11)), 4) == [0, 3, 7, 10]
    assert thinned(list(range(3)), None) == thinned(list(range(3)), 9) == [0, 1, 2]


def test_pictures_take_what_is_not_a_number():
    values = torch.tensor([[1.0, float("nan")], [0.5, 1.0]]).numpy()
    assert heat_maps({"a": values}, [0, 1.5]).width > 300
    line = Line([(0, 0.1), (0.5, float("nan")), (3, 0.9)], [(0, 0), (0.5, 0), (3, 0.8)], [(0, 0.2), (0.5, 1), (3, 1)])
    assert swap_curves({"b": {"run": ("hard", line), "control: mean": ("mean", line)}}, {"b": 0.9}).width > 300
    with pytest.raises(SoftgateError):
        swap_curves({})
