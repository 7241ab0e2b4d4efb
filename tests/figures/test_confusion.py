"""The picture of a confusion matrix."""

import numpy as np
import pytest

from softgate import SoftgateError
from softgate.figures.confusion import COUNTED, confusion


def words(chart) -> list[str]:
    return [text.get_text() for axes in chart.figure.axes for text in axes.texts]


def test_cells_have_their_counts_and_colours_the_share_of_the_true_class():
    counts = np.array([[8, 2], [0, 0]])
    chart = confusion(counts, ["a", "b"], ["a", "b"], "title", ["a for b: 2 of 10"])
    assert words(chart) == ["8", "2"]  # a cell without an image is empty, and few classes need no list
    shares = chart.figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(shares[0], np.nan), [0.8, 0.2])
    assert not np.isfinite(np.ma.filled(shares[1].astype(float), np.nan)).any()  # a class without images
    chart.picture()
    axes = chart.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_many_classes_have_no_counts_and_the_worst_pairs_beside_them():
    size = COUNTED + 5
    counts = np.eye(size, dtype=int) * 5
    chart = confusion(counts, list(map(str, range(size))), list(map(str, range(size))), listed=["3 for 4: 7 of 9"])
    assert words(chart) == ["most often taken for another:\n3 for 4: 7 of 9"]


def test_names_must_fit():
    with pytest.raises(SoftgateError, match=r"confusion: counts \(2, 2\) of 1 and 2 classes"):
        confusion(np.eye(2, dtype=int), ["a"], ["a", "b"])
