"""The house: which module may import which, and what importing softgate brings in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "softgate"

FLOORS = {
    "errors": 0,
    "files": 0,
    "gates": 1,
    "pools": 2,
    "pooling": 2,
    "selection": 2,
    "schedule": 2,
    "correlation": 2,
    "channels": 2,
    "sharing": 2,
    "stems": 2,
    "surrogate": 3,
    "functional": 4,
    "callsites": 5,
    "governing": 4,
    "tracing": 6,
    "frames": 7,
    "discovery": 8,
    "auditing": 8,
    "sites": 9,
    "pullback": 10,
    "calibration": 11,
    "folding": 10,
    "diagnostics": 11,
    "models": 10,
    "figures": 10,
    "data": 10,
    "grids": 11,
    "explainers": 11,
    "representation": 11,
    "paths": 12,
    "metrics": 12,
    "comparison": 13,
    "controls": 13,
    "alignment": 14,
    "training": 15,
    "runs": 16,
}
"""A module imports only from floors below its own; `data`, `training` and `runs` are packages."""


def floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and node.module:
            if node.module == "softgate":
                found |= {f"softgate.{alias.name}" for alias in node.names}
            elif node.module.startswith("softgate."):
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_module_imports_only_from_floors_below(path):
    if path == SRC / "__init__.py":
        return
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    for name in imports(path):
        part = name.split(".")[1]
        if part != own and part in FLOORS:
            assert floor(name) < FLOORS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_no_module_is_longer_than_a_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_library_brings_in_no_lightning_hydra_wandb_or_torchvision():
    heavy = {"pytorch_lightning", "hydra", "wandb", "torchvision", "matplotlib", "torchmetrics"}
    code = f"import sys, softgate; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
