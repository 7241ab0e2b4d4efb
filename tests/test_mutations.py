"""The mutations of benchmarks/mutations.toml still apply, and the command tells killed from survived."""

import ast
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def command():
    """The module of benchmarks/mutations.py."""
    spec = importlib.util.spec_from_file_location("benchmark_mutations", ROOT / "benchmarks" / "mutations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


mutations = command()
ALL = mutations.mutations()


@cache
def fast(path):
    """The names of a file's tests that are not marked slow as a whole."""
    tests = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return {test.name for test in tests if "pytest.mark.slow" not in map(ast.unparse, test.decorator_list)}


@pytest.mark.parametrize("mutation", ALL, ids=lambda each: each.id)
def test_a_mutation_applies_once_is_code_and_names_tests(mutation):
    text = (mutations.ROOT / mutations.CODE / mutation.file).read_text()
    assert ast.dump(ast.parse(mutation.applied(text))) != ast.dump(ast.parse(text)), "it changes nothing that runs"
    assert mutation.breaks
    assert mutation.tests
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert (ROOT / "tests" / path).is_file(), path
        assert not name or name.partition("[")[0] in fast(ROOT / "tests" / path), f"{test} is not there, or slow"


def test_there_are_enough_of_them_wherever_a_fault_would_spoil_results():
    assert len({each.id for each in ALL}) == len(ALL)
    rooms = [each.file.split("/")[0] for each in ALL]
    for room, least in {"surrogate": 30, "sites": 30, "training": 25, "evaluation": 12, "explainers": 8}.items():
        assert rooms.count(room) >= least, room


def test_a_text_that_is_gone_or_no_longer_alone_is_an_error():
    mutation = mutations.Mutation("sign", "a.py", "a + b", "a - b", "it subtracts", ["test_a.py"])
    assert mutation.applied("c = a + b") == "c = a - b"
    for text, count in (("c = b + a", 0), ("c = a + b; d = a + b", 2)):
        with pytest.raises(ValueError, match=f"^sign: its old text stands {count} times in a.py"):
            mutation.applied(text)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import mutations

mutations.ROOT = Path(sys.argv[1])
home = Path(sys.argv[2])
copy = mutations.Copy(home)
sign = mutations.Mutation("sign", "add.py", "a + b", "a - b", "it subtracts", ["test_add.py"])
order = mutations.Mutation("order", "add.py", "a + b", "b + a", "nothing", ["test_add.py"])
end = mutations.Mutation("end", "add.py", "return", "import os; os._exit(7)\\n    return", "it ends", ["test_add.py"])
results = mutations.Results(home / "results.json")
for each in (sign, order, end, sign):
    by, stage = mutations.look(copy, each, "folder")
    results.put(each, killed_by=by, stage=stage, confirmed=False)
    print(by, stage)
print(mutations.unsound(copy, results, [sign, order, end]), results.of(sign)["confirmed"])
print(copy.failing(["."], every=True))
(mutations.ROOT / mutations.CODE / "add.py").write_text("def add(a, b):\\n    return a + b + 0\\n")
print(results.of(sign))
"""


@pytest.mark.slow
def test_the_command_puts_faults_into_a_copy_and_a_test_that_fails_anyhow_kills_nothing(tmp_path):
    tree = tmp_path / "tree"
    (tree / "src" / "softgate").mkdir(parents=True)
    (tree / "tests").mkdir()
    code = tree / "src" / "softgate" / "add.py"
    (code.parent / "__init__.py").write_text("")
    code.write_text("def add(a, b):\n    return a + b\n")
    (tree / "tests" / "test_add.py").write_text(
        "from softgate.add import add\ndef test_sum():\n    assert add(2, 1) == 3\n"
    )
    (tree / "tests" / "test_odd.py").write_text("def test_odd():\n    assert False\n")
    subprocess.run(["git", "init", "-q", tree], check=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, tree, tmp_path / "home"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tests/test_add.py::test_sum named",
        "tests/test_odd.py::test_odd folder",
        "(a process that ended with 7) named",
        "tests/test_add.py::test_sum named",
        "['tests/test_odd.py::test_odd'] True",
        "['tests/test_odd.py::test_odd']",
        "None",
    ]
