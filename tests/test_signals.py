"""What a signal does within a block: it raises, waits or is noted; and what a second one does."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from softgate import signals
from softgate.errors import Stopped

ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def former() -> list[int]:
    """What comes to the handlers that were there before."""
    came: list[int] = []
    for number in ENDS:
        signal.signal(number, lambda number, frame: came.append(number))
    return came


def stopped_by(block, *numbers: int, then=lambda: None) -> int:
    """Which signal a block is stopped by."""

    def work() -> None:
        with block:
            for number in numbers:
                signal.raise_signal(number)
            then()

    with pytest.raises(Stopped) as stopped:
        work()
    return stopped.value.signal


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_raises_with_its_number(former, number):
    assert stopped_by(signals.raised(), number) == number
    assert not former
    signal.raise_signal(number)
    assert former == [number]  # outside the block all is as it was


def test_a_second_ctrl_c_goes_to_who_was_there_before_and_a_second_sigterm_nowhere(former):
    def clean_up() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            assert not former
            signal.raise_signal(signal.SIGINT)
            assert former == [signal.SIGINT]

    assert stopped_by(signals.raised(), then=clean_up) == signal.SIGTERM


class Dies:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        sum(range(10))  # the handler runs here at the latest


def test_a_signal_is_not_lost_where_python_can_only_print_what_is_raised(capfd):
    hook = sys.unraisablehook

    def work() -> None:
        each = Dies()
        del each
        time.sleep(10)

    assert stopped_by(signals.raised(), then=work) == signal.SIGTERM
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_other_things_that_python_can_only_print_are_printed(monkeypatch):
    class Fails:
        def __del__(self) -> None:
            raise ZeroDivisionError

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(found.exc_type))
    with signals.raised():
        each = Fails()
        del each
    assert seen == [ZeroDivisionError]


@pytest.mark.parametrize("number", ENDS)
def test_a_block_that_defers_ends_first_and_says_so(capfd, number):
    done = []
    assert stopped_by(signals.deferred("writing"), number, then=lambda: done.append(True)) == number
    assert done
    assert capfd.readouterr().err == "writing, then stopping; Ctrl-C again stops at once\n"


def test_a_second_ctrl_c_does_not_wait():
    done, three = [], (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    with signals.raised():
        assert stopped_by(signals.deferred("writing"), *three, then=lambda: done.append(True)) == signal.SIGINT
    assert not done


def test_an_error_of_a_block_that_defers_is_the_one_that_is_raised():
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped_by(signals.deferred("writing"), signal.SIGINT, then=fail)


def test_signals_are_noted_and_no_more(former):
    with signals.noted() as came:
        for number in ENDS:
            signal.raise_signal(number)
    assert came == ENDS
    assert not former


def test_a_hangup_that_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.raised():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_another_thread_nothing_changes():
    found = []

    def work() -> None:
        before = [signal.getsignal(number) for number in ENDS]
        with signals.raised(), signals.deferred("writing"), signals.noted() as came:
            found.append((before == [signal.getsignal(number) for number in ENDS], came))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(True, [])]


@pytest.mark.parametrize("block", [signals.raised, lambda: signals.deferred("writing"), signals.noted])
def test_a_forked_process_that_loads_images_lives_on_when_its_parent_is_ended(block, monkeypatch):
    monkeypatch.setattr(signals, "LINGER", 1)
    with block():
        child = os.fork()
        if child == 0:
            for number in ENDS:
                signal.raise_signal(number)
            os.write(1, b"")
            time.sleep(30)  # it ends by the alarm of SIGTERM
            os._exit(1)
    begun = time.monotonic()
    status = os.waitpid(child, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGALRM
    assert time.monotonic() - begun < 20


def test_a_terminal_that_has_gone_fails_nobody(monkeypatch):
    leader, terminal = os.openpty()
    kept = os.dup(2)
    try:
        os.dup2(terminal, 2)
        with pytest.raises(Stopped), signals.raised():
            signal.raise_signal(signal.SIGHUP)
        os.write(2, b"to nobody")
        assert Path("/proc/self/fd/2").readlink() == Path(os.devnull)
    finally:
        os.dup2(kept, 2)
        for number in (leader, terminal, kept):
            os.close(number)
