"""Splits into batches change no value; intervals hold it."""

import pytest
import torch

from metric_cases import cases, value
from softgate import metrics


def test_any_split_into_batches_gives_the_same_value(setting):
    net, x, labels, found = setting
    first, second = cases(net, x[:4], labels[:4]), cases(net, x[4:], labels[4:])
    for name, (metric, arguments) in first.items():
        if name == "grid_pointing":
            continue  # its mosaics are drawn from all images
        metric.update(*arguments)
        metric.update(*second[name][1])
        again = metric.compute()
        for key in metric.outputs or (None,):
            a, b = (again, found[name]) if key is None else (again[key], found[name][key])
            assert float(a) == pytest.approx(float(b), rel=1e-9, abs=1e-12), name


def test_intervals_hold_the_value_and_are_reproducible(setting):
    net, x, labels, _ = setting
    for name, (metric, arguments) in cases(net, x, labels).items():
        found, ends = value(metric, arguments), metric.interval(resamples=200)
        assert metric.interval(resamples=200).__repr__() == ends.__repr__()
        for key in metric.outputs or (None,):
            v, (low, high) = (found, ends) if key is None else (found[key], ends[key])
            assert low <= high, name
            if name not in ("input_specificity", "kernel_agreement", "kernel_agreement_within"):  # biased statistics
                assert low - 1e-12 <= v <= high + 1e-12, name


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    metric = metrics.TotalVariation()
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric.add(values)
    low, high = metric.interval(resamples=4000)
    wide = 2 * 1.96 * float(values.std()) / 20
    assert float(high - low) == pytest.approx(wide, rel=0.1)
