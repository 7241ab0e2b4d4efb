"""Types for users: what a type checker sees of an installed softgate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

PROGRAM = """
import torch
from torch import nn

import softgate as sg

model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.rand(1, 3, 8, 8)
rule = sg.Surrogate(gate=sg.gates.Sigmoid(temperature=0.3), pool=sg.pools.LSE())
reveal_type(sg.attach(model, rule))
reveal_type(sg.ascend(model, x, 0))
reveal_type(sg.grids.read(model, x, [0], [0], {"gradient": None}))
reveal_type(sg.paths.record(model, x))
reveal_type(sg.pullback)
reveal_type(sg.pullback(model, x, target=0, rule=rule))
sg.attach(model, "excitation")
"""

SEEN = ("sites.sites.Sites", "explainers.pullback.Ascent", "grids.reading.Grid", "explainers.gates.Gates")


def checked(directory: Path, *config: str) -> list[str]:
    """What mypy says of the program, line by line; softgate is found as an installed package is, by py.typed."""
    (directory / "user.py").write_text(PROGRAM)
    (directory / "mypy.ini").write_text("\n".join(["[mypy]", "strict = true", *config]))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "user.py"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


def assert_typed(lines: list[str]) -> None:
    revealed = [line.split('"')[1] for line in lines if "Revealed type" in line]
    assert revealed[:4] == [f"softgate.{name}" for name in SEEN]
    assert revealed[4].startswith("def (model: ")
    assert "rule: softgate.surrogate.rule.Surrogate | None =" in revealed[4]
    errors = [line for line in lines if "error:" in line]
    assert len(errors) == 1
    assert 'incompatible type "str"; expected "Surrogate | None"' in errors[0]


def test_a_type_checker_sees_softgates_types(tmp_path):
    # Without those of torch and all others, which take a minute to read.
    only = ["follow_imports = skip", "[mypy-softgate.*]", "follow_imports = normal"]
    assert_typed(checked(tmp_path, *only))


@pytest.mark.slow
def test_a_type_checker_sees_tensors(tmp_path):
    lines = checked(tmp_path)
    assert_typed(lines)
    assert any('"torch._tensor.Tensor"' in line for line in lines)
