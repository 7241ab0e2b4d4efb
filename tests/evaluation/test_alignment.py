"""`evaluate.py alignment=full`: several runs beside each other, the 2 x 2, verdicts, and what is refused."""

import csv
import io
import json
import math
import shutil
import sys

import pytest
import torch
from PIL import Image
from rich.console import Console

import softgate as sg
from configs import CONF, composed
from softgate import SoftgateError
from softgate.cli import command
from softgate.data.config import DataConfig
from softgate.evaluation import alignment, checkpoints, evaluate, networks
from softgate.evaluation.config import AlignmentConfig
from softgate.explainers import Pullback
from softgate.figures import panels
from softgate.metrics import controls
from softgate.metrics.control_table import BETTER, SANITY, Score, control_table
from softgate.training import SoftgateModule

MODEL = {"name": "squeezenet1_1", "stem": "imagenet"}
CLASSES = ["a", "b", "c", "d"]
RULE = sg.Surrogate()
PLAIN = {"gate": {"name": "hard"}, "pool": {"name": "hard"}}
FEW = (
    *("alignment=full", "alignment.images=8", "alignment.dear_images=4", "alignment.draws=1"),
    *("measure=false", "grid.rows=1", "grid.targets=1", "accelerator=cpu"),
)


def options(root, **changed):
    about = {"name": "folder", "root": str(root), "size": 32, "batch_size": 8, "num_workers": 0}
    return about | {"mean": [0.5] * 3, "std": [0.5] * 3} | changed


def save(directory, data, rule, seed=0, classes=CLASSES):
    """A run as training leaves it, with weights by chance."""
    torch.manual_seed(seed)
    module = SoftgateModule(MODEL, rule, classes)
    path = directory / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    settings = {"model": MODEL, "surrogate": rule, "classes": classes}
    content = {"hyper_parameters": settings, "datamodule_hyper_parameters": {"options": data}}
    torch.save(content | {"state_dict": module.state_dict()}, path)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for k, name in enumerate(CLASSES):
        (root / "val" / name).mkdir(parents=True)
        for i in range(3):
            pixels = (torch.rand(32, 32, 3, generator=generator) * (100 + 40 * k)).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(root / "val" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    save(root / "sweep" / "hard", options(images), PLAIN)
    save(root / "sweep" / "soft", options(images), RULE.to_dict(), seed=1)
    save(root / "judge", options(images), PLAIN, seed=2)
    (root / "sweep" / "multirun.yaml").write_text("not a run\n")
    (root / "sweep" / ".submitit").mkdir()
    (root / "sweep" / "logs").mkdir()
    return root


@pytest.fixture
def three(monkeypatch):
    """Three explainers in place of eight."""
    every = controls.standard

    def some(*args, **kwargs):
        found = every(*args, **kwargs)
        return {name: found[name] for name in ("gradient", "pullback", "edge filter")}

    monkeypatch.setattr(controls, "standard", some)


def evaluated(directory, *words):
    return evaluate.evaluate(composed(*words, name="evaluate", directory=directory))


def test_runs_of_both_kinds_are_compared_and_crossed(runs, tmp_path, three, capsys):
    judge = runs / "judge" / "checkpoints" / "best.ckpt"
    found = evaluated(tmp_path, f"runs={runs}/sweep/*", *FEW, f"alignment.evaluator={judge}")
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert found["schema"] == 1
    part = found["alignment"]
    assert [one["label"] for one in part["networks"]] == ["hard", "soft"]
    assert [one["trained"] for one in part["networks"]] == ["hard", "soft"]
    assert set(part["networks"][0]["scores"]["pullback"]) == set(BETTER) == set(part["better"])
    for key, crossed in part["two_by_two"].items():
        for kind, one in zip(("hard", "soft"), part["networks"], strict=True):
            for read, name in (("hard", "gradient"), ("soft", "pullback")):
                assert crossed[f"trained {kind}"][f"read {read}"] == [one["scores"][name][key][0]]
    with (tmp_path / "alignment.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(scores) for one in part["networks"] for scores in one["scores"].values())
    assert {row["passes_gate"] for row in rows if row["explainer"] == "edge filter"} == {"no"}
    assert min(Image.open(tmp_path / "alignment.png").size) > 500
    assert (tmp_path / "soft" / "grid.png").is_file()
    for text in ("alignment of soft, trained soft", "2 x 2, means over 1 trained hard and 1 trained soft"):
        assert text in said
    assert "edge filter fails randomization_head and target_specificity" in said
    for one in part["networks"]:
        for line in one["verdicts"]:
            assert line in said


def test_the_scores_are_those_of_the_control_table(runs, images, tmp_path, three):
    one = evaluated(tmp_path, f"runs={runs}/sweep/soft", *FEW)["alignment"]
    assert one["two_by_two"] is None
    module, data = evaluate.restore(runs / "sweep" / "soft" / "checkpoints" / "best.ckpt")
    data = evaluate.ImageData(data, splits=("val",))
    x, labels = data.sample(8, 314)
    probe = alignment.Probe(x, labels, data.class_means(), None, data.mean, data.std)
    explain = {"pullback": Pullback(RULE, centred=True)}
    expected = control_table(module.net.eval(), explain, probe, dear=4, draws=1)["pullback"]
    scores = one["networks"][0]["scores"]["pullback"]
    assert set(scores) == set(expected)
    for key, score in expected.items():
        for value, should in zip(scores[key], score, strict=True):
            assert (value is None and math.isnan(should)) or value == pytest.approx(should, rel=1e-4, abs=1e-6), key


def test_a_read_out_with_channel_scales_is_calibrated_first(runs, tmp_path, three):
    found = evaluated(tmp_path, f"runs={runs}/sweep/hard", *FEW, "readout.scale=channel", "alignment.images=4")
    scores = found["alignment"]["networks"][0]["scores"]["pullback"]
    assert scores["randomization_all"][0] is not None
    assert scores["noise_cosine"][0] is not None


@pytest.mark.slow
def test_a_network_that_no_run_trained_has_its_table_and_all_explainers(images, tmp_path):
    words = ("model=squeezenet1_1", "data=folder", f"data.root={images}", "data.size=32", "model.stem=imagenet")
    found = evaluated(tmp_path, *words, *FEW, "alignment.images=4")["alignment"]
    (one,) = found["networks"]
    assert one["trained"] is None
    assert found["two_by_two"] is None
    assert set(one["scores"]) == set(controls.standard(RULE, torch.empty(0)))


@pytest.mark.slow
def test_classes_of_another_numbering_are_judged_by_their_own_outputs(runs, images, tmp_path, three, monkeypatch):
    """The same network with its outputs among others in another order has the same scores."""
    module, data = evaluate.restore(runs / "sweep" / "soft" / "checkpoints" / "best.ckpt")
    judge, about = evaluate.restore(runs / "judge" / "checkpoints" / "best.ckpt")
    judge.sites.detach()
    module.sites.detach()
    data = evaluate.ImageData(data, splits=("val",))
    settings = AlignmentConfig(images=8, dear_images=4, draws=1, seed=314, evaluator="x")
    monkeypatch.setattr(alignment, "check", lambda options, soft: None)
    tables = []
    for places in ([0, 1, 2, 3], [3, 1, 0, 2]):
        study = alignment.Study(settings, RULE, (judge.net, DataConfig.read(about), CLASSES))
        net = Shuffled(module.net, places).eval()
        study.look("x", None, networks.Subject("x", net, CLASSES, places), data)
        tables.append(study.measured[0].table["pullback"])
    for key in ("mean_alignment", "data_alignment", "infidelity", "deletion", "target_specificity"):
        assert tables[1][key].value == pytest.approx(tables[0][key].value, rel=1e-3, abs=1e-6), key
    assert not math.isnan(tables[0]["mean_alignment"].value)
    renumbered = alignment.Renumbered(judge.net.eval(), [0, 1, 2, 3], [5, 3, 0, 2], 6)
    x, _ = data.sample(3, 0)
    with torch.no_grad():
        assert torch.equal(renumbered(x)[:, [5, 3, 0, 2]], judge.net(x))
        assert bool((renumbered(x)[:, [1, 4]] == -math.inf).all())


class Shuffled(torch.nn.Module):
    def __init__(self, net, places):
        super().__init__()
        self.net = net
        self.order = [places.index(i) for i in range(len(places))]

    def forward(self, x):
        return self.net(x)[:, self.order]


# -- what is refused, before data is loaded -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("alignment.images=1",), r"alignment\.images=1: a whole number >= 2"),
        (("alignment.images=3",), r"alignment\.images=3: at least one for each of the 4 classes"),
        (("alignment.dear_images=0",), r"alignment\.dear_images=0"),
        (("alignment.draws=x",), r"alignment\.draws=x"),
        (("alignment.seed=-1",), r"alignment\.seed=-1"),
        (("alignment.evaluator=nowhere.ckpt",), r"alignment\.evaluator=nowhere\.ckpt: there is no such file"),
        (("alignment.evaluator=TEXT",), r"alignment\.evaluator=.*not a checkpoint"),
        (("alignment.evaluator=SELF",), r"alignment\.evaluator=.*is of one of the runs"),
        (("alignment.evaluator=OTHER",), r"alignment\.evaluator=.*cannot judge hard: their classes \(3 and 4\)"),
        (("readout.gate.name=hard", "readout.pool.name=hard", "~readout.gate.temperature", "~readout.pool.temperature"),
         "readout: its gates are hard"),
        (("runs=[ROOT/sweep/hard,nowhere]",), "runs=nowhere: there is no such file or directory"),
        (("runs=ROOT/nothing*",), r"runs=.*nothing\*: no run's directory and no checkpoint matches"),
        (("runs=[]",), r"runs=\[\]: a run's directory, a checkpoint file, or a list"),
        (("runs=[ROOT/sweep/hard,ROOT/other]",), r"other and hard cannot be compared: their classes \(3 and 4\)"),
        (("runs=[ROOT/sweep/hard,ROOT/small]",), r"small and hard cannot be compared: data\.size is 16 and 32"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_sentence_before_data_is_loaded(
    runs, images, tmp_path, monkeypatch, words, message
):
    monkeypatch.setattr(evaluate, "ImageData", None)
    root = tmp_path / "root"
    shutil.copytree(runs, root)
    save(root / "other", options(images), PLAIN, classes=CLASSES[:3])
    save(root / "small", options(images, size=16), PLAIN)
    (root / "text").write_text("no checkpoint")
    known = {"ROOT": str(root), "TEXT": f"{root}/text", "SELF": f"{root}/sweep/hard/checkpoints/best.ckpt"}
    known["OTHER"] = f"{root}/other/checkpoints/best.ckpt"
    for short, full in known.items():
        words = [word.replace(short, full) for word in words]
    first = () if any(word.startswith("runs=") for word in words) else (f"runs={root}/sweep/hard",)
    with pytest.raises(SoftgateError, match=message):
        evaluated(tmp_path, *first, *FEW, *words)


def test_fewer_validation_images_than_classes_are_refused():
    asked = AlignmentConfig(images=8, dear_images=2, draws=1, seed=0, evaluator=None)
    study = alignment.Study(asked, RULE)
    with pytest.raises(SoftgateError, match=r"alignment\.images=8, of which the data has 3: at least one"):
        study.expect("x", DataConfig.read(options("x")), CLASSES, 3)


def test_another_word_than_full_is_one_sentence(typed):
    status, errors = typed("evaluate.py", "alignment=ful", "runs=x")
    assert status == 2
    assert errors.strip() == (
        "error: alignment=ful: there is no such choice; allowed: full. Did you mean alignment=full?"
    )


def test_null_leaves_a_group_out(monkeypatch):
    """Hydra itself ends with a stack trace."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "alignment=null", "runs=x", "experiment=null"])
    command.run(lambda: None, str(CONF), "evaluate")
    assert sys.argv == ["evaluate.py", "runs=x"]


def test_an_option_of_alignment_without_alignment_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "alignment.images=4"])
    said = command._unknown_key("alignment.images", str(CONF), "evaluate")
    assert said == "alignment.images: alignment is not chosen; choose it too: alignment=full."


# -- checkpoints and their labels -----------------------------------------------------------------------


def test_a_glob_takes_runs_and_leaves_the_rest(runs):
    found = checkpoints.find_checkpoints([f"{runs}/sweep/*"], "best")
    assert found == [runs / "sweep" / name / "checkpoints" / "best.ckpt" for name in ("hard", "soft")]
    assert checkpoints.find_checkpoints([f"{runs}/sweep/*", f"{runs}/sweep/soft"], "best") == found
    assert checkpoints.find_checkpoints([f"{runs}/*/*/checkpoints/*.ckpt"], "best") == found


def test_labels_are_short_and_differ(tmp_path):
    paths = [tmp_path / a / b / "checkpoints" / "best.ckpt" for a, b in (("x", "r"), ("y", "r"), ("y", "s"))]
    assert checkpoints.labelled(paths[1:]) == ["r", "s"]
    assert checkpoints.labelled(paths) == ["x-r", "y-r", "y-s"]
    assert checkpoints.labelled([paths[0], paths[0].with_name("last.ckpt")]) == ["best", "last"]
    assert checkpoints.labelled([tmp_path / "a.ckpt", tmp_path / "b.ckpt"]) == ["a", "b"]


# -- verdicts and pictures ------------------------------------------------------------------------------


def measured(value, specific=0.1, trained="hard"):
    score = Score(value, value - 0.01, value + 0.01)
    gradient = {"noise_cosine": Score(0.5, 0.49, 0.51), "spectral_slope": score, "representation": Score(0, 0, 0)}
    gradient |= {key: Score(0.1, 0.1, 0.1) for key in SANITY}
    pullback = {"noise_cosine": score, "spectral_slope": score, "representation": score}
    pullback |= {key: Score(specific, specific, specific) for key in SANITY}
    table = {"gradient": gradient, "pullback": pullback}
    return alignment.Measured("net", trained, table, alignment.failures(table), {})


def test_a_verdict_stands_only_behind_the_gate():
    lines = measured(0.9).verdicts()
    assert "noise_cosine: the pullback is better than the gradient (0.900 and 0.500)." in lines
    assert not any(line.startswith(("spectral_slope", "representation")) for line in lines)
    assert measured(0.9, specific=0.5).verdicts() == [
        "no verdict on any metric: the pullback fails randomization_head and target_specificity."
    ]


def test_the_two_by_two_needs_both_kinds_and_keeps_every_run():
    assert alignment.two_by_two([measured(0.9), measured(0.8, trained=None)]) is None
    found = alignment.two_by_two([measured(0.9), measured(0.7), measured(math.nan, trained="soft")])
    assert found["noise_cosine"]["trained hard"] == {"read hard": [0.5, 0.5], "read soft": [0.9, 0.7]}
    assert found["noise_cosine"]["trained soft"]["read soft"] == [None]


@pytest.mark.parametrize("width", [60, 120])
def test_no_name_is_cut_off_in_a_narrow_terminal(width):
    one = measured(0.9)
    names = list(controls.standard(RULE, torch.empty(0)))
    table = {name: one.table["gradient" if name != "pullback" else name] for name in names}
    console = Console(width=width, record=True, file=io.StringIO())
    alignment.show(alignment.Measured("net", None, table, alignment.failures(table), {}), console)
    text = console.export_text()
    assert "…" not in text
    for word in ("gradient", "pullback", "weights", "randomization_head ↓", "0.500"):
        assert word in text


def test_dots_leave_out_empty_panels_and_refuse_none_at_all():
    series = [panels.Dots("a", {"x": (0.5, 0.4, 0.6), "y": (math.nan,) * 3}, {"x"}, "hard")]
    empty = [panels.Dots("a", {"x": (math.nan,) * 3})]
    one = panels.dots({"m": series, "n": empty}, ["x", "y"])
    size = one.picture().size
    assert size == panels.dots({"m": series}, ["x", "y"]).picture().size
    assert size[1] < panels.dots(dict.fromkeys("abcde", series), ["x", "y"]).picture().size[1]
    with pytest.raises(SoftgateError, match="no value to draw"):
        panels.dots({"n": empty}, ["x"])
