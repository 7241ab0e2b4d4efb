"""Focus and the random-logit similarity against loops written from their definitions."""

import math

import pytest
import torch

import metric_cases
import softgate as sg
from softgate import metrics


def slow_focus(image, cells):
    """Pixel by pixel: what is positive in the marked quadrants, over all that is positive."""
    channels, height, width = image.shape
    inside = total = 0.0
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                value = max(0.0, float(image[channel, row, column]))
                total += value
                inside += value * bool(cells[2 * (row >= height // 2) + (column >= width // 2)])
    return inside / total


def slow_similarity(a, b):
    """Window by window, moments with n - 1."""
    a, b = (each.flatten().tolist() for each in (a, b))
    a, b = ([value / max(map(abs, each)) for value in each] for each in (a, b))
    spread = max(a + b) - min(a + b)
    first, second = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    found = []
    for start in range(len(a) - 6):
        one, other = a[start : start + 7], b[start : start + 7]
        mean_a, mean_b = sum(one) / 7, sum(other) / 7
        var_a, var_b = (sum((v - m) ** 2 for v in each) / 6 for each, m in ((one, mean_a), (other, mean_b)))
        shared = sum((v - mean_a) * (w - mean_b) for v, w in zip(one, other, strict=True)) / 6
        above = (2 * mean_a * mean_b + first) * (2 * shared + second)
        found.append(above / ((mean_a**2 + mean_b**2 + first) * (var_a + var_b + second)))
    return sum(found) / len(found)


def maps(count=3, height=6, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, height, width, generator=generator, dtype=torch.float64)


def test_focus_is_the_share_of_what_is_positive():
    found, cells = maps(), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    expected = [slow_focus(image, marks) for image, marks in zip(found, cells, strict=True)]
    assert metrics.focus(found, cells).tolist() == pytest.approx(expected, rel=1e-12)
    assert metrics.focus(-torch.ones(1, 1, 4, 4), cells[:1]).isnan().all()


def test_the_similarity_is_that_of_the_flattened_maps():
    one, other = maps(), maps(seed=1)
    expected = [slow_similarity(a, b) for a, b in zip(one, other, strict=True)]
    assert metrics.flat_similarity(one, other).tolist() == pytest.approx(expected, rel=1e-10)
    assert metrics.flat_similarity(one, 3 * one).tolist() == pytest.approx([1] * 3)
    assert metrics.flat_similarity(one, torch.zeros_like(one)).isnan().all()


def test_mosaics_have_two_of_one_class_and_two_of_others_in_every_order():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, 4, 4)
    tiles, target, cells = metrics.paired_mosaics(images, labels, count=60, seed=3)
    assert tiles.shape == (60, 1, 8, 8)
    seen = set()
    for tile, wanted, marks in zip(tiles, target.tolist(), cells, strict=True):
        corners = [int(tile[0, row, column]) for row in (0, 7) for column in (0, 7)]
        assert [int(labels[corner]) == wanted for corner in corners] == marks.tolist()
        assert len(set(corners)) == 4
        assert int(marks.sum()) == 2
        seen.add(tuple(marks.tolist()))
    assert len(seen) == 6
    assert set(target.tolist()) == {0, 1}  # class 2 has one image
    assert torch.equal(tiles, metrics.paired_mosaics(images, labels, count=60, seed=3)[0])


def test_metrics_take_what_mosaics_give_and_say_where_there_is_none():
    net, (x, labels) = metric_cases.network(), metric_cases.probe()
    metric = metrics.Focus(metric_cases.explain)
    tiles, target, cells = metrics.paired_mosaics(x, labels, count=5)
    metric.update(net, tiles, target, cells)
    pulled = sg.pullback(net, tiles, target, metric_cases.RULE)
    by_hand = [slow_focus(image, marks) for image, marks in zip(pulled, cells, strict=True)]
    assert float(metric.compute()) == pytest.approx(sum(by_hand) / 5, rel=1e-10)
    none = metrics.Focus(metric_cases.explain)
    none.update(net, *metrics.paired_mosaics(x, torch.zeros_like(labels)))
    with pytest.warns(sg.SoftgateWarning, match="no class has two images"):
        assert math.isnan(none.compute())


def test_a_map_that_knows_nothing_of_the_class_is_like_every_other():
    net, (x, labels) = metric_cases.network(), metric_cases.probe()
    blind, pulled = metrics.RandomLogit(lambda model, x, target: x), metrics.RandomLogit(metric_cases.explain)
    for metric in (blind, pulled):
        metric.update(net, x, labels)
    assert float(blind.compute()) == pytest.approx(1)
    assert float(pulled.compute()) < 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.focus(maps(), torch.ones(3, 4)), r"cells \(3, 4\) of torch.float32: \[3, 4\] of bool"),
        (lambda: metrics.paired_mosaics(maps(), torch.zeros(3), count=0), "count=0: at least 1"),
        (lambda: metrics.flat_similarity(maps(1, 1, 2), maps(1, 1, 2)), "maps of 4 numbers: at least 7"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(sg.SoftgateError, match=words):
        call()
