"""The page in a browser: what it shows is what `look` computes, mistakes are sentences, visits do not mix."""

import base64
import io
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app_options import options
from softgate.app.library import Library
from softgate.explainers import pullback as pullbacks

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
def served():
    import gradio as gr

    from softgate.app.server import free, launch

    def serve(library, offer=None):
        given = library.options.model_copy(update={"port": None})
        return launch(library, free(given), offer)

    yield serve
    gr.close_all()


@pytest.fixture(scope="module")
def address(served, library):
    return served(library)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens pages; in the end none may have had an error, or asked another server for anything."""
    pages = []

    def opened(address, **context):
        page = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | context).new_page()
        page.set_default_timeout(WAIT)
        page.wrong, page.asked, page.home = [], [], address
        page.on("console", lambda line: page.wrong.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("response", lambda told: page.wrong.append(told.url) if told.status >= 400 else None)
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert page.wrong == []
        assert [url for url in page.asked if not url.startswith((page.home, "data:", "blob:"))] == []
        page.context.close()


def source(page, at="#picture img"):
    return page.get_attribute(at, "src")


def pixels(page, at="#picture img"):
    data = base64.b64decode(source(page, at).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def until(holds, said):
    end = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < end, said
        time.sleep(0.05)


def begun(library):
    """What the page shows at first."""
    from softgate.app.look_tab import rule_of
    from softgate.app.request import Request

    rule = rule_of(library.config.readout, "sigmoid", 0.3, "lse", 0.3, "global", 1.0)
    return Request([(library.labels[0], library.moments(library.labels[0])[-1].key)], [0, 1], rule)


def shows(page, library, request, said=""):
    from softgate.app.look import look

    page.wait_for_selector("#picture img", state="attached")
    expected = np.asarray(look(library, request).picture)
    until(lambda: np.array_equal(pixels(page), expected), f"the page does not show {said or request}")


def slide(page, at, value):
    page.locator(f"{at} input[type=range]").fill(str(value))


def pick(page, at, option):
    page.locator(f"{at} input").first.click()
    page.get_by_role("option", name=option, exact=True).locator("visible=true").last.click()
    page.keyboard.press("Escape")


def test_every_control_changes_the_picture_to_that_of_the_library(library, address, visit):
    from softgate.app.look import SOFT, look
    from softgate.app.look_tab import rule_of

    page = visit(address)
    now = begun(library)
    shows(page, library, now, "the first picture")
    label, other = library.labels
    keys = [moment.key for moment in library.moments(label)]
    slide(page, "#moment", 1)
    now = replace(now, runs=[(label, keys[0])])
    shows(page, library, now)
    until(lambda: page.inner_text("#moment-words").strip() == library.moments(label)[0].words, "what it is called")
    for name, scale in (("heat map", "seismic"), ("one scale", "shared")):
        page.get_by_label(name).check()
        now = replace(now, scale=scale)
        shows(page, library, now)
    pick(page, "#class", "4")
    page.locator("#number input").fill("3")
    page.locator("#number input").press("Tab")
    pick(page, "#targets", "7")
    now = replace(now, label=4, number=3, targets=[0, 1, 7])
    shows(page, library, now)
    rule = ["sigmoid", 0.3, "lse", 0.3, "global", 1.0]
    for place, act, value in (
        (0, lambda: pick(page, "#gate", "normal_cdf"), "normal_cdf"),
        (1, lambda: slide(page, "#temperature", 0.7), 0.7),
        (2, lambda: pick(page, "#pooling", "softmax_full"), "softmax_full"),
        (3, lambda: slide(page, "#pool-temperature", 1.5), 1.5),
        (5, lambda: slide(page, "#mix", 0.5), 0.5),
        (4, lambda: page.locator("#units").get_by_label("channel").check(), "channel"),
    ):
        act()
        rule[place] = value
        now = replace(now, rule=rule_of(library.config.readout, *rule))
        shows(page, library, now)
    page.get_by_label("probe set").check()
    page.locator("#number input").fill("2")
    page.locator("#number input").press("Tab")
    now = replace(now, probe=2)
    shows(page, library, now)
    page.get_by_label("ascent").check()
    for at, value in (("#steps", 3), ("#step-size", 40), ("#radius", 55)):
        slide(page, at, value)
    now = replace(now, kind="ascent", steps=3, step_size=40.0, radius=55.0)
    shows(page, library, now)
    assert page.locator("#curve img").count() == 2
    pick(page, "#runs", other)
    page.locator("#kind").get_by_label("pullback").check()
    near = library.run(other).near(library.moments(label)[-1].epochs)
    now = replace(now, kind="raw", runs=[(label, keys[-1]), (other, near.key)], targets=[0, 1])
    shows(page, library, now)
    assert page.locator("#words p").count() == 2
    for at, suffix in (("#png", ".png"), ("#raw", ".pt")):
        with page.expect_download() as told:
            page.click(at)
        assert told.value.suggested_filename == f"look{suffix}"
        content = Path(told.value.path()).read_bytes()
        if suffix == ".png":
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels(page))
        else:
            kept = torch.load(io.BytesIO(content), weights_only=True)
            assert torch.equal(kept["soft"], look(library, now).grid.readings[SOFT].values)
    page.get_by_text("The same in Python").click()
    assert "sg.pullback(net, x, targets, rule)" in page.inner_text("#snippet")


def test_it_fits_a_phone_and_a_desk_light_and_dark_and_is_used_by_keys(library, address, visit):
    for width in (390, 1440):
        for scheme in ("light", "dark"):
            page = visit(address, viewport={"width": width, "height": 900}, color_scheme=scheme)
            shows(page, library, begun(library))
            for tab in ("Look", "Compare", "Paths"):
                page.get_by_role("tab", name=tab).click()
                page.wait_for_timeout(500)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            missing = "[...document.images].filter(each => !each.alt).length"
            assert page.evaluate(missing) == 0
            unnamed = (
                "[...document.querySelectorAll('button')].filter(each => !(each.innerText.trim() || each.ariaLabel"
            )
            assert page.evaluate(unnamed + " || each.title)).length") == 0
    page.get_by_role("tab", name="Look").click()
    page.locator("#moment input[type=range]").focus()
    page.keyboard.press("Home")
    label = library.labels[0]
    shows(page, library, replace(begun(library), runs=[(label, library.moments(label)[0].key)]), "after the key Home")
    wipe = page.locator("#wipe input[type=range]")
    wipe.focus()
    page.keyboard.press("End")
    assert page.locator("#wipe img").nth(1).evaluate("each => getComputedStyle(each).clipPath").endswith("100%)")


def test_checkpoints_play_and_stop(library, address, visit):
    from softgate.app.look import look

    page = visit(address)
    now = begun(library)
    shows(page, library, now)
    slide(page, "#moment", 1)
    label = library.labels[0]
    keys = [moment.key for moment in library.moments(label)]
    frames = [np.asarray(look(library, replace(now, runs=[(label, key)])).picture) for key in keys]
    until(lambda: np.array_equal(pixels(page), frames[0]), "the first checkpoint")
    page.click("#play")
    until(lambda: page.input_value("#moment input[type=number]") == str(len(keys)), "the slider moves along")
    until(lambda: np.array_equal(pixels(page), frames[-1]), "the last checkpoint")
    page.click("#play")  # from the beginning, as it stands at the end
    until(lambda: page.input_value("#moment input[type=number]") == "1", "it begins again")
    page.click("#stop")
    page.wait_for_timeout(3000)
    assert page.input_value("#moment input[type=number]") == "1"


def test_a_control_that_moves_stops_what_is_computed(library, address, visit, monkeypatch):
    passes, through = [], pullbacks._logits

    def slow(model, x):
        passes.append(threading.get_ident())
        time.sleep(0.1)
        return through(model, x)

    page = visit(address)
    now = begun(library)
    shows(page, library, now)
    monkeypatch.setattr(pullbacks, "_logits", slow)
    page.get_by_label("ascent").check()
    until(lambda: len(passes) > 3, "the ascent begins")
    slide(page, "#steps", 50)
    until(lambda: len(passes) > 8, "the long ascent is under way")
    page.locator("#kind").get_by_label("pullback").check()
    shows(page, library, now)
    page.wait_for_timeout(1500)
    done = len(passes)
    page.wait_for_timeout(1500)
    assert len(passes) == done, "nothing is computed any more"
    assert done < 80, "of 100 passes and more"


def test_two_pictures_are_wiped(library, address, visit):
    from softgate.app import wiping
    from softgate.app.look import look

    page = visit(address)
    now = begun(library)
    shows(page, library, now)
    found = wiping.pictures(look(library, now))
    for at, name in (("#left", "the image"), ("#right", "hard: gradient of 1")):
        pick(page, at, name)
    for place, name in enumerate(("the image", "hard: gradient of 1")):
        shown = f"#wipe img:nth-of-type({place + 1})"
        until(lambda shown=shown, name=name: np.array_equal(pixels(page, shown), np.asarray(found[name])), name)
    page.locator("#wipe input[type=range]").fill("20")
    assert page.locator("#wipe img").nth(1).evaluate("each => getComputedStyle(each).clipPath").endswith("20%)")


def huge() -> bytes:
    """200 megapixels in a file of some kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_uploads_that_cannot_be_shown_are_sentences_and_the_page_goes_on(library, address, visit, tmp_path):
    page = visit(address)
    now = begun(library)
    shows(page, library, now)
    for name, content, said in (
        ("large.png", b"0" * 20_000_001, "upload: the file has 20.0 MB; at most 20 MB are read"),
        ("broken.png", b"\x89PNG\r\n\x1a\n and nothing more", "upload: the file is no image"),
        ("huge.png", huge(), "the image has far too many pixels; at most 40,000,000 are read"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing, which has no pixels"),
    ):
        page.set_input_files("#upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content})
        until(lambda said=said: said in page.inner_text("#message"), said)
        shows(page, library, now, f"what stood there before {name}")
        page.get_by_text("Remove the upload").click()
        until(lambda: page.inner_text("#message").strip() == "", "the sentence goes with the file")
    buffer = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).resize((50, 40)).save(buffer, "PNG")
    file = {"name": "own.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.set_input_files("#upload input[type=file]", file)
    shows(page, library, replace(now, upload=buffer.getvalue()))


def test_ten_visits_at_once_do_not_mix(library, address, visit):
    pages = [visit(address) for _ in range(10)]
    for page in pages:
        page.wait_for_selector("#picture img", state="attached")
    for place, page in enumerate(pages):  # none waits for the one before
        page.locator("#number input").fill(str(place))
        page.locator("#number input").press("Tab")
        page.get_by_label("heat map" if place % 2 else "one scale").check()
    for place, page in enumerate(pages):
        scale = "seismic" if place % 2 else "shared"
        shows(page, library, replace(begun(library), number=place, scale=scale), f"visit {place}")


def test_runs_are_compared_and_opened_from_the_table(library, address, visit):
    page = visit(address)
    page.wait_for_selector("#picture img", state="attached")
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#grids img", state="attached")
    curve = source(page, "#curves img")
    assert "grid of epoch 2." in page.inner_text("#grids")
    slide(page, "#epoch", 1)
    until(lambda: "grid of epoch 1." in page.inner_text("#grids"), "grids of the epoch")
    assert source(page, "#curves img") != curve, "the cursor moves"
    count = page.locator("#curves img").count()
    page.locator("#measures [role=button][title^=Remove]").last.click()
    until(lambda: page.locator("#curves img").count() == count - 1, "a curve less")
    page.click("#again")
    other = library.labels[1]
    page.locator("#table [role=gridcell]").filter(has_text=other).first.click()
    until(lambda: page.inner_text("#words").startswith(other), "the run is opened")
    shows(page, library, replace(begun(library), runs=[(other, library.moments(other)[-1].key)]))


def test_paths_are_measured_and_a_click_shows_numbers(recorded, served, visit):
    page = visit(served(recorded))
    page.get_by_role("tab", name="Paths").click()
    slide(page, "#path-images", 12)
    slide(page, "#path-moments", 3)
    page.click("#measure")
    page.wait_for_selector("#heat button[data-s]")
    assert page.locator("#heat button[data-s]").count() == 9
    assert page.get_attribute('#heat button[data-s="0"][data-t="2"]', "aria-pressed") == "true"
    before = page.inner_text("#heat")
    page.focus('#heat button[data-s="1"][data-t="0"]')
    page.keyboard.press("Enter")
    page.wait_for_selector('#heat button[data-s="1"][data-t="0"][aria-pressed=true]')
    assert "network of epoch 0 with the gates of epoch" in page.inner_text("#numbers")
    assert "control, hard, within: shuffled" in page.inner_text("#numbers")
    page.get_by_label("kappa of gates").check()
    until(lambda: page.inner_text("#heat") != before, "another heat map")
    page.locator("#recording").get_by_label("train").check()
    page.click("#measure")
    until(lambda: "holds no recording" in page.inner_text("#path-message"), "a sentence")
    assert str(recorded.run("recorded").place.parent) not in page.content()


def test_where_there_is_no_run_one_is_trained_when_asked_for(runs, served, visit, tmp_path):
    from softgate.app.offer import Offer

    code = "import shutil, time; print('epoch 1 of 2: loss 1', flush=True); time.sleep(2); "
    code += f"shutil.copytree({str(runs / 'none')!r}, {str(tmp_path / 'none')!r})"
    offer = Offer([sys.executable, "-c", code])
    empty = Library(options(f'runs="{tmp_path}/*"', "accelerator=cpu"), empty=True)
    page = visit(served(empty, offer))
    page.wait_for_selector("#train")
    page.wait_for_timeout(1000)
    assert not page.is_visible("#runs")
    assert list(tmp_path.iterdir()) == [], "nothing is trained unasked"
    page.click("#train")
    until(lambda: "epoch 1 of 2" in page.inner_text("#train-status"), "how far it is")
    page.wait_for_selector("#picture img", state="attached")
    assert not page.is_visible("#train")
    shows(page, empty, begun(empty))
