"""The run that is offered where there is none: trained when asked for, once at a time, and told to end."""

import sys
import time

import pytest

from softgate.app.offer import WORDS, Offer, loopback

LINES = "print('reading', flush=True); print('epoch 1 of 4: loss 2', flush=True)"


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ended(offer, seconds=60):
    end = time.monotonic() + seconds
    while offer.state.running and time.monotonic() < end:
        time.sleep(0.02)
    return offer.state


def test_nothing_is_trained_unasked():
    offer = Offer(command("raise SystemExit(3)"))
    assert not offer.state.running
    assert offer.state.failed is None
    assert offer.command[-len(WORDS) :] == list(WORDS)


def test_a_run_says_how_far_it_is_and_ends(tmp_path):
    go, begun = tmp_path / "go", tmp_path / "begun"
    waits = f"import pathlib, time; p = pathlib.Path({str(go)!r}); pathlib.Path({str(begun)!r}).open('a').write('x')"
    offer = Offer(command(f"{waits}; {LINES}\nwhile not p.exists(): time.sleep(0.01)"))
    offer.begin()
    offer.begin()
    while offer.state.share == 0:
        time.sleep(0.02)
    assert (offer.state.running, offer.state.share, offer.state.words) == (True, 0.25, "epoch 1 of 4: loss 2")
    go.touch()
    assert (ended(offer).failed, offer.state.share) == (None, 1.0)
    assert begun.read_text() == "x", "asked twice, begun once"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('error: data=digits: it is not there.'); raise SystemExit(2)", "data=digits: it is not there."),
        ("raise SystemExit(4)", "the run ended with status 4."),
    ],
)
def test_a_run_that_fails_says_why(code, said):
    offer = Offer(command(code))
    offer.begin()
    assert ended(offer).failed == said


def test_a_run_that_cannot_start_says_so(tmp_path):
    offer = Offer([str(tmp_path / "no python")])
    offer.begin()
    assert "could not be started" in ended(offer).failed


def test_a_run_is_stopped():
    offer = Offer(command(f"{LINES}; import time; time.sleep(600)"))
    offer.begin()
    offer.stop()
    assert ended(offer).failed == "the run was stopped."
    offer.stop()


def test_only_visitors_of_this_machine_may_start_one():
    assert loopback("127.0.0.1", share=False)
    assert loopback("localhost", share=False)
    assert not loopback("127.0.0.1", share=True)
    assert not loopback("0.0.0.0", share=False)
