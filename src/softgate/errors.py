"""What softgate raises and warns with: one class for a user's mistake, one for a warning worth reading.

Every message names the option, the value it had and what is allowed. The command line turns a
`SoftgateError` into one sentence and exit status 2; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeGuard

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the system says only to those who write."""


class SoftgateError(ValueError):
    """A mistake in how softgate is used: the message says which option, which value, what is allowed.

    Attributes:
        status: The exit status of a command that it ends.
    """

    status = 2


class NoCallSites(SoftgateError):
    """A rule was attached to a model in which nothing can be gated."""


class UnreachableSites(SoftgateError):
    """A model has activations or poolings that the rule does not cover; the message lists them."""


class Diverged(SoftgateError):
    """Training was stopped: its loss, or a weight, is no longer a number, or the loss passed its limit."""

    status = 3


class CannotWrite(SoftgateError, OSError):
    """A file or folder cannot be written: the disk is full, the folder gone or read-only, the name too long."""

    status = 4


class OutOfMemory(SoftgateError):
    """Memory ran out, or a process that loads images was ended for want of it; the message says what takes less."""

    status = 5


class RankFailed(SoftgateError):
    """One of several ranks failed or is gone, and all end: in it with its own error as the cause, in others without.

    Attributes:
        status: The exit status of the rank that failed, which all ranks end with.
        told: Whether another rank says it.
    """

    def __init__(self, message: str, status: int, told: bool = False) -> None:
        super().__init__(message)
        self.status, self.told = status, told


class Stopped(KeyboardInterrupt):
    """A signal ended what was under way; where that was a run's training, its last checkpoint is written.

    Attributes:
        signal: The signal's number: that of SIGINT after Ctrl-C.
        kept: What is kept and how to go on, where whoever was stopped knows it; else empty.
    """

    def __init__(self, signal: int, kept: str = "") -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal, self.kept = signal, kept


class JobFailed(RuntimeError):
    """A job of a sweep did not finish; a sweeper finds this in place of the job's objective."""


class SoftgateWarning(UserWarning):
    """Something was done differently from what was asked, and the run goes on."""

    def __init__(self, words: str) -> None:
        super().__init__(printable(words))


_COMMANDS = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, and where the next letter goes
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles and links
    r"|\x1b[ -/]*[0-~]"  # all others
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """A text without what a terminal would obey, such as escape sequences: a name may come from anybody's file."""
    return _COMMANDS.sub("", text)


def unknown(option: str, value: object, allowed: Iterable[str]) -> SoftgateError:
    """Makes the error for a name that is not on the list, with the nearest known name as a hint."""
    names = sorted(allowed)
    near = get_close_matches(str(value), names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return SoftgateError(f"{option}={value}: there is no such name; allowed: {', '.join(names)}.{hint}")


def require(condition: bool, message: str) -> None:
    """Raises `SoftgateError(message)` unless `condition` holds."""
    if not condition:
        raise SoftgateError(message)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an int or a float; true and false are neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether a value is an int >= `least`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def positive(option: str, value: float) -> None:
    """Raises `SoftgateError` unless `value` is a number above zero that float32 arithmetic can divide by."""
    number = is_number(value)
    if not number or not 1e-30 <= value <= 1e30:
        raise SoftgateError(f"{option}={value}: a finite number > 0 (from 1e-30 to 1e30) is needed.")


def finite(option: str, value: float) -> None:
    """Raises `SoftgateError` unless `value` is a finite number."""
    number = is_number(value)
    if not number or not abs(value) <= 1e30:
        raise SoftgateError(f"{option}={value}: a finite number (up to 1e30) is needed.")
