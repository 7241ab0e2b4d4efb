"""The control table, the sanity gate and the verdict."""

import math
import sys
from functools import partial

import pytest
import torch

from metric_cases import CLASSES, RULE, network, probe
from softgate import SoftgateError, SoftgateWarning, metrics
from softgate.explainers import Pullback, guided_backprop
from softgate.metrics import controls
from softgate.metrics.control_table import (
    BETTER,
    SANITY,
    Probe,
    Score,
    _of_maps,
    _of_readout,
    _other_classes,
    control_table,
    failures,
    verdict,
)


@pytest.fixture(scope="module")
def table():
    net, (x, labels) = network().float(), probe(12, size=16)
    x = x.float()
    means = torch.stack([x[labels == c].mean(0) for c in range(CLASSES)])
    explainers = controls.standard(RULE, x, passes=2)
    chosen = {name: explainers[name] for name in ("gradient", "pullback", "edge filter")}
    with pytest.warns(SoftgateWarning, match="PullbackAccuracy: not defined"):  # an edge filter knows no class
        return control_table(net, chosen, Probe(x, labels, means), network(1).float(), dear=8)


def test_every_explainer_has_every_metric_and_pullbacks_their_representation(table):
    common = set(table["edge filter"])
    assert {"noise_cosine", "deletion", "counterfactual_transfer", "randomization_all"} <= common
    for name in ("gradient", "pullback"):
        assert set(table[name]) == common | {"representation", "kernel_agreement", "kernel_agreement_within"}
    for scores in table.values():
        for key, score in scores.items():
            assert math.isnan(score.value) or score.low <= score.high, key
    assert table["gradient"]["representation"].value < 1e-4 < table["pullback"]["representation"].value


def test_the_edge_filter_fails_the_gate(table):
    failed = failures(table)
    assert failed["gradient"] == []
    assert failed["edge filter"] == list(SANITY)


def test_a_metric_that_does_not_fit_into_memory_is_left_out_and_the_gate_counts_it_as_failed(
    monkeypatch,
):
    def short(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    for kind in (metrics.Infidelity, metrics.TargetSpecificity):
        monkeypatch.setattr(kind, "update", short)
    net, (x, labels) = network().float(), probe(8, size=16)
    explainers = {"gradient": Pullback(None, centred=True), "pullback": Pullback(RULE, centred=True)}
    with pytest.warns(SoftgateWarning) as warned:
        found = control_table(net, explainers, Probe(x.float(), labels), dear=2, draws=2)
    said = {str(each.message) for each in warned}
    assert {f"no {key}: memory ran out at 20.00 MiB more" for key in ("infidelity", "target_specificity")} <= said
    for row in found.values():
        assert not {"infidelity", "target_specificity"} & row.keys()
        assert {"deletion", "noise_cosine", "representation"} <= row.keys()
    assert "target_specificity" in failures(found)["pullback"]


def scores(value, sane=True):
    fine = 0.1 if sane else 0.9
    near = Score(value, value - 0.01, value + 0.01)
    return {"m": near} | {key: Score(fine, fine, fine) for key in SANITY}


def test_a_verdict_is_given_only_to_who_passes_the_gate_and_names_sane_ones_ahead():
    rows = {"gradient": scores(0.5), "pullback": scores(0.7), "x": scores(0.8), "y": scores(0.9, sane=False)}
    said = verdict("m", True, rows, failures(rows))
    assert "better than" in said
    assert said.endswith("sane: x.")
    assert "worse than" in verdict("m", False, rows, failures(rows))
    rows["pullback"] = scores(0.7, sane=False)
    assert verdict("m", True, rows, failures(rows)).startswith("m: no verdict; the pullback fails")
    rows["pullback"] = scores(0.505)
    assert "not told apart" in verdict("m", True, rows, failures(rows))
    rows["pullback"] = scores(math.nan)
    assert "no value" in verdict("m", True, rows, failures(rows))


def test_an_undefined_sanity_score_is_a_failure():
    rows = {"gradient": scores(0.5), "pullback": scores(0.5) | {SANITY[0]: Score(math.nan, math.nan, math.nan)}}
    assert failures(rows)["pullback"] == [SANITY[0]]


def test_labels_outside_the_compared_classes_have_another_class_too():
    found = _other_classes(Probe(torch.zeros(5, 1, 2, 2), torch.arange(5), classes=[0, 2, 4]))
    assert found.tolist() == [2, 2, 4, 4, 0]


def test_mean_images_may_be_of_some_classes_in_any_order():
    net, (x, labels) = network().float(), probe(12, size=16)
    x = x.float()
    means = torch.stack([x[labels == c].mean(0) for c in range(CLASSES)])
    order = [3, 0, 4, 2, 1]
    every = Probe(x, labels, means)
    some = Probe(x, labels, means[order], numbers=order)
    explain = Pullback(None, centred=True)
    assert _of_maps(net, explain, some, some.first(2)) == _of_maps(net, explain, every, every.first(2))


def test_chunks_do_not_change_scores(monkeypatch):
    net, (x, labels) = network(), probe(12, size=16)
    images = Probe(x, labels, None, list(range(CLASSES)))
    whole = [_of_maps(net, explain, images, images.first(2)) for explain in (Pullback(RULE, centred=True),)]
    whole += [_of_readout(net, Pullback(RULE, centred=True), images)]
    monkeypatch.setattr(sys.modules[control_table.__module__], "CHUNK", 5)
    parts = [_of_maps(net, explain, images, images.first(2)) for explain in (Pullback(RULE, centred=True),)]
    parts += [_of_readout(net, Pullback(RULE, centred=True), images)]
    for one, other in zip(whole, parts, strict=True):
        assert other.keys() == one.keys()
        for key, score in one.items():
            assert other[key] == pytest.approx(score, abs=1e-10), key


def test_a_network_whose_logits_are_no_sum_of_map_and_constants_is_measured_without():
    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network().float()

        def forward(self, x):
            out = self.net(x)
            return out * out

    x, labels = probe(6, size=16)
    with pytest.warns(SoftgateWarning, match="no representation"):
        found = control_table(Product(), {"pullback": Pullback(RULE, centred=True)}, Probe(x.float(), labels), draws=1)
    assert "representation" not in found["pullback"]
    assert not math.isnan(found["pullback"]["noise_cosine"].value)


def test_an_explainer_that_does_not_cover_the_network_is_left_out():
    ends = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, CLASSES)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU6(), *ends)
    x, labels = probe(6, size=16)
    chosen = {"edge filter": controls.EdgeFilter(), "guided backprop": partial(guided_backprop, centred=True)}
    with (
        pytest.warns(SoftgateWarning, match="PullbackAccuracy: not defined"),  # an edge filter knows no class
        pytest.warns(SoftgateWarning, match="left out: guided_backprop: Sequential has activations"),
    ):
        found = control_table(net, chosen, Probe(x.float(), labels), draws=1)
    assert set(found) == {"edge filter"}


def test_every_key_has_a_direction_and_a_place(table):
    assert set(table["pullback"]) == set(BETTER)
    assert BETTER["noise_cosine"] is True
    assert BETTER["randomization_head"] is False
    assert BETTER["spectral_slope"] is None


def test_images_and_labels_must_fit():
    with pytest.raises(SoftgateError, match="probe"):
        Probe(torch.zeros(3, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
