"""The control table, the sanity gate and the verdict."""

import math

import pytest
import torch

from probe import CLASSES, RULE, network, probe
from softgate import SoftgateError, SoftgateWarning, controls
from softgate.alignment import SANITY, Probe, Score, control_table, failures, verdict


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
    assert {"noise_cosine", "insertion_deletion_deletion", "counterfactual_transfer", "randomization_all"} <= common
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


def test_images_and_labels_must_fit():
    with pytest.raises(SoftgateError, match="probe"):
        Probe(torch.zeros(3, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
