"""Runs that cannot take part in a comparison are named, damage costs no report, mistakes are one sentence."""

import json
import re
import shlex
import shutil

import pytest

import finished_sweep as finished
from compared import CHEAP, FEW, evaluated
from softgate import SoftgateError
from softgate.evaluation import checkpoints, compare
from softgate.evaluation import runs as collection


@pytest.fixture
def copied(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "sweep")


def test_every_run_that_cannot_take_part_is_named_in_a_line_and_the_rest_is_compared(copied, images, tmp_path, capsys):
    (copied / "none-0" / "summary.json").unlink()
    (copied / "none-1" / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    summary = json.loads((copied / "sugar-0" / "summary.json").read_text())
    (copied / "sugar-0" / "summary.json").write_text(json.dumps(summary | {"status": "diverged"}))
    (copied / "sugar-1" / "checkpoints" / "last.ckpt").unlink()
    finished.run(copied / "small", finished.options(images, size=16), "sugar", 5)
    finished.run(copied / "three", finished.options(images), "sugar", 6, classes=finished.CLASSES[:3])
    finished.run(copied / "z-again", finished.options(images), "excitation", 2, started="2027-01-01")
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
    assert "true gradient lacks seed 0, 1: left out of its pairs with excitation." in found["notes"]
    assert {row["arm"]: row["seeds"] for row in found["differences"]} == {"excitation": (2,), "sugar": (2,)}
    assert all(row["verdict"] == "not told apart" for row in found["differences"])


def test_what_is_damaged_costs_a_run_or_a_picture_and_not_the_report(copied, images, tmp_path):
    (copied / "none-0" / "metrics.csv").write_bytes(b"\xff\xfe\x00 epoch")
    (copied / "none-1" / "metrics.csv").write_text("epoch,val/acc\n0,no number\n")
    (copied / "sugar-0" / "summary.json").write_text('{"status": "fini')
    (copied / "excitation-0" / "checkpoints" / "best.ckpt").write_bytes(b"half a file")
    again = finished.run(copied / "z-again", finished.options(images), "excitation", 2, started="2027-01-01")
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
    assert "excitation: no seed is shared with the true gradient: nothing is compared." in page
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
def test_a_glob_reaches_a_directory_with_marks_in_its_name(swept, tmp_path, name):
    place = shutil.copytree(swept, tmp_path / name)
    assert len(checkpoints.directories(f"{place}/**")) == len(checkpoints.directories(f"{place}/none-?")) * 3 == 9


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
        (("compare.equivalence=0",), r"compare\.equivalence=0: a number > 0 is needed, or null for none"),
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
