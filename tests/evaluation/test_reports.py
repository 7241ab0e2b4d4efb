"""Pages of results: whatever users call their classes, runs and options, it is shown and never run."""

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from made_comparison import comparison as found
from softgate.evaluation.reports import comparison, pages, paths, publish
from softgate.figures.panels import Line, draw
from softgate.tables import Table

EVIL = "<script>alert('1')</script>\"&"


OWN = (Path(pages.__file__).parent / "templates" / "page.js").read_text()


class Words(HTMLParser):
    """The tags of a page, the texts between them and the values of attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts, self.values, self.scripts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [value for _, value in attributes]

    def handle_data(self, data):
        (self.scripts if self.cdata_elem == "script" else self.texts).append(data)

    def only_its_own_script(self) -> bool:
        """Whether there is one script, ours, and the page's policy lets no other run."""
        (script,) = self.scripts
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        (policy,) = (value for value in self.values if "script-src" in (value or ""))
        return script == OWN and f"script-src 'sha256-{digest}';" in policy and self.tags.count("script") == 1


def test_names_are_shown_in_the_comparison_and_never_run(tmp_path):
    made = found(EVIL)
    made.grids = {f"soft {EVIL}": tmp_path / "a.png"}
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    page = Words(comparison.page(made, f"uv run evaluate.py 'runs={EVIL}'"))
    assert page.only_its_own_script()
    text = " ".join(page.texts)
    for part in (
        f"{EVIL}: left", f"tuned {EVIL}", f"soft {EVIL}-0 {EVIL}", f"soft {EVIL} is", f"1 × {EVIL}", f"runs={EVIL}",
        f"commit {EVIL}", f"{EVIL}, 200 test images",
    ):  # fmt: skip
        assert part in text, part
    assert f"soft {EVIL}" in page.values  # the alternative text of the grid
    assert [page.texts.count(each) for each in ("60.0 %", "90.0 %")] == [2, 2]  # top-1 of each class and arm
    assert f"{EVIL} for cat: 120 of 300, 40.0 %; cat for {EVIL}: 30 of 300, 10.0 %" in page.texts


def test_names_are_shown_on_the_page_of_paths_and_never_run():
    drawn = draw({"a": {"b": Line([(1, 1.0)])}}, EVIL)
    table = Table(["run", EVIL], [[EVIL, "1"]], f"paths of {EVIL}")
    page = Words(paths.page([table], {f"{EVIL}, trained hard": drawn}))
    assert page.only_its_own_script()
    assert [page.texts.count(each) for each in (EVIL, f"paths of {EVIL}", f"{EVIL}, trained hard")] == [2, 1, 1]
    assert f"{EVIL}, trained hard" in page.values


def test_a_name_keeps_its_cell_in_markdown_too():
    text = publish.markdown(found("a|b <script>"), "uv run evaluate.py")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert any(r"a\|b" in line for line in lines)
    assert not any("<script>" in line for line in lines)


def test_a_value_that_a_template_lacks_is_an_error_and_not_an_empty_place():
    with pytest.raises(Exception, match="'tables' is undefined"):
        pages.render("paths.html", pictures=[])


def test_a_photograph_is_shrunk_to_fit(tmp_path):
    Image.new("RGBA", (2 * pages.WIDTH, 30)).save(tmp_path / "a.png")
    picture = pages.photograph(tmp_path / "a.png", "name")
    assert (picture.title, picture.caption) == ("name", "name")
    assert picture.uri.startswith("data:image/jpeg;base64,")
