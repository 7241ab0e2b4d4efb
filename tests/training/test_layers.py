"""The table of layers and call sites."""

import pytest
import torch

from softgate import Surrogate, gates, pools
from softgate.training import SoftgateModule
from softgate.training.layers import call_sites, layers


def module(rule: Surrogate) -> SoftgateModule:
    return SoftgateModule({"name": "squeezenet1_1", "stem": "small"}, rule.to_dict(), ["a", "b", "c"])


@pytest.fixture(scope="module")
def soft():
    return module(Surrogate(gate=gates.Sigmoid(temperature=0.3), pool=pools.LSE(temperature=0.3)))


def test_every_layer_has_its_output_and_its_parameters(soft):
    before = {name: value.clone() for name, value in soft.state_dict().items()}
    drawn = torch.get_rng_state()
    soft.train()
    table = layers(soft, 3, 32)
    assert soft.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in soft.state_dict().items())
    rows = {row[0]: row for row in table.texts}
    counts = [int(row[3].replace(",", "")) for name, row in rows.items() if name != "all"]
    assert sum(counts) == int(rows["all"][3].replace(",", "")) == sum(p.numel() for p in soft.net.parameters())
    assert rows["features.0"][1:3] == ["Conv2d", "64 × 32 × 32"]


def test_every_call_site_says_what_the_rule_does_there(soft):
    said = {row[0]: row[2] for row in call_sites(soft).texts}
    assert len(said) == len(soft.sites.table()) == 29
    assert sum("gate Sigmoid(temperature=0.3)" in each for each in said.values()) == 26
    assert sum("pool LSE(temperature=0.3)" in each for each in said.values()) == 3
    with soft.sites.use(Surrogate(gate=gates.Hard(), pool=pools.Hard())):
        assert {row[2] for row in call_sites(soft).texts} == {"the true one"}
    some = Surrogate.from_dict({**soft.rule.to_dict(), "sites": {"names": ["features.1*"]}})
    with soft.sites.use(some):
        left = [row for row in call_sites(soft).texts if "left out by surrogate.sites" in row[2]]
        assert left
        assert not any(row[0].startswith("features.1") for row in left)
