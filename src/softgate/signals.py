"""Signals that end what is under way: Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends.

What one of them does depends on what is under way: it raises `Stopped` (`raised`), waits for the end of a block
(`deferred`), or is noted and no more (`noted`). A second Ctrl-C always goes to the handler that was there before; a
second SIGTERM does nothing, for senders such as `timeout` reach a process twice. In another thread than the main one,
where Python allows no handlers, these blocks do nothing.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from softgate.errors import Stopped

Act = Callable[[int, FrameType | None], None]
Handlers = dict[int, Any]

AGAIN = 0.05
"""Seconds after which a signal comes again where Python could not raise what it raised."""

LINGER = 15
"""Seconds that a loading process goes on after SIGTERM: its parent, which got one too, may still need its images."""


def ends() -> list[int]:
    """The signals that end a command; not SIGHUP under `nohup`."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def name(number: int) -> str:
    """What a user calls a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def say(words: str) -> None:
    """Writes a line to standard error. Not print: a signal may come while another print holds the stream."""
    with suppress(OSError):
        os.write(2, f"{words}\n".encode(errors="backslashreplace"))


def take(act: Act, numbers: Sequence[int] | None = None) -> Handlers:
    """Has `act(number, frame)` called for signals, from now on, in this process and not in those forked from it.

    Args:
        act: Is called in the main thread, between any two steps of it.
        numbers: The signals; None for `ends()`.

    Returns:
        The handlers that were there.
    """
    own = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:
            _in_child(number)
            return
        if number == signal.SIGHUP:
            _leave_terminal()
        act(number, frame)

    return {number: signal.signal(number, handler) for number in (ends() if numbers is None else numbers)}


def put_back(handlers: Handlers) -> None:
    """Puts back what `take` returned."""
    for number, former in handlers.items():
        signal.signal(number, signal.SIG_DFL if former is None else former)


def give(handlers: Handlers, number: int, frame: FrameType | None) -> None:
    """Hands a signal to the handler that was there before."""
    former = handlers[number]
    if callable(former):
        former(number, frame)
    elif former is not signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def raised() -> Iterator[None]:
    """The first signal within raises `Stopped` where the main thread stands."""
    if not _main():
        yield
        return
    came: list[int] = []

    def act(number: int, frame: FrameType | None) -> None:
        if came:
            if number == signal.SIGINT:
                give(before, number, frame)
            return
        came.append(number)
        raise Stopped(number)

    def lost(unraisable: Any) -> None:  # raised where Python can only print it, as in a __del__: once more, then
        if isinstance(unraisable.exc_value, Stopped):
            came.clear()
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), unraisable.exc_value.signal))
            again.daemon = True
            again.start()
        else:
            printed(unraisable)

    before: Handlers = {}
    printed, sys.unraisablehook = sys.unraisablehook, lost
    try:
        before |= take(act)
        yield
    finally:
        put_back(before)
        sys.unraisablehook = printed


@contextmanager
def deferred(what: str) -> Iterator[None]:
    """A signal within raises `Stopped` at the end of the block, if that ends well; a second Ctrl-C does not wait.

    Args:
        what: Is being done; said when a signal comes.
    """
    if not _main():
        yield
        return
    came: list[int] = []

    def act(number: int, frame: FrameType | None) -> None:
        if not came:
            came.append(number)
            say(f"{what}, then stopping; Ctrl-C again stops at once")
        elif number == signal.SIGINT:
            give(before, number, frame)

    before = take(act)
    try:
        yield
    finally:
        put_back(before)
    if came:
        raise Stopped(came[0])


@contextmanager
def noted() -> Iterator[list[int]]:
    """Signals within do nothing but come into the list that the block is given."""
    came: list[int] = []
    if not _main():
        yield came
        return
    before = take(lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        put_back(before)


def _main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _in_child(number: int) -> None:
    """In a process that loads images: what ends a command reaches it too, and its parent may need it to the end."""
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(LINGER)


def _leave_terminal() -> None:
    """The terminal has gone: what is printed from here on must not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)
