"""The documents: code blocks run, links lead somewhere, commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from softgate.surrogate import gates

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(autouse=True)
def _forget_gates_that_examples_define():
    known = dict(gates.KNOWN)
    yield
    gates.KNOWN.clear()
    gates.KNOWN.update(known)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page):
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_readme_names_every_choice_of_the_groups_it_lists():
    text = (ROOT / "README.md").read_text()
    for group in ("surrogate", "model", "data", "trainer", "optim", "logger", "debug"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            if path.stem != "default":
                assert f"`{path.stem}`" in text, f"{group}={path.stem}"


def one_of(word: str) -> str:
    """A word of a sweep, with one of its values."""
    word = re.sub(r"=(?:tag\(log,)?interval\(([^,]+),.*", r"=\1", word)
    return re.sub(r"^([^=]+=[^,()\[\]{}]+),.*", r"\1", word)


def test_commands_in_the_documents_use_options_that_exist():
    from importlib.util import find_spec

    from configs import composed
    from softgate.cli.words import for_hydra

    searches = find_spec("optuna") and find_spec("submitit")
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                words = re.match(r"(?:uv run|python) evaluate\.py(.*)", line.split("#")[0].strip())
                if words:
                    composed(*shlex.split(words[1]), name="evaluate", directory=Path("x"))
                words = re.match(r"(?:uv run|python) train\.py(.*)", line.split("#")[0].strip())
                if words and "--help" not in line and (searches or "hydra/" not in line):
                    typed = for_hydra([one_of(w) for w in shlex.split(words[1]) if w not in ("-m", "experiment=first")])
                    composed(*typed, directory=Path("x"))


def test_readme_doctest_of_the_package_runs():
    import doctest

    import softgate

    assert doctest.testmod(softgate).failed == 0
    assert doctest.testmod(softgate.gates).failed == 0
