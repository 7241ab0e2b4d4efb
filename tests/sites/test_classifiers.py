"""Every classifier of torchvision is covered or refused by name, and docs/coverage.md says which."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
import torchvision

import softgate as sg

ROOT = Path(__file__).parents[2]
NAMES = torchvision.models.list_models(module=torchvision.models)
QUICK = [
    "alexnet",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
]


def command():
    """The module of benchmarks/classifiers.py."""
    spec = importlib.util.spec_from_file_location("benchmark_classifiers", ROOT / "benchmarks" / "classifiers.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


classifiers = command()


NOT_AFFINE = {
    "maxvit_t": "no: MaxVit has operations that are not known to be linear in the image with the gates held "
    "fixed, or are not: Tanh."
}
"""The networks that no rule makes affine, and what the page says of them."""


@cache
def table():
    """The lines of docs/coverage.md, by model, as lists of cells."""
    lines = (ROOT / "docs" / "coverage.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {line[0]: line for line in cells if line[0] not in ("model", "---")}


def test_the_page_has_every_classifier_of_the_installed_torchvision():
    assert sorted(set(NAMES) - set(table())) == []
    page = (ROOT / "docs" / "coverage.md").read_text()
    assert "uv run benchmarks/classifiers.py" in page
    assert "| NO" not in page


def check(name):
    row = classifiers.examine(name)
    assert row.fine or row.affine == NOT_AFFINE.get(name), row
    listed, cells = table()[name], classifiers.cells(row)
    if len(listed) == len(cells):
        settled = -3 if row.refused else -1  # the cosine, and how far off it is, depend on the machine's rounding
        assert listed[:settled] == cells[:settled]
    else:  # a page that says only what `Surrogate()` refuses
        assert listed == [name, str(row.size), classifiers.listed(row.refused), "yes"]


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_choice_of_classifiers_is_as_the_page_says(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_every_other_classifier_is_as_the_page_says(name):
    check(name)


def test_the_table_would_show_a_rule_that_is_not_in_force(monkeypatch):
    hard = sg.Surrogate(mix=0.0)
    monkeypatch.setattr(classifiers.sg, "Surrogate", lambda: hard)
    row = classifiers.examine("squeezenet1_1")
    assert not row.fine
    assert row.full == {"eval": False, "train": False}
    assert "NO: eval, train" in classifiers.cells(row)


def test_the_table_would_show_a_forward_that_differs(monkeypatch):
    outputs = iter([1.0, 1.0, 1.0, 1.0 + 1e-6])  # bare and attached, in eval and in train mode
    true = classifiers.run

    def run(model, x):
        found = true(model, x)
        return [out * next(outputs) for out in found[0]], *found[1:]

    monkeypatch.setattr(classifiers, "run", run)
    row = classifiers.examine("squeezenet1_1")
    assert row.equal == {"eval": True, "train": False}
    assert not row.fine


def test_the_command_has_no_models_it_does_not_know(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["classifiers.py", "--models", "resnet19"])
    with pytest.raises(SystemExit):
        classifiers.main()
    assert "resnet19" in capsys.readouterr().err
