"""The options of figures, and the files of charts."""

import pytest

from softgate import SoftgateError
from softgate.figures.panels import Line, draw
from softgate.training.figures import FIGURES, FiguresConfig


def test_a_chart_is_written_in_every_format_that_is_asked_for(tmp_path):
    chart = draw({"a": {"b": Line([(1, 1.0)])}})
    FIGURES.save(chart, tmp_path / "one.png")
    FiguresConfig.read({"formats": ["pdf", "svg"]}).save(chart, tmp_path / "two.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.pdf", "two.svg"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["jpg"], r"figures\.formats=jpg: .*allowed: .*png"),
        ("png", r"figures\.formats=png: a list of png, pdf and svg is needed, such as figures\.formats=\[png,pdf\]"),
        ([], r"figures\.formats=\[\]: a list"),
        ([1], r"figures\.formats=1: "),
    ],
)
def test_another_format_is_refused(given, said):
    with pytest.raises(SoftgateError, match=said):
        FiguresConfig.read({"formats": given})
