"""The optimiser: its groups, its schedule and its options."""

from itertools import pairwise

import pytest
from torch import nn

from softgate import SoftgateError
from softgate.training import optim
from softgate.training.optim_config import OptimConfig

SETTINGS = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "warmup": 0.1, "label_smoothing": 0.0}


def test_norms_and_biases_have_no_weight_decay():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    built = optim.build_optimizer(net, OptimConfig.read(SETTINGS))
    decays = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert len(decays) == len(list(net.parameters()))
    for name, p in net.named_parameters():
        assert decays[id(p)] == (0.01 if name in ("0.weight", "2.weight") else 0.0), name


def test_warmup_climbs_linearly_and_cosine_ends_at_zero():
    net = nn.Linear(2, 2)
    built = optim.build_optimizer(net, OptimConfig.read(SETTINGS))
    schedule = optim.warmup_cosine(built, steps=100, warmup=0.1)
    rates = []
    for _ in range(101):
        rates.append(built.param_groups[0]["lr"])
        built.step()
        schedule.step()
    rises = [b - a for a, b in pairwise(rates[:11])]
    assert max(rises) - min(rises) < 1e-12
    assert rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05, abs=1e-6)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.5),
        ("weight_decay", -1),
        ("warmup", 2),
        ("label_smoothing", "a"),
    ],
)
def test_optimiser_options_out_of_range_are_named(key, value):
    with pytest.raises(SoftgateError, match=rf"optim\.{key}={value}"):
        OptimConfig.read({**SETTINGS, key: value})
