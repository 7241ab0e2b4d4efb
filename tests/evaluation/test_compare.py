"""`evaluate.py` over many runs: which runs make which arm, what is left out, and what a reader gets."""

import csv
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import sweep
from configs import composed, container
from softgate import SoftgateError
from softgate.evaluation import compare, evaluate
from softgate.evaluation import runs as collection
from softgate.evaluation.generalization import measures, scores
from softgate.evaluation.generalization.measures import Measured
from softgate.evaluation.reports import sentences
from softgate.figures import comparison as charts

FEW = (
    *("accelerator=cpu", "grid.rows=1", "grid.targets=1", "compare.resamples=100", "compare.corruptions.images=4"),
    *("compare.corruptions.severities=[5]", "compare.attack.steps=1", "compare.attack.images=4"),
    *("compare.sharpness.images=4", "compare.sharpness.iterations=2"),
)
CHEAP = (
    *("compare.corruptions.families=[]", "compare.attack.linf=null", "compare.attack.l2=null"),
    *("compare.sharpness.images=0", "compare.grids=false"),
)


def evaluated(directory, *words):
    return evaluate.evaluate(composed(*words, name="evaluate", directory=directory))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sweep.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def swept(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "sweep"
    return sweep.sweep(root, sweep.options(images))


@pytest.fixture(scope="module")
def results(swept, tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    evaluated(directory, f"runs={swept}/**", *FEW)
    return directory


@pytest.fixture
def copied(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "sweep")


# -- the whole ----------------------------------------------------------------------------------------


def test_a_sweep_is_compared_and_everything_is_written(results, swept):
    found = json.loads((results / "results.json").read_text())["comparison"]
    assert found["schema"] == compare.SCHEMA
    assert found["baseline"] == "none"
    assert found["arms"] == ["none", "excitation", "sugar"]
    assert len(found["runs"]) == 9
    assert found["left_out"] == []
    measured = {"acc", "nll", "brier", "ece", "train_acc", "gap", "corrupted", "pgd_linf", "pgd_l2", "sharpness"}
    assert measured <= set(found["runs"][0]["measures"])
    assert found["runs"][0]["command"] == "uv run train.py surrogate=excitation seed=0"
    assert found["runs"][0]["environment"]["hardware"] == "a processor"
    assert {(row["arm"], row["measure"]) for row in found["differences"]} >= {("sugar", "acc"), ("excitation", "nll")}
    for name in ("runs", "differences", "summary", "timing"):
        with (results / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) >= 2, name
    assert len(list((results / "grids").glob("*/grid.png"))) == 3


def test_a_difference_is_that_of_the_runs_pair_by_pair(results):
    found = json.loads((results / "results.json").read_text())["comparison"]
    by = {(run["arm"], run["seed"]): run["measures"] for run in found["runs"]}
    for row in found["differences"]:
        expected = [by[row["arm"], s][row["measure"]] - by["none", s][row["measure"]] for s in row["seeds"]]
        assert row["deltas"] == pytest.approx(expected, abs=1e-9)
        assert row["mean"] == pytest.approx(np.mean(expected), abs=1e-9)
        assert row["verdict"] in ("better", "worse", "not told apart")


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags, self.alts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]
        self.alts += [dict(attributes).get("alt") for _ in [0] if tag == "img"]


def test_the_report_is_one_file_without_scripts_or_addresses(results):
    text = (results / "report.html").read_text()
    page = Addresses()
    page.feed(text)
    assert len(page.alts) >= 10
    assert all(page.alts)
    assert all(address.startswith("data:") for address in page.found)
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", text)
    sections = "Summary", "Differences", "Over epochs", "Alignment against accuracy", "Recipe", "Versions"
    commands = "uv run train.py -m surrogate=none,excitation,sugar seed=0,1,2", "uv run evaluate.py"
    for part in (*sections, *commands, "viewport", "a processor"):
        assert part in text, part


def test_the_tables_can_be_pasted_into_a_page(results):
    text = (results / "report.md").read_text()
    assert text.startswith(
        "```bash\nuv run train.py -m surrogate=none,excitation,sugar seed=0,1,2\nuv run evaluate.py "
    )
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in tables[1][2:]] == ["excitation", "sugar"]


def test_measures_agree_with_a_plain_loop(results, swept):
    found = json.loads((results / "results.json").read_text())["comparison"]
    run = next(run for run in found["runs"] if run["label"] == "sugar-1")
    module, options = evaluate.restore(swept / "sugar-1" / "checkpoints" / "last.ckpt")
    data = evaluate.ImageData(options)
    data.setup("validate")
    with torch.no_grad():
        pairs = [(module.net.eval()(x), y) for x, y in data.val_dataloader()]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert run["measures"]["acc"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert run["measures"]["nll"] == pytest.approx(float(scores.nll(logits, labels).mean()), rel=1e-5)
    assert run["measures"]["gap"] == pytest.approx(run["measures"]["train_acc"] - run["measures"]["acc"])


def test_comparing_leaves_the_runs_as_they_were(swept, tmp_path):
    before = {path: path.read_bytes() for path in sorted(swept.rglob("*")) if path.is_file()}
    evaluated(tmp_path, f"runs={swept}", *FEW, *CHEAP)
    assert {path: path.read_bytes() for path in sorted(swept.rglob("*")) if path.is_file()} == before


def test_the_same_runs_give_the_same_numbers_however_they_are_named(swept, tmp_path):
    words = f"runs={swept}/*", f"runs={swept}", f"runs={swept}/**/*.ckpt"
    made = [evaluated(tmp_path / str(i), word, *FEW, *CHEAP)["comparison"] for i, word in enumerate(words)]
    for one in made[1:]:
        assert [run["measures"] for run in one["runs"]] == [run["measures"] for run in made[0]["runs"]]
        assert one["differences"] == made[0]["differences"]


def test_one_run_and_compare_none_and_alignment_are_looked_at_as_before(swept, tmp_path):
    words = ("grid.rows=1", "grid.targets=1", "measure=false", "accelerator=cpu")
    for more in ((f"runs={swept}/none-0",), (f"runs={swept}/none-*", "compare=none")):
        found = evaluated(tmp_path, *more, *words)
        assert "comparison" not in found
        assert found["runs"][0]["checkpoint"].endswith("none-0/checkpoints/best.ckpt")
    files = [str(swept / "none-0" / "checkpoints" / f"{name}.ckpt") for name in ("best", "last")]
    for more in ((f"runs={swept}/none-*", "alignment=full"), (f"runs=[{','.join(files)}]",)):
        assert compare.wanted(container(*more, name="evaluate", directory=tmp_path)) == []
    assert len(compare.wanted(container(f"runs={swept}/none-*", name="evaluate", directory=tmp_path))) == 3


def test_arms_are_compared_at_the_same_share_of_the_data(images, tmp_path):
    for share in (0.5, 1.0):
        for rule in ("none", "sugar"):
            for seed in (0, 1):
                data = sweep.options(images, fraction=share)
                sweep.run(tmp_path / "runs" / f"{rule}-{share}-{seed}", data, rule, seed, acc=share / 2)
    found = evaluated(tmp_path / "out", f"runs={tmp_path}/runs", *FEW, *CHEAP)["comparison"]
    assert found["arms"] == ["none", "sugar"]
    assert found["conditions"] == ["data.fraction=0.5", "data.fraction=1"]
    rows = [row for row in found["differences"] if row["measure"] == "acc"]
    assert [(row["arm"], row["condition"], row["seeds"]) for row in rows] == [
        ("sugar", "data.fraction=0.5", (0, 1)),
        ("sugar", "data.fraction=1", (0, 1)),
    ]
    assert "Data efficiency" in (tmp_path / "out" / "report.html").read_text()


# -- what is left out ---------------------------------------------------------------------------------


def test_every_run_that_cannot_take_part_is_named_in_a_line_and_the_rest_is_compared(copied, images, tmp_path, capsys):
    (copied / "none-0" / "summary.json").unlink()
    (copied / "none-1" / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    summary = json.loads((copied / "sugar-0" / "summary.json").read_text())
    (copied / "sugar-0" / "summary.json").write_text(json.dumps(summary | {"status": "diverged"}))
    (copied / "sugar-1" / "checkpoints" / "last.ckpt").unlink()
    sweep.run(copied / "small", sweep.options(images, size=16), "sugar", 5)
    sweep.run(copied / "three", sweep.options(images), "sugar", 6, classes=sweep.CLASSES[:3])
    sweep.run(copied / "z-again", sweep.options(images), "excitation", 2, started="2027-01-01")
    found = evaluated(tmp_path / "out", f"runs=[{copied}/**,nowhere]", *FEW, *CHEAP)["comparison"]
    lines = {line.partition(":")[0]: line for line in found["left_out"]}
    assert set(lines) == {"none-0", "none-1", "sugar-0", "sugar-1", "small", "three", "excitation-2", "nowhere"}
    for label, part in {
        "none-0": "did not finish", "none-1": "not a checkpoint", "sugar-0": "diverged",
        "sugar-1": r"no checkpoints/last\.ckpt", "small": r"other data\.size than .*-\d \(16 and 32\)",
        "three": r"other classes than .*-\d \(3 and 4\)", "excitation-2": "z-again is a newer run",
        "nowhere": "there is no run",
    }.items():  # fmt: skip
        assert re.search(part, lines[label]), lines[label]
        assert "\n" not in lines[label]
    said, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for label in lines:
        assert f"left out: {label}:" in said
        assert f"<li>{label}:" in page
    assert "none lacks seed 0, 1: left out of its pairs with excitation." in found["notes"]
    assert {row["arm"]: row["seeds"] for row in found["differences"]} == {"excitation": (2,), "sugar": (2,)}
    assert all(row["verdict"] == "not told apart" for row in found["differences"])


def test_what_is_damaged_costs_a_run_or_a_picture_and_not_the_report(copied, images, tmp_path):
    (copied / "none-0" / "metrics.csv").write_bytes(b"\xff\xfe\x00 epoch")
    (copied / "none-1" / "metrics.csv").write_text("epoch,val/acc\n0,no number\n")
    (copied / "sugar-0" / "summary.json").write_text('{"status": "fini')
    (copied / "excitation-0" / "checkpoints" / "best.ckpt").write_bytes(b"half a file")
    again = sweep.run(copied / "z-again", sweep.options(images), "excitation", 2, started="2027-01-01")
    (again / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    table = [["job", "directory"], ["0", "none-0"], ["9", "sugar-7"]]
    (copied / "sweep.csv").write_text("\n".join(map(",".join, table)))
    found = evaluated(tmp_path / "out", f"runs={copied}/**", *FEW)["comparison"]
    assert found["left_out"] == [
        "none-0: its metrics.csv is damaged.",
        "none-1: its metrics.csv is damaged.",
        "sugar-0: its summary.json is damaged.",
        "job 9 of sweep: it never started.",
        found["left_out"][4],
    ]
    assert found["left_out"][4].startswith("z-again: not a checkpoint of plain data, or cut short")
    assert [run["label"] for run in found["runs"] if run["arm"] == "excitation"] == [
        f"excitation-{i}" for i in range(3)
    ]
    assert any(note.startswith("excitation-0: no grid of its best epoch; ") for note in found["notes"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("src='data:image/jpeg") == 2


def test_where_no_seed_is_shared_the_report_says_so(swept, tmp_path):
    runs = f"runs=[{swept}/none-0,{swept}/excitation-1]"
    evaluated(tmp_path, runs, *FEW, *CHEAP)
    page = (tmp_path / "report.html").read_text()
    assert "excitation: no seed is shared with none: nothing is compared." in page
    assert "There is no arm but" not in page
    assert "Sharpness:" not in page
    assert "Corrupted:" not in page
    assert "Attacks:" not in page


def test_commands_can_be_pasted_into_a_shell_and_begin_from_the_start():
    words = ["surrogate=none,excitation", "name='a b'", "x=[1]", "sweep.resume=true", "hydra.sweep.dir=o/s"]
    run = collection.Run(None, "x", {}, {}, {}, {}, words[:3], words)
    assert shlex.split(run.command) == ["uv", "run", "train.py", *words[:3]]
    assert shlex.split(run.sweep_command) == ["uv", "run", "train.py", "-m", *words[:3]]


@pytest.mark.parametrize("name", ["a=b,c[1]", "what?", "star*"])
def test_a_directory_with_marks_in_its_name_is_found_by_a_glob(swept, tmp_path, name):
    place = shutil.copytree(swept, tmp_path / name)
    assert len(collection.directories(f"{place}/**")) == len(collection.directories(f"{place}/none-?")) * 3 == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runs=[]",), r"runs=\[\]: a run's directory, a checkpoint file, or a list"),
        (("compare.attack=null",), r"compare\.attack=None: it has options under it; compare\.attack\.linf=null"),
        (("compare.sharpness=false",), r"compare\.sharpness=False: it has options under it"),
        (
            ("compare.tune=[optim.lrr]",),
            r"compare\.tune=optim\.lrr: no run has such.* mean 'optim.lr'",
        ),
        (("compare.within=[foo.bar]",), r"compare\.within=foo\.bar: no run has such an option"),
        (("compare.curves=[noise]",), r"compare\.curves=noise.*allowed: "),
        (("runs=ROOT/nothing*",), r"runs=.*nothing\*: no run's directory and no checkpoint matches"),
        (("compare.baseline=nine",), r"compare\.baseline=nine.*allowed: excitation, none, sugar\. Did you mean 'none'"),
        (("compare.checkpoint=first",), r"compare\.checkpoint=first"),
        (("compare.level=2",), r"compare\.level=2"),
        (("compare.resamples=1",), r"compare\.resamples=1"),
        (("compare.tune=optim.lr",), r"compare\.tune=optim\.lr: a list of names"),
        (("compare.corruptions.families=[frost]",), r"compare\.corruptions\.families=frost"),
        (("compare.corruptions.severities=[6]",), r"compare\.corruptions\.severities=\[6\]"),
        (("compare.attack.linf=0",), r"compare\.attack\.linf=0: a number > 0"),
        (("compare.attack.steps=0",), r"compare\.attack\.steps=0: a whole number >= 1 is needed\."),
        (("compare.shifted=nowhere",), r"compare\.shifted=nowhere: there is no such folder"),
        (("compare.price=-1",), r"compare\.price=-1"),
    ],
)
def test_a_wrong_comparison_is_one_sentence_before_data_is_loaded(swept, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(compare, "ImageData", None)
    words = [word.replace("ROOT", str(swept)) for word in words]
    first = () if words[0].startswith("runs=") else (f"runs={swept}",)
    with pytest.raises(SoftgateError, match=message):
        evaluated(tmp_path, *first, *FEW, *words)


def test_where_nothing_is_left_the_reasons_are_in_the_sentence(copied, tmp_path):
    for path in copied.glob("*/summary.json"):
        path.unlink()
    with pytest.raises(SoftgateError, match=r"none of 9 runs can be compared; .*none-0: it has no summary"):
        evaluated(tmp_path / "out", f"runs={copied}", *FEW)


# -- arms ---------------------------------------------------------------------------------------------


def read(*directories):
    runs, left = collection.read(directories, "last")
    assert left == []
    return runs


def test_arms_are_named_after_what_differs_and_nothing_else(images, tmp_path):
    data = sweep.options(images)
    a = [sweep.run(tmp_path / f"a{s}", data, "none", s, lr=0.1) for s in (0, 1)]
    b = [sweep.run(tmp_path / f"b{s}", data, "sugar", s, lr=0.1) for s in (0, 1)]
    c = sweep.run(tmp_path / "c", data, "sugar", 0, lr=0.2)
    d = sweep.run(tmp_path / "d", sweep.options(images, fraction=0.1, fraction_seed=3), "none", 0, lr=0.1)
    names = [run.arm for run in collection.sort(read(*a, *b), [], [])]
    assert names == ["none", "none", "sugar", "sugar"]
    assert [run.arm for run in collection.sort(read(*a), [], [])] == ["none", "none"]
    named = [run.arm for run in collection.sort(read(*a, *b, c), [], [])]
    assert named[0] == "none, optim.lr=0.1"
    assert named[-2:] == ["sugar, optim.lr=0.1", "sugar, optim.lr=0.2"]
    at = collection.sort(read(a[0], d), ["data.fraction"], [])
    assert [(run.arm, run.condition) for run in at] == [("none", "data.fraction=1"), ("none", "data.fraction=0.1")]
    for path in tmp_path.glob("*/.hydra/hydra.yaml"):
        path.unlink()
    assert [run.arm for run in collection.sort(read(*a, *b), [], [])] == ["hard", "hard", "bsilu", "bsilu"]


def test_settings_of_a_rule_that_differ_are_in_the_name(images, tmp_path, monkeypatch):
    data = sweep.options(images)
    hot = sweep.RULES["excitation"] | {"gate": {"name": "sigmoid", "temperature": 0.6}}
    first = sweep.run(tmp_path / "a", data, "excitation", 0)
    monkeypatch.setitem(sweep.RULES, "excitation", hot)
    runs = read(first, sweep.run(tmp_path / "b", data, "excitation", 0), sweep.run(tmp_path / "c", data, "none", 0))
    names = [run.arm for run in collection.sort(runs, [], [])]
    assert names == ["excitation, gate.temperature=0.3", "excitation, gate.temperature=0.6", "none"]


def test_the_best_value_of_a_tuned_key_is_chosen_by_the_other_seeds(images, tmp_path):
    data, made = sweep.options(images), []
    table = {(0.1, 0): 0.5, (0.1, 1): 0.6, (0.1, 2): 0.6, (0.2, 0): 0.99, (0.2, 1): 0.4, (0.2, 2): 0.4}
    for (lr, seed), acc in table.items():
        made.append(sweep.run(tmp_path / f"{lr}-{seed}", data, "none", seed, lr=lr, acc=acc))
    runs = collection.sort(read(*made), [], ["optim.lr"])
    assert {run.arm for run in runs} == {"none"}
    chosen, said = collection.tune(runs, ["optim.lr"], "val/acc")
    # Seed 0's luck at 0.2 chooses 0.2 for the others, and not for itself.
    assert {run.seed: run.config["optim"]["lr"] for run in chosen} == {0: 0.1, 1: 0.2, 2: 0.2}
    assert said == ["none: optim.lr=0.1 for seed 0; optim.lr=0.2 for seed 1, 2, of 2 values tried."]


def test_a_value_that_only_one_seed_tried_is_not_chosen_by_its_own_luck(images, tmp_path):
    data, made = sweep.options(images), []
    for (lr, seed), acc in {(0.1, 0): 0.8, (0.1, 1): 0.8, (0.5, 1): 0.9}.items():
        made.append(sweep.run(tmp_path / f"{lr}-{seed}", data, "none", seed, lr=lr, acc=acc))
    chosen, _ = collection.tune(collection.sort(read(*made), [], ["optim.lr"]), ["optim.lr"], "val/acc")
    assert {run.seed: run.config["optim"]["lr"] for run in chosen} == {0: 0.1, 1: 0.1}


def test_where_data_are_kept_makes_no_arm_and_other_seeds_are_named(images, tmp_path):
    kept = sweep.run(tmp_path / "a", sweep.options(images, cache_dir="/scratch", fraction_seed=0), "none", 0)
    other = sweep.run(tmp_path / "b", sweep.options(images, cache_dir=None, fraction_seed=3), "none", 0)
    runs = collection.sort(read(kept, other), [], [])
    assert {run.arm for run in runs} == {"none"}
    (line,) = collection.without_doubles(runs, [])[1]
    assert "data.fraction_seed=3 where this has 0 (runs are paired by seed)" in line


# -- sentences ----------------------------------------------------------------------------------------


def comparison(a, b, key="acc", baseline="none"):
    """Two arms with the given scores by seed and image."""
    options = {"level": 0.95, "resamples": 300, "curves": ["noise_cosine"], "within": [], "price": None}
    made = []
    for arm, rows in (("none", b), ("soft", a)):
        for seed, row in enumerate(rows):
            each = Measured()
            each.add("acc", torch.tensor(row))
            made.append((collection.Run(None, f"{arm}-{seed}", {"seed": seed}, {}, {}, {}, [], [], arm=arm), each))
    found = compare.Comparison([run for run, _ in made], baseline, options)
    found.measured = [each for _, each in made]
    found.rows = compare.differences(found)
    return found


def test_only_an_arm_that_is_told_apart_is_called_better():
    generator = np.random.default_rng(0)
    base = (generator.random((6, 300)) < 0.8).astype(float)
    clear = comparison(np.maximum(base, generator.random((6, 300)) < 0.4), base)
    assert clear.rows[0].verdict == "better"
    assert sentences.claims(clear)[0].startswith("soft is better than none: +")
    same = comparison((generator.random((6, 300)) < 0.8).astype(float), base)
    assert same.rows[0].verdict == "not told apart"
    (sentence,) = sentences.claims(same)
    assert sentence.startswith("soft is not told apart from none: ")
    assert re.search(r"6 seeds find a difference of \d+\.\d\d pp four times in five; (one|on these)", sentence)
    alone = comparison(base[:1], 1 - base[:1])
    assert sentences.claims(alone)[0].endswith("One seed makes no claim.")


def test_bands_are_t_intervals_over_seeds():
    line = sentences.band([[(0, 1.0), (1, 2.0)], [(0, 3.0), (1, 2.0)], [(0, 2.0)]])
    assert line.points == [(0, 2.0)]
    assert line.high[0][1] - 2 == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-5)
    assert sentences.band([[(0, 1.0)]]).low == ()
    assert sentences.band([[], []]).points == ()


def test_bands_on_log_scales_are_those_of_the_logarithms_and_stay_above_zero():
    histories = [[(0, 1.0)], [(0, 1000.0)]]
    line = sentences.band(histories, log=True)
    assert line.points[0][1] == pytest.approx(math.sqrt(1000))
    assert line.low[0][1] > 0 > sentences.band(histories).low[0][1]
    assert line.high[0][1] * line.low[0][1] == pytest.approx(1000)  # symmetric about the mean there
    assert charts.steep([1.0, 1000.0])
    assert not charts.steep([1.0, 10.0])
    assert not charts.steep([0.0, 1000.0])
    assert not charts.steep([])


def test_job_2_of_a_sweep_stands_before_job_10(tmp_path):
    for number in (10, 2, 0):
        (tmp_path / f"{number}-digits").mkdir()
        (tmp_path / f"{number}-digits" / "config.yaml").write_text("trainer: {max_epochs: 1}")
    expected = [tmp_path / f"{number}-digits" for number in (0, 2, 10)]
    assert collection.directories(str(tmp_path)) == collection.directories(f"{tmp_path}/*") == expected


def test_a_correlation_within_arms_is_not_feigned_by_arms():
    groups = {"a": [(0.0, 1.0), (1.0, 0.0)], "b": [(10.0, 11.0), (11.0, 10.0)]}
    assert sentences.correlation(groups) == "Spearman over all 4 runs 0.60, within arms -1.00."
    single = {"a": [(0.1, 50)], "b": [(0.2, 60)], "c": [(0.3, 70)]}
    assert sentences.correlation(single) == "Spearman over all 3 runs 1.00, within arms –."


# -- measures -----------------------------------------------------------------------------------------


def test_a_shifted_test_set_is_matched_by_its_folders(swept, images, tmp_path):
    sweep.images(tmp_path / "other", splits=("shift",), classes=["d", "b"], count=2)
    found = evaluated(tmp_path / "out", f"runs={swept}/n*", *FEW, *CHEAP, f"compare.shifted={tmp_path}/other/shift")
    assert all(0 <= run["measures"]["shifted"] <= 1 for run in found["comparison"]["runs"])
    _, options = evaluate.restore(swept / "none-0" / "checkpoints" / "last.ckpt")
    listing = measures.shifted_listing(str(tmp_path / "other" / "shift"), evaluate.ImageData(options, ("val",)))
    assert listing.labels.tolist() == [1, 1, 3, 3]
    sweep.images(tmp_path / "third", splits=("shift",), classes=["e"])
    with pytest.raises(SoftgateError, match="the folder 'e' is no class of the data"):
        measures.shifted_listing(str(tmp_path / "third" / "shift"), evaluate.ImageData(options, ("val",)))


def test_corrupted_images_are_the_same_for_every_network_kept_or_made_anew(swept, monkeypatch):
    module, options = evaluate.restore(swept / "none-0" / "checkpoints" / "last.ckpt")
    module.sites.detach()
    config = container("runs=x", *FEW, name="evaluate")["compare"]
    bench = measures.Bench(evaluate.ImageData(options, ("val",)), config)
    first = bench.measure(module.eval(), options)
    assert bench._kept
    again = bench.measure(module, options)
    monkeypatch.setattr(measures, "CACHE_LIMIT", 0)
    anew = measures.Bench(evaluate.ImageData(options, ("val",)), config)
    assert first.values == again.values == anew.measure(module, options).values
    assert not anew._kept


def test_the_tables_go_to_wandb(swept, tmp_path, monkeypatch):
    import time

    from wandb_file import read_run

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    evaluated(tmp_path, f"runs={swept}/*-0", *FEW, *CHEAP, "compare.wandb=softgate")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    names = {f"comparison/{name}" for name in ("summary", "differences", "timing", "report")}
    deadline, keys = time.monotonic() + 30, set()
    while not names <= keys and time.monotonic() < deadline:  # another process writes the file
        rows = [record.history.item for record in read_run(file) if record.WhichOneof("record_type") == "history"]
        keys = {item.nested_key[0] if item.nested_key else item.key for items in rows for item in items}
        keys |= {key.partition(".")[0] for key in keys}
    assert names <= keys
