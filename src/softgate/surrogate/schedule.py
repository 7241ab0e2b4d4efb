r"""Schedules: how a rule's temperature and mix change over training, and when the rule is on at all.

A schedule is plain data and a function of the moment alone, so that a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from softgate.errors import SoftgateError, finite, require, unknown

SHAPES = ("constant", "linear", "cosine")
UNITS = ("epoch", "step")

_Part = TypeVar("_Part", "Ramp", "Window")


def _check_span(begin: float, until: float | None, unit: str) -> None:
    finite("begin", begin)
    fine = begin >= 0 and (until is None or begin <= until)
    require(fine, f"begin={begin}, until={until}: 0 <= begin <= until is needed.")
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)


@dataclass(frozen=True)
class Ramp:
    r"""A value that moves from `start` to `end` between two moments, and rests before and after.

    With the progress :math:`p` from 0 at `begin` to 1 at `until`, the value is start + (end - start) p for "linear",
    start + (end - start) (1 - cos(pi p)) / 2 for "cosine", and start until the end comes, at `until`, for "constant".

    Args:
        start: The value up to `begin`.
        end: The value from `until` on.
        until: When `end` is reached.
        begin: When the value starts to move.
        shape: "constant", "linear" or "cosine".
        unit: What `begin` and `until` count: "epoch" (fractions allowed) or "step" (optimiser steps).

    Raises:
        SoftgateError: If an option is out of range.
    """

    start: float
    end: float
    until: float
    begin: float = 0.0
    shape: str = "linear"
    unit: str = "epoch"

    def __post_init__(self) -> None:
        finite("start", self.start)
        finite("end", self.end)
        if self.shape not in SHAPES:
            raise unknown("shape", self.shape, SHAPES)
        finite("until", self.until)
        _check_span(self.begin, self.until, self.unit)

    def at(self, epoch: float, step: int) -> float:
        """The value at a moment; `epoch` may lie between two epochs."""
        now = epoch if self.unit == "epoch" else step
        if now >= self.until:
            return self.end
        if now <= self.begin or self.shape == "constant":
            return self.start
        progress = (now - self.begin) / (self.until - self.begin)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    def moving(self, epoch: float, step: int) -> bool:
        """Whether the value changes from one step to the next."""
        now = epoch if self.unit == "epoch" else step
        return self.shape != "constant" and self.start != self.end and self.begin <= now < self.until


@dataclass(frozen=True)
class Window:
    """When a rule is on: from `begin`, up to and without `until`; outside, the gradient is the true one.

    Args:
        begin: When the rule comes on.
        until: When it goes off; None is never.
        unit: "epoch" or "step".

    Raises:
        SoftgateError: If an option is out of range.
    """

    begin: float = 0.0
    until: float | None = None
    unit: str = "epoch"

    def __post_init__(self) -> None:
        if self.until is not None:
            finite("until", self.until)
        _check_span(self.begin, self.until, self.unit)

    def at(self, epoch: float, step: int) -> bool:
        """Whether the rule is on at a moment."""
        now = epoch if self.unit == "epoch" else step
        return self.begin <= now and (self.until is None or now < self.until)


@dataclass(frozen=True)
class Schedule:
    """What changes over training; None does not.

    Args:
        temperature: A factor on the temperatures of gate and pool.
        mix: The rule's `mix`, in [0, 1]; takes the place of the rule's own.
        on: When the rule is on.

    Raises:
        SoftgateError: If a value would leave its range.
    """

    temperature: Ramp | None = None
    mix: Ramp | None = None
    on: Window | None = None

    def __post_init__(self) -> None:
        for option, kind in (("temperature", Ramp), ("mix", Ramp), ("on", Window)):
            given = getattr(self, option)
            fine = given is None or isinstance(given, kind)
            require(fine, f"surrogate.schedule.{option}={given}: a softgate.{kind.__name__} or None is needed.")
        if self.temperature is not None:
            low = min(self.temperature.start, self.temperature.end)
            require(low > 0, f"surrogate.schedule.temperature: {low} is a factor, a number > 0 is needed.")
        if self.mix is not None:
            for value in (self.mix.start, self.mix.end):
                require(0 <= value <= 1, f"surrogate.schedule.mix: {value}: a number from 0 to 1 is needed.")

    @property
    def constant(self) -> bool:
        """Whether nothing changes."""
        return self == Schedule()

    def moving(self, epoch: float, step: int) -> bool:
        """Whether a value changes from one step to the next."""
        return any(ramp is not None and ramp.moving(epoch, step) for ramp in (self.temperature, self.mix))

    def to_dict(self) -> dict[str, Any]:
        """The schedule as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> Schedule:
        """Builds the schedule that `to_dict` wrote or a config describes; null and left-out keys do not change.

        Raises:
            SoftgateError: For an unknown key, a missing one, or a value out of range.
        """
        if plain is None:
            return cls()
        require(isinstance(plain, Mapping), f"surrogate.schedule={plain}: a dict is needed.")
        for key in plain:
            if str(key) == "True":
                raise SoftgateError("surrogate.schedule: YAML takes a bare 'on:' for true; write it in quotes.")
            if key not in ("temperature", "mix", "on"):
                raise unknown("surrogate.schedule", key, ("temperature", "mix", "on"))
        return cls(
            _build("temperature", plain.get("temperature"), Ramp),
            _build("mix", plain.get("mix"), Ramp),
            _build("on", plain.get("on"), Window),
        )


def _build(name: str, plain: Any, kind: type[_Part]) -> _Part | None:
    if plain is None:
        return None
    option = f"surrogate.schedule.{name}"
    allowed = [f.name for f in fields(kind)]
    example = "{start: 0, end: 1, until: 5}" if kind is Ramp else "{begin: 0, until: 5}"
    require(isinstance(plain, Mapping), f"{option}={plain}: a dict such as {example} is needed.")
    for key in plain:
        if key not in allowed:
            raise unknown(option, key, allowed)
    try:
        return kind(**plain)
    except TypeError:
        needed = [key for key in ("start", "end", "until") if key not in plain]
        raise SoftgateError(f"{option}={dict(plain)}: it lacks {', '.join(needed)}, as in {example}.") from None
    except SoftgateError as error:
        raise SoftgateError(f"{option}: {error}") from None
