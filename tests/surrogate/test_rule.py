import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from softgate import SoftgateError, Surrogate
from softgate.surrogate import gates, pools

temperatures = st.floats(1e-3, 50, allow_nan=False)
rules = st.builds(
    Surrogate,
    gate=st.one_of(
        st.just(gates.Hard()), st.builds(gates.Sigmoid, temperatures), st.builds(gates.NormalCDF, temperatures)
    ),
    pool=st.one_of(st.just(pools.Hard()), st.builds(pools.LSE, temperatures)),
    gain=st.sampled_from(["raw", "unit_rms"]),
    mix=st.one_of(st.sampled_from([0, 1, 0.0, 1.0]), st.floats(0, 1)),
)


def test_the_default_is_the_papers_rule():
    rule = Surrogate()
    assert rule == Surrogate(gates.Sigmoid(0.3), pools.LSE(0.3), scale="global", gain="raw", mix=1.0)


@given(rules)
def test_a_rule_comes_back_from_its_dict_from_json_and_from_pickle(rule):
    for same in (
        Surrogate.from_dict(rule.to_dict()),
        Surrogate.from_dict(json.loads(json.dumps(rule.to_dict()))),
        pickle.loads(pickle.dumps(rule)),
        copy.deepcopy(rule),
    ):
        assert same == rule
        assert hash(same) == hash(rule)
        assert same.to_dict() == rule.to_dict()


def test_to_dict_is_plain_data_under_the_config_names():
    assert Surrogate(gates.NormalCDF(0.5), pools.Hard(), gain="unit_rms", mix=0.25).to_dict() == {
        "gate": {"name": "normal_cdf", "temperature": 0.5},
        "pool": {"name": "hard"},
        "scale": "global",
        "gain": "unit_rms",
        "mix": 0.25,
        "sites": {"names": ["*"], "exclude": [], "kinds": [], "depth": [0.0, 1.0]},
        "schedule": {"temperature": None, "mix": None, "on": None},
    }


def test_from_dict_fills_left_out_keys_with_defaults_and_keeps_its_argument():
    plain = {"gate": {"name": "sigmoid"}, "mix": 0.5}
    before = copy.deepcopy(plain)
    assert Surrogate.from_dict(plain) == Surrogate(mix=0.5)
    assert Surrogate.from_dict({}) == Surrogate()
    assert plain == before


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"gates": {}}, ["surrogate=gates", "gate", "pool", "scale", "gain", "mix"]),
        ({"gate": {"name": "sigmoyd"}}, ["surrogate.gate.name=sigmoyd", "hard", "sigmoid", "Did you mean 'sigmoid'"]),
        ({"gate": {"temperature": 0.3}}, ["surrogate.gate.name=None", "sigmoid"]),
        ({"gate": {"name": "sigmoid", "tau": 2}}, ["surrogate.gate.tau=2", "temperature"]),
        ({"gate": {"name": "hard", "temperature": 2}}, ["surrogate.gate.temperature=2", "no settings"]),
        ({"gate": {"name": "sigmoid", "temperature": -1}}, ["gate.temperature=-1", "> 0"]),
        ({"pool": {"name": "max"}}, ["surrogate.pool.name=max", "hard", "lse"]),
        ({"pool": {"name": "lse", "temperature": 0}}, ["pool.temperature=0", "> 0"]),
        ({"scale": "local"}, ["surrogate.scale=local", "global"]),
        ({"gain": "unit"}, ["surrogate.gain=unit", "raw", "unit_rms"]),
        ({"mix": 1.5}, ["surrogate.mix=1.5", "0 to 1"]),
        ({"gate": "sigmoid"}, ["surrogate.gate=sigmoid"]),
        ({"gate": None}, ["surrogate.gate=None"]),
        ({"pool": 0.3}, ["surrogate.pool=0.3"]),
    ],
)
def test_a_mistake_in_plain_data_names_the_option_the_value_and_what_is_allowed(plain, said):
    with pytest.raises(SoftgateError) as error:
        Surrogate.from_dict(plain)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gate": "sigmoid"}, "surrogate.gate='sigmoid'"),
        ({"gate": pools.LSE()}, "surrogate.gate=LSE"),
        ({"gate": gates.Sigmoid}, "surrogate.gate="),
        ({"pool": gates.Hard()}, "surrogate.pool=Hard"),
        ({"pool": None}, "surrogate.pool=None"),
        ({"scale": "Global"}, "surrogate.scale=Global"),
        ({"gain": None}, "surrogate.gain=None"),
        ({"mix": -0.1}, "surrogate.mix=-0.1"),
        ({"mix": math.nan}, "surrogate.mix=nan"),
        ({"mix": "1"}, "surrogate.mix=1"),
        ({"mix": True}, "surrogate.mix=True"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_rule_is_made(settings, said):
    with pytest.raises(SoftgateError) as error:
        Surrogate(**settings)
    assert said in str(error.value)


def test_a_rule_with_a_gate_of_ones_own_has_no_dict_and_says_so():
    @dataclass(frozen=True)
    class Mine(gates.Gate):
        def __call__(self, z):
            return z.sigmoid()

    with pytest.raises(SoftgateError, match="sigmoid"):
        Surrogate(Mine()).to_dict()


def test_a_rule_cannot_be_changed_after_the_fact():
    with pytest.raises(FrozenInstanceError):
        Surrogate().mix = 0.5


@given(rules.filter(lambda rule: rule.gain == "raw"))
def test_mix_interpolates_linearly_between_the_hard_and_the_soft_gate(rule):
    z = torch.linspace(-3, 3, 121, dtype=torch.float64)
    expected = rule.mix * rule.gate(z) + (1 - rule.mix) * reference.hard(z)
    torch.testing.assert_close(rule(z), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("gate", "gain"),
    [(gates.Hard(), 1.0), (gates.Sigmoid(0.3), 0.888), (gates.NormalCDF(0.6), 0.874)],
)
def test_unit_rms_divides_by_the_published_gain(gate, gain):
    z = torch.linspace(0.1, 2, 20, dtype=torch.float64)
    ratio = Surrogate(gate)(z) / Surrogate(gate, gain="unit_rms")(z)
    torch.testing.assert_close(ratio, torch.full_like(z, gain), rtol=0, atol=6e-4)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gate", [gates.Sigmoid(t) for t in (0.01, 0.15, 0.3, 0.5, 5.0)] + [gates.NormalCDF(1.1)])
def test_unit_rms_passes_on_the_gradient_energy_of_the_hard_gate(gate, mix):
    rule = Surrogate(gate, gain="unit_rms", mix=mix)
    assert reference.rms_gain(rule) == pytest.approx(1.0, abs=1e-5)
    raw = replace(rule, gain="raw")
    z = torch.tensor([0.7], dtype=torch.float64)
    assert float(raw(z) / rule(z)) == pytest.approx(reference.rms_gain(raw), abs=1e-5)


@given(rules)
def test_the_fast_way_through_a_gate_is_the_factor_times_the_gradient(rule):
    z = torch.linspace(-3, 3, 122, dtype=torch.float64)  # without zero, where a mixed gradient is PyTorch's own
    upstream = torch.linspace(-1, 2, 122, dtype=torch.float64).flip(0)
    torch.testing.assert_close(rule.pull(upstream, z), rule(z) * upstream, rtol=1e-9, atol=1e-12)


@given(rules)
def test_a_rule_says_whether_it_differs_from_the_true_gradient(rule):
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)
    if not rule.softens_relu:
        assert torch.equal(replace(rule, gain="raw")(z), reference.hard(z))
    assert rule.softens_relu == (rule.mix > 0 and rule.gate != gates.Hard())
    assert rule.softens_pool == (rule.mix > 0 and rule.pool != pools.Hard())


@pytest.mark.parametrize("rule", [Surrogate(), Surrogate(mix=0.5), Surrogate(gain="unit_rms", mix=0.5)], ids=repr)
def test_a_rule_leaves_its_argument_alone(rule):
    z = torch.linspace(-2, 2, 41)
    before = z.clone()
    rule(z)
    assert torch.equal(z, before)
