"""Metrics on input that is no good: no value, and one warning that says why."""

import math
import warnings

import pytest
import torch
from torch import nn

import reference_metrics as slow
from metric_cases import cases, close, explain, network, probe, value
from softgate import SoftgateError, SoftgateWarning, metrics
from softgate.metrics import control_table
from softgate.metrics.perceptual_likeness import as_image


def only_warning(metric, arguments):
    """The value, and the one SoftgateWarning that it came with; none is an empty string."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = value(metric, arguments)
    mine = [str(w.message) for w in caught if issubclass(w.category, SoftgateWarning)]
    assert len(mine) <= 1
    return found, mine[0] if mine else ""


def values_of(found):
    return [float(v) for v in (found.values() if isinstance(found, dict) else [found])]


def dead(net):
    nn.init.constant_(net.norm2.bias, -1e6)
    return net


def nan_logits(net):
    nn.init.constant_(net.head.bias, math.nan)
    return net


DEFINED_WHEN_DEAD = {"representation": 0.0}  # the logits are constants, and so says their affine reading
MAPS_ONLY = {"total_variation", "high_frequency", "spectral_slope", "data_alignment", "mean_alignment",
             "target_specificity", "input_specificity", "lpips_alignment"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(cases(network(), *probe())))
def test_a_dead_network_has_no_value_and_one_warning_says_why(name):
    net, (x, labels) = dead(network()), probe()
    assert not explain(net, x, labels).any()
    found, warning = only_warning(*cases(net, x, labels)[name])
    if name in DEFINED_WHEN_DEAD:
        assert values_of(found) == pytest.approx([DEFINED_WHEN_DEAD[name]], abs=1e-10)
    else:
        assert all(map(math.isnan, values_of(found)))
        assert (
            "zero" in warning
            or "same" in warning
            or "vary" in warning
            or "constant" in warning
            or "positive" in warning
        )


@pytest.mark.parametrize("name", sorted(set(cases(network(), *probe())) - MAPS_ONLY))
def test_nan_logits_have_no_value_and_one_warning_says_why(name):
    found, warning = only_warning(*cases(nan_logits(network()), *probe())[name])
    assert all(map(math.isnan, values_of(found)))
    assert "NaN or infinite" in warning


@pytest.mark.parametrize("name", sorted(MAPS_ONLY))
def test_nan_maps_have_no_value_and_one_warning_says_why(name):
    metric, (maps, *rest) = cases(network(), *probe())[name]
    maps = maps.clone()
    maps[3].fill_(math.nan)
    found, warning = only_warning(metric, (maps, *rest))
    assert math.isnan(found)
    assert "NaN or infinite values in the maps or logits of 1 of 9 images" in warning


@pytest.mark.parametrize("name", sorted(cases(network(), *probe())))
@pytest.mark.parametrize("pixel", [0.0, 0.5])
def test_constant_images_crash_nothing_and_what_is_undefined_says_so(name, pixel):
    x, labels = probe()
    found, warning = only_warning(*cases(network(), torch.full_like(x, pixel), labels)[name])
    undefined = any(map(math.isnan, values_of(found)))
    assert undefined == bool(warning), (found, warning)
    if name in ("spectral_slope", "insertion_deletion", "kernel_agreement_within"):
        assert undefined


@pytest.mark.parametrize("name", sorted(cases(network(), *probe())))
def test_fewer_images_than_classes_crash_nothing_and_what_is_undefined_says_so(name):
    x, labels = probe()
    found, warning = only_warning(*cases(network(), x[:3], labels[:3])[name])
    undefined = any(map(math.isnan, values_of(found)))
    assert undefined == bool(warning), (found, warning)
    assert undefined == (name in ("grid_pointing", "input_specificity", "kernel_agreement_within"))


def test_no_image_at_all_is_nan_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert math.isnan(metrics.TotalVariation().compute())
    assert sum(issubclass(w.category, SoftgateWarning) for w in caught) == 1


def test_images_without_a_value_are_left_out_and_counted():
    maps = torch.rand(4, 3, 8, 8)
    maps[1] = 0
    with pytest.warns(SoftgateWarning, match="1 of 4 images are left out: the map is zero"):
        found = value(metrics.TotalVariation(), (maps,))
    close(found, slow.total_variation(maps[[0, 2, 3]].double()))


def test_settings_out_of_range_are_one_sentence():
    for make in (
        lambda: metrics.NoiseCosine(explain, scale=-1),
        lambda: metrics.MaxSensitivity(explain, count=0),
        lambda: metrics.Randomization(explain, probe()[0], "tail"),
        lambda: metrics.Infidelity(explain, share=2),
        lambda: metrics.Counterfactual(explain, steps=0),
        lambda: metrics.mosaics(*probe(), side=1),
        lambda: metrics.MeanAlignment(torch.zeros(3)),
    ):
        with pytest.raises(SoftgateError):
            make()


def test_lpips_without_its_weights_says_what_to_get(monkeypatch):
    import torchmetrics.image.lpip as lpip

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(lpip, "_LPIPS", offline)
    with pytest.raises(SoftgateError, match="alexnet"):
        metrics.LpipsAlignment()


def test_as_image_is_clipped_at_three_standard_deviations():
    maps = torch.randn(2, 3, 64, 64)
    assert as_image(maps).abs().amax() == 1
    assert torch.allclose(as_image(maps), as_image(5 * maps), atol=1e-6)


@pytest.mark.parametrize("name", sorted(cases(network(), *probe())))
def test_no_image_is_no_value_and_one_warning_says_so(name):
    metric, arguments = cases(network(), *probe())[name]
    none = [given[:0] if isinstance(given, torch.Tensor) else given for given in arguments]
    found, warning = only_warning(metric, none)
    assert all(map(math.isnan, values_of(found)))
    assert "no image was given" in warning or "there is no mosaic" in warning
    again = value(metric, arguments)
    assert values_of(again) == pytest.approx(values_of(value(*cases(network(), *probe())[name])))


def test_the_functions_of_no_image_have_no_value():
    none, several = torch.empty(0, 3, 8, 8), torch.empty(0, 4, 3, 8, 8)
    labels, numbers = torch.empty(0, dtype=torch.long), torch.empty(0)
    for rows in (
        metrics.total_variation(none),
        metrics.high_frequency(none),
        metrics.spectral_slope(none),
        metrics.data_alignment(none, none),
        metrics.mean_alignment(none, none, none),
        metrics.target_specificity(several),
        metrics.spearman(none, none),
        metrics.noise_cosine(none, none[None]),
        metrics.max_sensitivity(none, none[None]),
        metrics.infidelity(torch.empty(0, 5), torch.empty(0, 5)),
        metrics.pullback_accuracy(several, none, torch.empty(0, 4)),
        metrics.representation_error(numbers, numbers),
    ):
        assert rows.shape == (0,)
    assert metrics.grid_pointing(several, none, 2).shape == (0, 4)
    for scalar in (
        metrics.input_specificity(none, labels),
        metrics.kernel_agreement(numbers, numbers),
        metrics.kernel_agreement(numbers, numbers, labels),
    ):
        assert math.isnan(scalar)
    assert metrics.counterfactuals(lambda model, x, target: x, nn.Identity(), none, labels).shape == none.shape
    with pytest.raises(SoftgateError, match="N >= 1"):
        control_table.Probe(none, labels)


@pytest.mark.parametrize(("height", "width", "side"), [(10, 11, 3), (7, 9, 2), (2, 5, 3), (6, 6, 3)])
def test_grid_pointing_on_a_size_that_does_not_divide_shares_pixels_on_borders(height, width, side):
    """As on the picture with every pixel repeated `side` times, in which no border cuts one."""
    maps, x = torch.rand(2, side**2, 3, height, width), torch.rand(2, 3, height, width)
    found = metrics.grid_pointing(maps, x, side)
    large = maps.repeat_interleave(side, -1).repeat_interleave(side, -2)
    expected = metrics.grid_pointing(large, x.repeat_interleave(side, -1).repeat_interleave(side, -2), side)
    torch.testing.assert_close(found, expected)
    even = torch.ones(1, side**2, 3, height, width)
    torch.testing.assert_close(
        metrics.grid_pointing(even, even[:, 0], side), torch.full((1, side**2), side**-2).double()
    )


def test_grid_pointing_with_another_number_of_maps_is_refused():
    with pytest.raises(SoftgateError, match=r"grid_pointing: maps \(1, 4, 3, 6, 6\): \[B, 9, C, H, W\]"):
        metrics.grid_pointing(torch.rand(1, 4, 3, 6, 6), torch.rand(1, 3, 6, 6), 3)
