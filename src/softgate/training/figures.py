"""The options of `figures=`, and how charts become files: the same for a run and for an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from softgate import files
from softgate.errors import require, unknown
from softgate.figures import FORMATS
from softgate.options import Options, Words

if TYPE_CHECKING:  # matplotlib takes time, which a command that is refused need not wait
    from softgate.figures.style import Chart


def _formats(given: Any) -> Any:
    fine = isinstance(given, (list, tuple)) and len(given) > 0
    require(fine, f"figures.formats={given}: a list of png, pdf and svg is needed, such as figures.formats=[png,pdf].")
    for each in given:
        if not isinstance(each, str) or each not in FORMATS:
            raise unknown("figures.formats", each, FORMATS)
    return given


class FiguresConfig(Options):
    """The options under `figures.`: of every chart that is written as a file."""

    at: ClassVar[str] = "figures"

    formats: Annotated[Words, BeforeValidator(_formats)] = Field(
        ("png",), description="png, pdf and svg; a chart is written once in each"
    )

    def save(self, chart: Chart, path: Path) -> None:
        """Writes a chart in every format, each file whole or not at all.

        Args:
            chart: The chart.
            path: The file; its ending is that of the format, whatever it is here.
        """
        for kind in self.formats:
            files.write(chart.encoded(kind), path.with_suffix(f".{kind}"))


FIGURES = FiguresConfig()
"""Where nothing is asked for."""
