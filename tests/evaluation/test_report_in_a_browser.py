"""The report in a browser, on a phone and on a desk: nothing overflows, pictures enlarge, tables sort."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from made_comparison import comparison as made
from softgate.evaluation import compare
from softgate.evaluation.reports import comparison

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"phone": 390, "desk": 1440}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: chromium or google-chrome is needed")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with a picture of every kind and names long enough to overflow."""
    directory = tmp_path_factory.mktemp("report")
    found = made("digits, " + 12 * "a_long_name_", directory)
    for run in found.runs:
        rule = {"gate": {"name": "hard" if run.arm == "none" else "sigmoid"}, "pool": {"name": "hard"}}
        run.config.update({"surrogate": rule, "model": {"weights": 20 * "a/long/path/"}, "trainer": {"max_epochs": 6}})
    for place, each in enumerate(found.measured):
        each.values |= {"nll": 10.0 - place, "sharpness": 9e-5 * 12.0**place, "ece": 0.1 * place}
    found.rows = compare.differences(found)
    for arm in found.arms:
        path = directory / f"{found.arms.index(arm)}.png"
        noise = np.random.default_rng(0).integers(0, 255, (300, 1600, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        found.grids[arm] = path
    path = directory / "report.html"
    path.write_text(comparison.page(found, "uv run evaluate.py", directory=directory))
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module", params=WIDTHS)
def page(request, browser, report):
    """The report at one width; whatever the browser complains of is an error at the end."""
    opened = browser.new_page(viewport={"width": WIDTHS[request.param], "height": 900})
    complaints = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else complaints.append(asked.url)
    )
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert complaints == []


def test_nothing_is_wider_than_the_screen_and_every_picture_is_there(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    loaded = page.evaluate(
        "[...document.querySelectorAll('figure img')].map(one => one.complete && one.naturalWidth > 0)"
    )
    assert len(loaded) >= 8
    assert all(loaded)
    assert page.locator("h1 + p.lead").inner_text().startswith("Soft gates (soft digits, a_long_name_")
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_a_click_or_a_key_enlarges_a_picture_and_escape_closes_it(page):
    small, large = page.locator(".grids img").first, page.locator("dialog img")
    small.click()
    assert large.evaluate("(one) => one.decode().then(() => one.complete && one.naturalWidth)") == 1400
    assert large.bounding_box()["width"] > 1.2 * small.bounding_box()["width"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.locator(".charts button").first.focus()
    page.keyboard.press("Enter")
    assert large.get_attribute("alt") == page.locator(".charts img").first.get_attribute("alt")
    page.get_by_role("button", name="Close").click()
    assert not page.locator("dialog").is_visible()


@pytest.mark.parametrize("name", ["NLL", "sharpness", "seed"])
def test_a_table_is_sorted_by_a_column_as_numbers_and_the_other_way_round(page, name):
    table = page.locator("table").filter(has=page.get_by_role("columnheader", name="sharpness")).last
    head = table.get_by_role("columnheader", name=name, exact=True)
    place = head.evaluate("(one) => one.cellIndex")

    def column() -> list[float]:
        texts = [row.locator("td").nth(place).inner_text() for row in table.locator("tbody tr").all()]
        return [float(re.sub(r"[,%]", "", text)) for text in texts]

    before = column()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(before)
    page.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert column() == sorted(before, reverse=True)
    assert table.locator("[aria-sort]").count() == 1


def test_a_dark_page_has_a_dark_ground_and_words_that_stand_out(page):
    def colours() -> list[int]:
        style = "getComputedStyle(document.body)"
        return [
            sum(map(int, re.findall(r"\d+", page.evaluate(f"{style}.{key}"))[:3]))
            for key in ("backgroundColor", "color")
        ]

    page.emulate_media(color_scheme="light")
    (ground, ink), page_of = colours(), page.emulate_media
    page_of(color_scheme="dark")
    dark_ground, dark_ink = colours()
    assert ground == 3 * 255
    assert dark_ground < 100 < 600 < dark_ink
    assert ink < 100
    page.emulate_media(color_scheme="light")
