import copy
import importlib
import math
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch

import reference
from softgate import SoftgateError, Surrogate
from softgate.surrogate import functional, gates, pools
from softgate.surrogate.schedule import Ramp, Schedule

SOFT = [
    (gates.Sigmoid, reference.sigmoid),
    (gates.NormalCDF, reference.normal_cdf),
    (gates.Softsign, reference.softsign),
    (gates.BSiLU, reference.bsilu),
    (gates.NeLU, reference.nelu),
    (gates.AbsNeLU, reference.abs_nelu),
    (gates.Leaky, reference.leaky),
]
EVERY = [
    *(gates.Hard(), gates.Sigmoid(0.17), gates.NormalCDF(0.9), gates.Softsign(0.4), gates.BSiLU(1.2)),
    *(gates.NeLU(0.1), gates.AbsNeLU(0.01), gates.Leaky(0.2)),
]
TEMPERED = [gates.Sigmoid, gates.NormalCDF, gates.Softsign, pools.LSE]
SHAPED = [(gates.BSiLU, "alpha"), (gates.NeLU, "alpha"), (gates.AbsNeLU, "alpha"), (gates.Leaky, "slope")]


def pre_activations(dtype=torch.float64):
    return torch.cat([torch.linspace(-4, 4, 801), torch.tensor([0.0, -0.0, 1e-12, -1e-12, 300, -300])]).to(dtype)


def test_hard_gate_is_one_above_zero_and_zero_at_and_below_it():
    z = torch.tensor([-math.inf, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, math.inf])
    assert gates.Hard()(z).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("kind", "formula"), SOFT)
@pytest.mark.parametrize("setting", [0.05, 0.15, 0.3, 0.6, 2.5])
def test_soft_gates_match_their_formulas(kind, formula, setting):
    z = pre_activations()
    torch.testing.assert_close(kind(setting)(z), formula(z, setting), rtol=1e-12, atol=1e-15)


def test_default_temperatures_are_the_papers():
    assert gates.Sigmoid().temperature == 0.3
    assert gates.NormalCDF().temperature == 0.6
    assert pools.LSE().temperature == 0.3


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (gates.Sigmoid(), [0.0344451956662, 0.5, 0.8411308951191]),  # 1/(1+exp(10/3)), 1/2, 1/(1+exp(-5/3))
        (gates.NormalCDF(), [0.0477903522728, 0.5, 0.7976716190364]),  # Phi(-5/3), 1/2, Phi(5/6)
        (gates.Softsign(), [0.1153846153846, 0.5, 0.8125]),  # (1 - 1/1.3)/2, 1/2, (1 + .5/.8)/2
        (gates.BSiLU(), [0.4006714166418, 0.9175, 1.1324173866793]),  # s(0) + 1.67/4 at zero
        (gates.NeLU(), [-0.025, 0.0, 1.0]),  # -2 * .05 / 4; a public copy differs for z > 0, another divides by z^2
        (gates.AbsNeLU(), [0.025, 0.0, 1.0]),
        (gates.Leaky(), [0.3, 0.3, 1.0]),
        (gates.Hard(), [0.0, 0.0, 1.0]),
    ],
)
def test_gates_keep_their_golden_values_at_minus_one_zero_and_one_half(gate, expected):
    z = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(gate(z), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("gate", "gain"),
    [(gates.Softsign(), 0.849), (gates.BSiLU(), 1.304), (gates.NeLU(), 1.0), (gates.Leaky(), 1.044)],
)
def test_gains_are_the_ones_in_the_literature_of_the_rule(gate, gain):
    assert reference.rms_gain(gate) == pytest.approx(gain, abs=1e-3)


@pytest.mark.parametrize("gate", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gate_is_nan_for_infinite_or_huge_pre_activations(gate, dtype):
    huge = torch.finfo(dtype).max
    z = torch.tensor([-math.inf, -huge, -1e15, -0.0, 0.0, 1e15, huge, math.inf], dtype=dtype)
    value = gate(z)
    assert value.isfinite().all()
    torch.testing.assert_close(value[-2:], torch.ones(2, dtype=dtype))


@pytest.mark.parametrize(("kind", "option"), SHAPED)
@pytest.mark.parametrize("wrong", [math.inf, math.nan, "0.3", None, True])
def test_a_shape_setting_that_is_no_finite_number_is_refused_with_option_and_value(kind, option, wrong):
    with pytest.raises(SoftgateError, match=rf"gate\.{option}={wrong}"):
        kind(wrong)


def test_normal_cdf_at_051_is_close_to_sigmoid_at_03():
    z = pre_activations()
    assert (gates.NormalCDF(0.51)(z) - gates.Sigmoid(0.3)(z)).abs().max() < 0.01


@pytest.mark.parametrize("kind", [gates.Sigmoid, gates.NormalCDF])
def test_soft_gates_rise_from_zero_to_one_and_mirror_at_one_half(kind):
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    value = kind(0.4)(z)
    assert (value.diff() >= 0).all()
    assert value[0] < 1e-4
    assert value[-1] > 1 - 1e-4
    torch.testing.assert_close(value + kind(0.4)(-z), torch.ones_like(z))


@pytest.mark.parametrize("kind", [gates.Sigmoid, gates.NormalCDF])
def test_soft_gates_become_the_hard_gate_as_the_temperature_goes_to_zero(kind):
    z = torch.tensor([-math.inf, -5.0, -1e-3, 1e-3, 5.0, math.inf])
    for temperature in (1e-5, 1e-12, 1e-30):
        assert torch.equal(kind(temperature)(z), gates.Hard()(z))


@pytest.mark.parametrize("kind", [gates.Sigmoid, gates.NormalCDF])
@pytest.mark.parametrize("temperature", [1e-300, 1e-50, 1e-30, 1e-6, 1e6, 1e30, 1e50, 1e300])
def test_every_temperature_that_is_accepted_gives_gates_in_the_unit_interval(kind, temperature):
    try:
        gate = kind(temperature)
    except SoftgateError:
        assert not 1e-10 < temperature < 1e10
        return
    value = gate(torch.tensor([-1.0, 0.0, 1.0]))
    assert ((value >= 0) & (value <= 1)).all(), value


@pytest.mark.parametrize("gate", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_return_a_new_tensor_of_the_same_shape_and_dtype(gate, dtype):
    z = pre_activations(dtype).reshape(3, -1)
    before = z.clone()
    value = gate(z)
    assert value.shape == z.shape
    assert value.dtype == dtype
    assert value.data_ptr() != z.data_ptr()
    assert torch.equal(z, before)


@pytest.mark.parametrize("gate", EVERY, ids=repr)
def test_gates_take_empty_and_scalar_tensors(gate):
    assert gate(torch.zeros(0, 3)).shape == (0, 3)
    assert gate(torch.tensor(1.0)).shape == ()


@pytest.mark.parametrize("kind", TEMPERED)
@pytest.mark.parametrize("wrong", [0, 0.0, -0.3, math.inf, -math.inf, math.nan, "0.3", None, True, [0.3]])
def test_a_temperature_that_is_no_positive_number_is_refused_with_option_and_value(kind, wrong):
    option = "pool" if kind is pools.LSE else "gate"
    with pytest.raises(SoftgateError, match="> 0") as error:
        kind(temperature=wrong)
    assert f"{option}.temperature={wrong}" in str(error.value)


@pytest.mark.parametrize("part", [*EVERY, pools.Hard(), pools.LSE(0.2)], ids=repr)
def test_gates_and_pools_are_plain_values(part):
    for same in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert same == part
        assert hash(same) == hash(part)
        assert repr(same) == repr(part)


def test_gates_of_different_settings_or_kinds_differ():
    assert gates.Sigmoid(0.3) != gates.Sigmoid(0.4)
    assert gates.Sigmoid(0.6) != gates.NormalCDF(0.6)
    assert len({gates.Sigmoid(), gates.Sigmoid(0.3), gates.NormalCDF(), gates.Hard(), pools.Hard(), pools.LSE()}) == 5


@pytest.mark.parametrize("kind", TEMPERED)
def test_settings_cannot_be_changed_after_the_fact(kind):
    with pytest.raises(FrozenInstanceError):
        kind().temperature = 1.0


def test_a_gate_of_ones_own_is_known_by_its_name_and_survives_plain_data_and_pickle(tmp_path, monkeypatch):
    source = """
from dataclasses import dataclass
import softgate as sg
@dataclass(frozen=True)
class Ramp(sg.gates.Gate, name="test_ramp"):
    width: float = 1.0
    def __call__(self, z): return (z / self.width + 0.5).clamp(0, 1)
"""
    (tmp_path / "my_test_gates.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    ramp = importlib.import_module("my_test_gates").Ramp
    rule = Surrogate(gate=ramp(2.0))
    assert Surrogate.from_dict(rule.to_dict()) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    z = torch.tensor([-2.0, 0.5], requires_grad=True)
    (found,) = torch.autograd.grad(functional.relu(z, rule).sum(), z)
    assert found.tolist() == [0.0, 0.75]
    del gates.KNOWN["test_ramp"]


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(SoftgateError, match=r"gate name=sigmoid: softgate\.surrogate\.gates\.Sigmoid has that name"):

        class Other(gates.Gate, name="sigmoid"):
            def __call__(self, z):
                return z

    assert gates.KNOWN["sigmoid"] is gates.Sigmoid


def test_known_gates_and_pools_go_by_their_config_names():
    named = {
        "hard": gates.Hard,
        "sigmoid": gates.Sigmoid,
        "normal_cdf": gates.NormalCDF,
        "softsign": gates.Softsign,
        "bsilu": gates.BSiLU,
        "nelu": gates.NeLU,
        "abs_nelu": gates.AbsNeLU,
        "leaky": gates.Leaky,
        "random": gates.Random,
        "shuffled": gates.Shuffled,
    }
    assert named == gates.KNOWN
    assert pools.KNOWN["hard"] is pools.Hard
    assert pools.KNOWN["lse"] is pools.LSE


# -- controls: gates that do not depend on the input ----------------------------------------------------


def test_random_gates_do_not_depend_on_the_input_and_are_distributed_as_excitation_gates():
    gate = gates.Random(0.3, seed=1)
    z = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    values = gate(z)
    assert torch.equal(values, gate(-3 * z))
    assert torch.equal(values[0], values[3])
    expected = gates.Sigmoid(0.3)(torch.special.ndtri((torch.arange(2048.0) + 0.5) / 2048))
    assert (values[0].flatten().sort().values - expected).abs().max() < 0.06
    assert abs(float(torch.corrcoef(torch.stack([values[0].flatten(), z[0].flatten()]))[0, 1])) < 0.08


def test_random_gates_differ_from_site_to_site_and_seed_to_seed_and_leave_the_random_state_alone():
    z, before = torch.zeros(1, 4096), torch.random.get_rng_state()
    gate = gates.Random(0.3)
    found = [
        one(z)[0] for one in (gate.at_site("layer1"), gate.at_site("layer2"), gates.Random(0.3, 1).at_site("layer1"))
    ]
    assert torch.equal(found[0], gates.Random(0.3).at_site("layer1")(z)[0])
    apart = torch.corrcoef(torch.stack(found)) - torch.eye(3)
    assert apart.abs().max() < 0.06
    assert torch.equal(torch.random.get_rng_state(), before)
    # Neighbours are unrelated too: a counter shows through a poor hash.
    assert abs(float(torch.corrcoef(torch.stack([found[0][1:], found[0][:-1]]))[0, 1])) < 0.06
    assert gates.Sigmoid().at_site("layer1") == gates.Sigmoid()


def test_shuffled_gates_are_those_of_another_example():
    z = torch.randn(3, 5, 2, 2)
    torch.testing.assert_close(gates.Shuffled(0.3)(z), gates.Sigmoid(0.3)(z)[[2, 0, 1]])
    with pytest.raises(SoftgateError, match=r"gate\.name=shuffled.*batches of 2"):
        gates.Shuffled()(z[:1])
    with pytest.raises(SoftgateError, match=r"gate\.name=shuffled"):
        torch.func.vmap(gates.Shuffled())(z)


@pytest.mark.parametrize("mix", [1.0, 0.4])
@pytest.mark.parametrize("kind", [gates.Random, gates.Shuffled])
def test_the_gain_of_a_gate_that_is_independent_of_the_input_is_its_mean_energy(kind, mix):
    rule = Surrogate(gate=kind(0.3), gain="unit_rms", mix=mix)
    z = torch.randn(10, 100_000, generator=torch.Generator().manual_seed(0))
    assert float(rule(z).square().mean()) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_a_seed_of_random_gates_out_of_range_is_refused(seed):
    with pytest.raises(SoftgateError, match=r"gate\.seed="):
        gates.Random(seed=seed)


@pytest.mark.parametrize("gate", [gates.Random(0.2, 3), gates.Shuffled(0.4)])
def test_controls_are_plain_data(gate):
    rule = Surrogate(gate=gate)
    assert Surrogate.from_dict(rule.to_dict()) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_random_gates_follow_the_temperatures_schedule():
    import softgate

    schedule = Schedule(temperature=Ramp(start=1, end=3, until=4))
    net, rule = torch.nn.Sequential(torch.nn.ReLU()), Surrogate(gates.Random(0.3), pools.Hard(), schedule=schedule)
    x = torch.randn(2, 64, requires_grad=True)
    with softgate.attach(net, rule) as sites:
        for epoch, temperature in ((0, 0.3), (2, 0.6), (3, 0.75), (9, 0.9)):
            sites.advance(epoch, 0)
            (found,) = torch.autograd.grad(net(x).sum(), x)
            assert torch.allclose(found, gates.Random(temperature).at_site("0")(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_every_call_site_of_a_network_has_random_gates_of_its_own(compiled):
    import softgate

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.ReLU(), torch.nn.ReLU()

        def forward(self, x):
            return self.second(self.first(x) + 1)

    net, rule = Net(), Surrogate(gate=gates.Random(0.3), pool=pools.Hard())
    x = torch.randn(2, 64, requires_grad=True)
    with softgate.attach(net, rule):
        run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        (found,) = torch.autograd.grad(run(x).sum(), x)
    expected = rule.gate.at_site("first")(x) * rule.gate.at_site("second")(x)
    assert torch.allclose(found, expected)
