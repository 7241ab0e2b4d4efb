"""The gates of smooth activations, and their backward pass, against the formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import reference_blocks
import softgate as sg
from softgate.sites.smooth_calls import SMOOTH_SORTERS
from softgate.surrogate import smooth
from softgate.surrogate.functional import gated, injected, prelu, smooth_factor
from softgate.surrogate.parts import smooth_rms_gain

CALLS = {
    "silu": (F.silu, {}),
    "gelu": (F.gelu, {}),
    "gelu_tanh": (F.gelu, {"approximate": "tanh"}),
    "hardswish": (F.hardswish, {}),
    "mish": (F.mish, {}),
    "elu": (F.elu, {}),
    "selu": (F.selu, {}),
    "celu": (F.celu, {"alpha": 0.7}),
    "softplus": (F.softplus, {}),
}


def call_of(name, z):
    func, settings = CALLS[name]
    return SMOOTH_SORTERS[func](func, (z,), settings)


def rule_at(temperature, **options):
    held = sg.activations.SelfGate(temperature, temperature, temperature)
    return sg.Surrogate(activation=held, **options)


def values(count=41):
    return torch.linspace(-7, 7.3, count, dtype=torch.float64)  # zero is not among them


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 1.6])
def test_the_gradient_is_that_of_the_formula(name, temperature):
    z = values().requires_grad_()
    upstream = torch.linspace(-1, 2, len(z), dtype=torch.float64)
    call = call_of(name, z)
    out = gated(z, call.activation, call.shape, rule_at(temperature))
    func, settings = CALLS[name]
    assert torch.equal(out, func(z, **settings))
    found = torch.autograd.grad(out, z, upstream)[0]
    expected = reference_blocks.smooth(func.__name__, z, temperature, **settings)
    expected = torch.autograd.grad(expected, z, upstream)[0]
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CALLS)
def test_at_temperature_one_the_activation_is_its_gate_times_its_input(name):
    z = values()
    call = call_of(name, z)
    off = (call.shape.gate(z, 1.0) * z - call.original()).abs().max()
    assert off < 1e-14 or call.shape.adds_constant
    assert call.shape.adds_constant == (name == "softplus")


@pytest.mark.parametrize("name", CALLS)
def test_the_true_gradient_is_pytorchs_own(name):
    z = torch.cat([values(), torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    call = call_of(name, z)
    true = torch.autograd.grad(call.original().sum(), z)[0]
    near = 1e-6 if name == "celu" else 1e-14  # PyTorch's own of celu takes 1 / alpha in float32
    assert torch.allclose(call.shape.derivative(torch.ones_like(z), z), true, rtol=near, atol=0)
    kept = torch.autograd.grad(gated(z, call.activation, call.shape, rule_at(0.5, mix=0.0)).sum(), z)[0]
    assert torch.allclose(kept, true, rtol=near, atol=0)


@given(mix=st.floats(0, 1), temperature=st.floats(0.1, 3), name=st.sampled_from(sorted(CALLS)))
def test_a_mix_is_a_mix_of_both_gradients(mix, temperature, name):
    z = values().requires_grad_()
    call = call_of(name, z)
    soft, true, mixed = (
        torch.autograd.grad(gated(z, call.activation, call.shape, rule_at(temperature, mix=share)).sum(), z)[0]
        for share in (1.0, 0.0, mix)
    )
    assert torch.allclose(mixed, mix * soft + (1 - mix) * true, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CALLS)
def test_unit_rms_keeps_the_energy_of_the_true_gradient(name):
    places = torch.special.ndtri((torch.arange(200_001, dtype=torch.float64) + 0.5) / 200_001)
    z = places.requires_grad_()
    call = call_of(name, z)
    true, soft = (
        torch.autograd.grad(gated(z, call.activation, call.shape, rule).sum(), z)[0].square().mean()
        for rule in (rule_at(0.5, mix=0.0), rule_at(0.5, gain="unit_rms"))
    )
    assert float(soft / true) == pytest.approx(1, abs=2e-4)
    assert smooth_rms_gain(call.shape, 0.5, 0.0) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_matched_gives_each_example_the_norm_of_its_true_gradient(name):
    z = (values(40) / 3).view(4, 10).requires_grad_()
    upstream = torch.randn(4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    call = call_of(name, z)
    true, found = (
        torch.autograd.grad(gated(z, call.activation, call.shape, rule), z, upstream)[0]
        for rule in (rule_at(0.5, mix=0.0), rule_at(0.5, gain="matched"))
    )
    assert torch.allclose(found.norm(dim=1), true.norm(dim=1), rtol=1e-12)
    assert not torch.allclose(found, true)


@pytest.mark.parametrize("name", CALLS)
def test_extreme_inputs_have_finite_gates(name):
    z = torch.tensor([-1e30, -88.0, 0.0, 88.0, 1e30])
    call = call_of(name, z)
    gate = call.shape.gate(z, 1.0)
    assert gate.isfinite().all()
    assert gate[-1] > 0.99
    assert gate[0].abs() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_the_gate_in_float32(dtype):
    z = torch.linspace(-4, 4, 64).to(dtype).requires_grad_()
    for name in CALLS:
        call = call_of(name, z)
        found = torch.autograd.grad(gated(z, call.activation, call.shape, rule_at(0.6)).sum(), z)[0]
        expected = call.shape.gate(z.detach().float(), 0.6).to(dtype)
        assert found.dtype == dtype
        assert torch.equal(found, expected), name


def test_differentiated_twice_the_gate_is_a_constant():
    z = values().requires_grad_()
    for name in CALLS:
        call = call_of(name, z)
        out = gated(z, call.activation, call.shape, rule_at(0.7))
        first = torch.autograd.grad(out.square().sum() / 2, z, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), z)[0]
        gate = smooth_factor(rule_at(0.7), call.shape, z.detach())
        assert torch.allclose(second, gate * gate, rtol=1e-10, atol=1e-14), name


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_softens_its_step_and_keeps_the_gradient_of_its_slopes(slopes):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    slope = torch.rand(slopes, generator=generator, dtype=torch.float64, requires_grad=True)
    out = prelu(z, slope, sg.Surrogate())
    assert torch.equal(out, F.prelu(z, slope))
    upstream = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(out, (z, slope), upstream)
    a = slope.view(1, -1, 1).detach()
    gate = 1 / (1 + torch.exp(-z.detach() / 0.3))
    assert torch.allclose(found[0], upstream * (a + (1 - a) * gate), rtol=1e-12)
    # d m / d a = z - relu(z): the true gradient of the slopes
    true = torch.autograd.grad(F.prelu(z, slope), slope, upstream)[0]
    assert torch.allclose(found[1], true, rtol=1e-12)


def test_an_injected_value_may_be_infinite():
    m = torch.tensor([1.0, 2.0], requires_grad=True)
    out = injected(torch.tensor([float("inf"), 3.0]), m * 2)
    assert out.tolist() == [float("inf"), 3.0]
    assert torch.autograd.grad(out[1], m)[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.0), ("silu", -1.0), ("gelu", float("nan")), ("silu", "warm")]
)
def test_a_temperature_that_is_not_above_zero_is_refused_by_name(option, value):
    with pytest.raises(sg.SoftgateError, match=f"activation.{option}={value}"):
        sg.activations.SelfGate(**{option: value})


def test_every_shape_is_hashable_and_says_its_kind():
    for name in CALLS:
        shape = call_of(name, values()).shape
        assert isinstance(shape, smooth.Smooth)
        assert hash(shape) == hash(call_of(name, values()).shape)
        assert str(shape.kind) == name.removesuffix("_tanh")
