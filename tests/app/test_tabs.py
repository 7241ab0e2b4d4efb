"""What the tabs answer, without a browser: mistakes and bugs are sentences, what is superseded changes nothing."""

import base64

import pytest

pytest.importorskip("gradio", reason="the extra app is not installed")

import gradio as gr

from app_options import options
from softgate.app import look_tab
from softgate.app.library import Library
from softgate.app.look_tab import ANSWERS, LookTab
from softgate.app.paths_tab import PathsTab
from softgate.app.visit import Visit

RULE = ("sigmoid", 0.3, "lse", 0.3, "global", 1.0)


def values(runs, moment=1, source="data set", targets=(0, 1), number=0):
    return (list(runs), moment, source, 0, number, list(targets), *RULE, "pullback", 5, 20, 100, "heat map")


@pytest.fixture
def tab(library):
    return LookTab(library, None)


def answer(tab, visit, *given):
    return tab._show(visit, visit.looks.ask(), None, None, *given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (values([]), "runs: none is chosen"),
        (values(["gone"]), "run=gone"),
        (values(["none"], targets=()), "targets: 0 are chosen"),
        (values(["none"], targets=(99,)), "target=99: the model has the classes 0 to 9"),
        (values(["none"], number=5000), "image=5000"),
        (values(["none"], source="upload"), "there is no file yet"),
    ],
)
def test_a_mistake_is_a_sentence_above_what_stays(tab, given, said):
    visit = Visit()
    first = answer(tab, visit, *values(["none"]))
    assert len(first) == ANSWERS
    assert "<img" in first[2]
    shown = visit.shown
    message, *others = answer(tab, visit, *given)
    assert said in message
    assert 'role="alert"' in message
    assert others == [gr.skip()] * (ANSWERS - 1)
    assert visit.shown is shown


def test_a_bug_is_a_sentence_without_its_details(tab, monkeypatch):
    monkeypatch.setattr(look_tab, "look", lambda *given: 1 / 0)
    message, *_ = answer(tab, Visit(), *values(["none"]))
    assert "something went wrong (ZeroDivisionError)" in message


def test_what_is_superseded_before_it_begins_changes_nothing(tab):
    visit = Visit()
    old = visit.looks.ask()
    visit.looks.ask()
    assert tab._show(visit, old, None, None, *values(["none"])) == (gr.skip(),) * ANSWERS
    assert list(tab._play(visit, old, None, None, *values(["none"]))) == []
    assert visit.shown is None


def test_a_page_of_a_run_without_anything_is_built_and_says_so(runs, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text((runs / "none" / "config.yaml").read_text())
    broken = LookTab(Library(options(f'runs="{tmp_path}/*"', "accelerator=cpu")), None)
    with gr.Blocks():
        broken.visit = gr.State(Visit())
        broken.build()
    for said in (answer(broken, Visit(), *values(["bare"]))[0], broken._chosen(["bare"])[-1]):
        assert "run bare: it has no checkpoint" in said


def test_an_upload_stays_in_memory_and_a_large_one_is_known_by_its_size(tab):
    visit, event = Visit(), gr.EventData(None, {"data": base64.b64encode(b"no image").decode()})
    tab._uploaded(visit, event)
    assert visit.upload == b"no image"
    assert "the file is no image" in answer(tab, visit, *values(["none"], source="upload"))[0]
    tab._uploaded(visit, gr.EventData(None, {"size": 30_000_000}))
    assert visit.upload is None
    assert "the file has 30.0 MB; at most 20 MB" in answer(tab, visit, *values(["none"], source="upload"))[0]
    tab._uploaded(visit, gr.EventData(None, {"data": "no base64!"}))
    assert visit.upload is None
    tab._cleared(visit)
    assert "there is no file yet" in answer(tab, visit, *values(["none"], source="upload"))[0]


def test_a_measurement_of_paths_says_what_is_wrong(recorded):
    tab, visit = PathsTab(recorded, None), Visit()
    *_, (message, drawn, numbers) = tab._measure(visit, visit.measures.ask(), "bare", "val", 20, 3, "kappa of gates")
    assert "holds no recording" in message
    assert (drawn, numbers) == (gr.skip(), gr.skip())
    *_, (message, _, _) = tab._measure(visit, visit.measures.ask(), None, "val", 20, 3, "kappa of gates")
    assert "train one with callbacks=paths" in message
    assert tab._map(visit, "kappa of gates") == ""
    assert tab._picked(visit, "kappa of gates", gr.EventData(None, {"s": 0, "t": 0})) == (gr.skip(), gr.skip())
