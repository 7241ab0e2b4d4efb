"""`evaluate.py` over many runs: what is measured, what is written, and what stays as it was."""

import csv
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import torch

import finished_sweep as finished
from compared import CHEAP, FEW, asked, evaluated
from softgate import SoftgateError
from softgate.data.config import DataConfig
from softgate.data.sources import class_folders
from softgate.evaluation import compare, evaluate
from softgate.evaluation.generalization import measures, scores
from softgate.evaluation.reports import results as results_file


@pytest.fixture(scope="module")
def results(swept, tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    evaluated(directory, f"runs={swept}/**", *FEW)
    return directory


# -- the whole ----------------------------------------------------------------------------------------


def test_a_sweep_is_compared_and_everything_is_written(results, swept):
    found = json.loads((results / "results.json").read_text())["comparison"]
    assert found["schema"] == results_file.SCHEMA
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
        assert row["verdict"] in ("better", "worse", "equivalent", "not told apart")
        assert (row["equivalent"] is None) == (row["measure"] != "acc")
        assert ("seeds_for_0.5_low" in row) == (row["measure"] == "acc" and "detectable" in row)


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.links, self.ids, self.tags, self.alts = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, found in (("src", self.sources), ("href", self.links), ("id", self.ids)):
            found += [value for key, value in attributes if key == name]
        self.alts += [dict(attributes).get("alt") for _ in [0] if tag == "img"]


def test_the_report_is_one_file_that_loads_nothing_and_links_to_what_is_there(results, swept):
    text = (results / "report.html").read_text()
    page = Addresses()
    page.feed(text)
    assert len(page.alts) >= 10
    assert all(page.alts)
    assert all(source.startswith("data:") for source in page.sources)
    links = {link for link in page.links if not link.startswith(("#", "data:"))}
    assert {(results / unquote(link)).resolve() for link in links} >= {path.parent for path in swept.glob("*/.hydra")}
    assert all((results / unquote(link)).exists() for link in links)
    assert page.tags.count("script") == 1
    assert {link[1:] for link in page.links if link.startswith("#")} == set(page.ids)
    assert not re.search(r"url\(|@import", text)
    assert ">none<" not in text
    sections = (
        "Every seed",
        "Methods",
        "Summary",
        "Differences",
        "Over epochs",
        "Alignment against accuracy",
        "Recipe",
        "Versions",
    )
    commands = "uv run train.py -m surrogate=none,excitation,sugar seed=0,1,2", "uv run evaluate.py"
    for part in (*sections, *commands, "viewport", "a processor"):
        assert part in text, part


def test_the_tables_can_be_pasted_into_a_page(results):
    text = (results / "report.md").read_text()
    sentences, commands, _ = text.partition("```bash\n")
    assert re.match(r"(excitation|sugar) (and|does|do) ", sentences)
    assert sentences.count("the true gradient") == 2
    assert commands
    assert "uv run train.py -m surrogate=none,excitation,sugar seed=0,1,2\nuv run evaluate.py " in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    for lines in tables[1:]:
        assert [line.split("|")[1].strip() for line in lines[2:]] == ["excitation", "sugar"]


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
        assert compare.wanted(asked(*more)) == []
    assert len(compare.wanted(asked(f"runs={swept}/none-*"))) == 3


def test_arms_are_compared_at_the_same_share_of_the_data(images, tmp_path):
    for share in (0.5, 1.0):
        for rule in ("none", "sugar"):
            for seed in (0, 1):
                data = finished.options(images, fraction=share)
                finished.run(tmp_path / "runs" / f"{rule}-{share}-{seed}", data, rule, seed, acc=share / 2)
    found = evaluated(tmp_path / "out", f"runs={tmp_path}/runs", *FEW, *CHEAP)["comparison"]
    assert found["arms"] == ["none", "sugar"]
    assert found["conditions"] == ["data.fraction=0.5", "data.fraction=1"]
    rows = [row for row in found["differences"] if row["measure"] == "acc"]
    assert [(row["arm"], row["condition"], row["seeds"]) for row in rows] == [
        ("sugar", "data.fraction=0.5", (0, 1)),
        ("sugar", "data.fraction=1", (0, 1)),
    ]
    assert "Data efficiency" in (tmp_path / "out" / "report.html").read_text()


# -- measures -----------------------------------------------------------------------------------------


def test_a_shifted_test_set_is_matched_by_its_folders(swept, images, tmp_path):
    finished.images(tmp_path / "other", splits=("shift",), classes=["d", "b"], count=2)
    found = evaluated(tmp_path / "out", f"runs={swept}/n*", *FEW, *CHEAP, f"compare.shifted={tmp_path}/other/shift")
    assert all(0 <= run["measures"]["shifted"] <= 1 for run in found["comparison"]["runs"])
    _, options = evaluate.restore(swept / "none-0" / "checkpoints" / "last.ckpt")
    data = evaluate.ImageData(options, ("val",))
    shifted, option = tmp_path / "other" / "shift", "compare.shifted=x"
    listing, matched = measures.of_classes(class_folders(shifted, option), data, option)
    assert listing.labels.tolist() == [1, 1, 3, 3]
    assert f"compare.shifted={shifted}: {matched}." in found["comparison"]["notes"]
    finished.images(tmp_path / "third", splits=("shift",), classes=["b", "e"])
    with pytest.raises(
        SoftgateError, match=r"compare\.shifted=x: 1 of 2 classes are found in the data by name, and e are not"
    ):
        measures.of_classes(class_folders(tmp_path / "third" / "shift", option), data, option)


def test_corrupted_images_are_the_same_for_every_network_kept_or_made_anew(swept, monkeypatch):
    module, options = evaluate.restore(swept / "none-0" / "checkpoints" / "last.ckpt")
    module.sites.detach()
    config, data = asked("runs=x", *FEW).compare, DataConfig.read(options)
    bench = measures.Bench(evaluate.ImageData(data, ("val",)), config)
    first = bench.measure(module.eval(), data)
    assert bench._kept
    again = bench.measure(module, data)
    monkeypatch.setattr(measures, "CACHE_LIMIT", 0)
    anew = measures.Bench(evaluate.ImageData(data, ("val",)), config)
    assert first.values == again.values == anew.measure(module, data).values
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
