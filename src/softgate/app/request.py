"""What a visitor asks to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softgate.surrogate.rule import Surrogate

MOST_RUNS, MOST_TARGETS = 2, 6
"""Rows and columns of a picture."""


@dataclass(frozen=True)
class Request:
    """What is to be shown.

    Attributes:
        runs: One or two runs, each with the key of its moment.
        targets: The classes to read out, as the networks count them.
        rule: Of the soft read-out.
        label: The class of the image, as the data counts them.
        number: Which image of that class.
        probe: Which of the run's probe images, of those its grids show, in place of these.
        upload: A file in place of all of them.
        kind: "raw": pullbacks. "ascent": the image after an ascent along them, and what it added.
        scale: How pullbacks become colours: "cell", "shared" or "seismic".
        steps: Of the ascent.
        step_size: L2 norm of a step at 3 x 224 x 224, pixels in [-1, 1]; scaled to other sizes.
        radius: Of the ball around the image, scaled likewise.
    """

    runs: Sequence[tuple[str, str]]
    targets: Sequence[int]
    rule: Surrogate
    label: int = 0
    number: int = 0
    probe: int | None = None
    upload: bytes | None = None
    kind: str = "raw"
    scale: str = "cell"
    steps: int = 10
    step_size: float = 20.0
    radius: float = 100.0
