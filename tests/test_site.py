"""The documentation's site and what is known of the project by machines: pages, links, CITATION.cff."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import softgate as sg
from test_house import FLOORS

ROOT = Path(__file__).parents[1]


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = loaded("pages")


def turned(markdown: str, page: str, repository: str | None = None) -> str:
    file = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    return pages.on_page_markdown(markdown, file, SimpleNamespace(repo_url=repository))


@pytest.mark.parametrize(
    ("page", "given", "there"),
    [
        ("index.md", "[a](docs/rules.md#mix)", "[a](rules.md#mix)"),
        ("index.md", "![a](docs/images/power.png)", "![a](images/power.png)"),
        ("index.md", "[a](conf)", "[a](configs.md)"),
        ("rules.md", "[a](../conf/surrogate/nelu.yaml)", "[a](configs.md#surrogate)"),
        ("rules.md", "[a](../README.md#train)", "[a](index.md#train)"),
        ("rules.md", "[a](data.md) and [b](#mix)", "[a](data.md) and [b](#mix)"),
        ("api/paths.md", "[a](../rules.md)", "[a](../rules.md)"),
        ("contributing.md", "[a](docs/architecture.md)", "[a](architecture.md)"),
        ("rules.md", "[a](https://arxiv.org)", "[a](https://arxiv.org)"),
        ("rules.md", "```\n[a](../conf)\n```", "```\n[a](../conf)\n```"),
    ],
)
def test_links_lead_to_the_page_that_a_file_is(page, given, there):
    assert turned(given, page) == there


def test_links_to_other_files_lead_to_the_repository_or_are_words():
    given = "see [its test](../tests/test_site.py)"
    assert turned(given, "rules.md") == "see its test"
    assert (
        turned(given, "rules.md", "https://x.org/y/") == "see [its test](https://x.org/y/blob/main/tests/test_site.py)"
    )


def test_the_reference_has_every_public_name():
    made = pages.reference()
    for room in (sg.explainers, sg.grids, sg.metrics, sg.paths):
        name = room.__name__.removeprefix("softgate.")
        assert set(re.findall(rf"::: softgate\.{name}\.(\w+)", made[name])) == set(room.__all__)
    listed = set(re.findall(r"::: softgate\.(\w+)", made["softgate"]))
    assert listed | set(made) | {"figures"} >= set(sg.__all__)
    assert {"Sigmoid", "NeLU"} <= set(re.findall(r"gates\.(\w+)$", made["gates"], flags=re.M))


def test_the_page_of_configs_has_every_file_and_every_group():
    made = pages.configs()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f'title="{path.relative_to(ROOT).as_posix()}"' in made
        assert path.read_text().strip() in made


def test_the_diagram_of_floors_is_boxes_with_every_room():
    text = turned((ROOT / "docs" / "architecture.md").read_text(), "architecture.md")
    assert "mermaid" not in text
    for number, rooms in enumerate(FLOORS[1:], 2):
        floor = text.split(f"<b>{number}</b>")[1].split("<b>")[0]
        assert set(re.findall(r"<strong>(\w+)</strong>", floor)) == set(rooms)


def test_formulas_are_characters():
    assert (
        loaded("formulas").plain(r"f_\Lambda(x) = \langle v, x \rangle + \sum_k c_k") == "f_Λ(x) = ⟨ v, x ⟩ + Σ_k c_k"
    )


def test_every_document_has_its_place():
    placed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M))
    there = {path.name for path in (ROOT / "docs").glob("*.md")}
    made = {*pages.PAGES.values(), "configs.md", *(f"api/{name}.md" for name in pages.reference())}
    assert placed == there | made


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert len(built) > 25
    for path in built:
        text = path.read_text()
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=[\"']?(?:https?:)?//[^\"'> ]*", text), path.name
        assert not re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect)[^>]*(?:https?:)?//", text), path.name
    reference = (tmp_path / "site" / "api" / "softgate.html").read_text()
    assert "All targets share one forward pass" in reference  # of sg.pullback, through the lazy package's stub


def test_the_citation_is_of_this_version_and_has_what_the_format_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    assert str(found["version"]) == project["version"]
    assert found["license"] == project["license"]
    assert found["keywords"] == project["keywords"]
    assert [author["name"] for author in found["authors"]] == [author["name"] for author in project["authors"]]
    assert {"type", "title", "authors"} <= set(found["preferred-citation"])
    assert "2507.22832" in found["preferred-citation"]["url"]
