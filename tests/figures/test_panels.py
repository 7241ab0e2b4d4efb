"""Panels over epochs: which are drawn, and within which axes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate import SoftgateError
from softgate.figures import comparison, panels
from softgate.figures.panels import Dots, Line


def test_every_panel_that_has_points_is_drawn():
    one = panels.draw({"loss": {"train": Line([(1, 1.0), (2, 0.5)])}, "empty": {"train": Line(())}})
    both = panels.draw({"loss": {"train": Line([(1, 1.0)])}, "accuracy": {"val": Line([(1, 0.5)])}})
    assert [len(chart.figure.axes) for chart in (one, both)] == [1, 2]
    assert both.width == 2 * one.width
    assert both.picture().size == (both.width, both.height)
    with pytest.raises(SoftgateError, match="no point to draw"):
        panels.draw({"loss": {"train": Line(())}})


def test_a_panel_none_of_whose_points_is_a_number_is_drawn_empty():
    undefined = Line([(0.0, math.nan), (1.0, math.nan)])
    assert panels.draw({"a": {"x": undefined}, "b": {"y": Line([(0.0, 1.0)])}}, ranges={"a": (0, 1)}).picture()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(0, 2))
def test_no_axis_and_no_band_goes_beyond_what_there_can_be(values, width):
    points = list(enumerate(values, start=1))
    line = Line(points, [(x, y - width) for x, y in points], [(x, y + width) for x, y in points])
    chart = panels.draw({"cosine": {"hard": line}}, ranges={"cosine": (-1, 1)}, best=1)
    (axes,) = chart.figure.axes
    low, high = axes.get_ylim()
    assert -1 <= low < high <= 1
    assert all(low <= y <= high for y in values)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() >= -1
    assert band.max() <= 1


def test_one_epoch_is_in_the_middle_of_an_axis_that_counts_it_alone():
    chart = panels.draw({"accuracy": {"val": Line([(1, 1.0)])}}, ranges={"accuracy": (0, 1)}, best=1)
    chart.picture()
    (axes,) = chart.figure.axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
    assert axes.get_ylim()[1] == 1


def test_the_best_epoch_is_marked_in_every_panel_and_named_where_there_is_a_legend():
    two = {"train": Line([(1, 0.2), (2, 0.3)]), "val": Line([(1, 0.4), (2, 0.1)])}
    chart = panels.draw({"accuracy": two, "rate": {"rate": Line([(1, 0.1), (2, 0.0)])}}, best=1)
    for axes in chart.figure.axes:
        assert any(line.get_linestyle() == ":" and set(line.get_xdata()) == {1} for line in axes.lines)
    legend = [text.get_text() for text in chart.figure.axes[0].get_legend().get_texts()]
    assert legend == ["train", "val", "best: epoch 1"]
    assert chart.figure.axes[1].get_legend() is None


def test_a_cursor_stands_in_every_panel_and_lines_keep_the_colours_of_a_legend_beside():
    two = {"a": Line([(1, 0.2), (2, 0.3)]), "b": Line([(1, 0.4), (2, 0.1)])}
    colours = {"b": "#112233", "a": "#445566"}
    chart = panels.draw({"x": two, "y": {"b": Line([(1, 0.1)])}}, axis="step", cursor=2, colours=colours)
    for axes in chart.figure.axes:
        assert axes.get_legend() is None
        drawn = {line.get_label(): line.get_color() for line in axes.lines if line.get_label() in colours}
        assert drawn.items() <= colours.items()
        assert drawn
        assert any(line.get_linestyle() == "--" and set(line.get_xdata()) == {2} for line in axes.lines)
    assert chart.figure.get_supxlabel() == "step"


def test_intervals_of_dots_end_where_values_end():
    dots = [Dots("a", {"x": (0.95, 0.8, 1.3), "y": (1.0, math.nan, math.nan)})]
    chart = panels.dots({"share": dots}, ["x", "y"], ranges={"share": (0, 1)})
    (axes,) = chart.figure.axes
    assert axes.get_xlim()[1] == 1
    assert max(max(line.get_xdata()) for line in axes.lines) == 1


def test_curves_of_a_comparison_keep_to_the_same_axes():
    line = Line([(1, 0.95)], [(1, 0.8)], [(1, 1.2)])
    chart = comparison.curves({"a": line}, {"a": 0}, "top-1", possible=(0, 1))
    chart.picture()
    (axes,) = chart.figure.axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
    assert axes.get_ylim()[1] <= 1
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 1
