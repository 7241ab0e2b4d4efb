"""The page in a browser: what it shows is what `look` computes, mistakes are sentences, visits do not mix."""

import base64
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra app is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,  # a browser takes a while to come up
    pytest.mark.skipif(BROWSER is None, reason="there is no browser on this machine"),
]

WAIT = 120_000
"""Milliseconds, for a machine with other work."""


@pytest.fixture(scope="module")
def address(library):
    import gradio as gr

    from softgate.app.server import free, launch

    options = library.options.model_copy(update={"port": None})
    url = launch(library, free(options))
    yield url
    gr.close_all()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, address, **size):
    page = browser.new_context(**size).new_page()
    page.wrong, page.asked = [], []
    page.on("console", lambda line: page.wrong.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address, timeout=WAIT)
    page.wait_for_selector("#picture img", timeout=WAIT, state="attached")
    return page


def source(page):
    return page.get_attribute("#picture img", "src")


def pixels(page):
    data = base64.b64decode(source(page).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def changed(page, before):
    page.wait_for_function("(old) => document.querySelector('#picture img').src !== old", arg=before, timeout=WAIT)


def uploaded(page, name, content, said):
    page.set_input_files(
        "#upload input[type=file]", {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )
    page.wait_for_function(
        "(said) => document.querySelector('#message').innerText.includes(said)", arg=said, timeout=WAIT
    )


def test_the_page_shows_what_look_computes_and_says_what_is_wrong(library, address, browser):
    from softgate.app.look import look
    from softgate.app.page import rule_of
    from softgate.app.request import Request

    one, other = (opened(browser, address, viewport={"width": width, "height": 900}) for width in (1440, 390))
    rule = rule_of(library.config.readout, "sigmoid", 0.3, "lse", 0.3, "global", 1.0)
    begun = Request([(library.labels[0], library.moments(library.labels[0])[-1].key)], [0, 1], rule)
    for page in (one, other):
        assert np.array_equal(pixels(page), np.asarray(look(library, begun).picture))
        assert "Grid of input gradients and pullbacks" in page.get_attribute("#picture img", "alt")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    first, kept = source(one), source(other)
    one.get_by_label("heat map").check()
    changed(one, first)
    second = source(one)
    assert np.array_equal(pixels(one), np.asarray(look(library, replace(begun, scale="seismic")).picture))
    one.locator("#number input").fill("3")
    one.locator("#number input").press("Tab")
    changed(one, second)
    third = source(one)
    assert np.array_equal(pixels(one), np.asarray(look(library, replace(begun, scale="seismic", number=3)).picture))
    uploaded(one, "broken.png", b"\x89PNG\r\n\x1a\n and nothing more", "upload: the file is no image")
    assert source(one) == third, "what was shown stays"
    other.get_by_label("ascent").check()
    changed(other, kept)
    assert other.locator("#curve img").count() == 1
    assert source(one) == third, "visits do not mix"
    svg = opened(browser, address)
    uploaded(svg, "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing, which has no pixels")
    svg.get_by_role("tab", name="Compare").click()
    svg.wait_for_selector(".softgate-grids img", timeout=WAIT, state="attached")
    for page in (one, other, svg):
        assert page.wrong == []
        outside = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
        assert outside == []
