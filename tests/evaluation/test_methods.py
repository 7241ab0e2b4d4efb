"""The paragraph on methods has every setting that a reader needs, and none that does not hold for all runs."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from configs import container
from made_comparison import comparison
from softgate.evaluation.reports import comparison as report
from softgate.evaluation.reports import publish
from softgate.evaluation.reports.methods import methods

NASTY = r"a_b & 50% of $x$ #1 {z} ~ ^ \ [c]"


@pytest.fixture(scope="module")
def configs():
    """The configs of both arms, as `train.py` composes them."""
    return {arm: container(f"surrogate={arm}", "data.fraction=0.1", name="train") for arm in ("none", "excitation")}


def made(configs, name="digits", **changed):
    found = comparison(name)
    arms = {"none": "none", f"soft {name}": "excitation"}
    runs = []
    for run in found.runs:
        config = configs[arms[run.arm]] | changed | {"seed": run.seed}
        runs.append(replace(run, config=config | {"data": config["data"] | {"fraction_seed": run.seed}}))
    found.runs = runs
    return found.for_people()


def test_every_setting_is_said(configs):
    said = methods(made(configs))
    for part in (
        "We trained resnet18 on digits (2 classes) at 32 × 32 pixels, 6 runs in all.",
        "true gradient (hard gates, hard max pooling: the gradient of the network itself)",
        "soft digits (gate sigmoid with temperature 0.3, max pooling lse with temperature 0.3)",
        "Seeds: seeds 0, 1, 2 in every arm; each seed also drew the training images.",
        *("Training lasted 6 epochs.", "batch size 64", "fraction 0.1", "augment flip off", "crop scale 0.8/1"),
        *("Optimisation: name sgd, lr 0.05, momentum 0.9, weight decay 0.0005, warmup 0.1", "precision 32-true"),
        *("Networks of the last epoch were measured", "200 test images: top-1.", "tuned digits"),
        *("95 % intervals", "Student's t over seeds", "Holm's correction", "1 percentage points", "a power of 80 %"),
        *("Python 3, digits 1, commit digits", "1 × digits", "Training took 0.00167 device-hours."),
    ):  # fmt: skip
        assert part in said, part
    assert not re.search(r"None|null|\{|fraction seed|monitor", said)


def test_what_differs_between_runs_is_not_said_of_all(configs):
    found = made(configs)
    config = found.runs[0].config
    other = config | {"optim": config["optim"] | {"lr": 0.1}, "trainer": config["trainer"] | {"max_epochs": 9}}
    found.runs = [replace(found.runs[0], config=other), *found.runs[1:-1]]
    found.measured = found.measured[:-1]
    said = methods(found)
    assert "lr 0" not in said
    assert "momentum 0.9" in said
    assert "Training lasted 6 epochs or 9 epochs." in said
    assert "Seeds: true gradient: seeds 0, 1, 2; soft digits: seeds 0, 1; each" in said


def test_a_rule_says_what_is_not_usual(configs):
    rule = configs["excitation"]["surrogate"] | {"gain": "matched", "mix": 0.5}
    said = methods(made(configs | {"excitation": configs["excitation"] | {"surrogate": rule}}))
    assert "temperature 0.3, gain matched, mix 0.5)" in said


def test_every_seed_has_a_row_with_its_values(configs):
    found = made(configs)
    table = report.per_seed(found)
    assert [row[:2] for row in table.texts[:4]] == [["true gradient", f"{s}"] for s in (0, 1, 2)] + [
        ["soft digits", "0"]
    ]
    assert [row[2].value for row in table.cells] == [each.values["acc"] for each in found.measured]


def test_the_tex_file_has_every_name_escaped_and_its_rules(configs):
    text = publish.latex(made(configs, NASTY))
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\end{tabular}}") == 4
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
    assert r"a\_b \& 50\% of \$x\$ \#1 \{z\} \textasciitilde{} \textasciicircum{} \textbackslash{}" in text
    assert r"\paragraph{Methods.} We trained resnet18 on " in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex to set the file with")
def test_the_tex_file_is_set(configs, tmp_path):
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
    text = f"{head}\\begin{{document}}\n{publish.latex(made(configs, NASTY))}\\end{{document}}\n"
    (tmp_path / "a.tex").write_text(text)
    subprocess.run(["pdflatex", "-halt-on-error", "a"], cwd=tmp_path, check=True, capture_output=True)
