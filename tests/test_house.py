"""The house: which module may import which, and what importing softgate brings in."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import softgate

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "softgate"

FLOORS = (
    ("errors", "correlation", "rounding"),
    (
        "files",
        "options",
        "targets",
        "quoting",
        "memory",
        "classes",
        "surrogate",
        "figures",
        "signals",
        "tables",
        "display",
    ),
    ("sites", "data", "locks"),
    ("explainers", "models"),
    ("grids", "metrics", "paths"),
    ("training",),
    ("evaluation",),
    ("app",),
    ("cli",),
)
"""A module imports only from floors below its own, or from its own package."""

LONGEST = 400
"""Lines of a module; a longer one is two rooms."""

MODULES = {
    ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
}


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(module: str) -> set[str]:
    """The softgate modules that a module imports: anywhere in it, for types only and inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES} - {module}


INNER = sorted(MODULES.keys() - {"softgate"})


@pytest.mark.parametrize("module", INNER)
def test_a_module_imports_only_from_floors_below_or_from_its_own_package(module):
    for name in imports(module):
        assert name != "softgate", f"{module} imports the package itself"
        if name.split(".")[1] != module.split(".")[1]:
            assert floor(name) < floor(module), f"{module} imports {name}"


def test_no_two_modules_import_each_other_however_long_the_way():
    open_, done = dict.fromkeys(INNER), set()
    graph = {module: imports(module) - {"softgate"} for module in INNER}

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in open_:
        visit(module, ())


def test_contributing_draws_these_floors():
    drawn = (ROOT / "CONTRIBUTING.md").read_text()
    for number, rooms in enumerate(FLOORS, 1):
        assert f"| {number} | {' '.join(f'`{room}`' for room in rooms)} |" in drawn


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_longer_than_a_sitting(module):
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("package", sorted(name for name, path in MODULES.items() if path.name == "__init__.py"))
def test_no_public_name_hides_a_module(package):
    found = importlib.import_module(package)
    for module in pkgutil.iter_modules(found.__path__):
        assert isinstance(getattr(found, module.name, found), ModuleType), f"{package}.{module.name} is a module too"


def test_the_library_brings_in_no_lightning_hydra_wandb_torchvision_or_compiler():
    heavy = {"pytorch_lightning", "hydra", "wandb", "torchvision", "matplotlib", "torchmetrics", "torch._dynamo"}
    heavy |= {"pydantic"}
    code = f"import sys, softgate; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packages_that_need_drawing_are_there_when_they_are_asked_for():
    code = "import softgate as sg; print(sg.grids.read, sg.metrics.NoiseCosine, sg.explainers.gradient, sg.figures)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert {"grids", "metrics", "explainers"} <= set(dir(softgate))
    with pytest.raises(AttributeError, match="attribute gird"):
        softgate.gird  # noqa: B018  # asked for, not used
