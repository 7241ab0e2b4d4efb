"""`functional.relu`: the true forward pass, and the gradient that the gate gives."""

import math

import pytest
import torch
from torch.autograd import grad
from torch.nn import functional as F

import reference
from functional_inputs import bits, draw
from softgate import Surrogate
from softgate.surrogate import functional, gates

SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1.5, -1.5, 3e38, -3e38]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_forward_is_bit_equal_also_for_nan_infinities_and_signed_zeros(dtype, inplace):
    z = torch.tensor(SPECIAL, dtype=dtype)
    found = functional.relu(z.clone(), gates.Sigmoid(), inplace=inplace)
    assert torch.equal(bits(found), bits(F.relu(z)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4, 5)])
def test_relu_keeps_shape_strides_and_dtype(shape):
    z = draw(*shape)
    if z.dim() == 4:
        z = z.to(memory_format=torch.channels_last)
    found = functional.relu(z, gates.Sigmoid())
    assert found.stride() == F.relu(z).stride()
    assert torch.equal(found, F.relu(z))


@pytest.mark.parametrize(
    ("gate", "formula"),
    [
        (gates.Sigmoid(0.2), lambda z: reference.sigmoid(z, 0.2)),
        (gates.NormalCDF(0.7), lambda z: reference.normal_cdf(z, 0.7)),
        (gates.Hard(), reference.hard),
        (Surrogate(mix=0.25), lambda z: 0.25 * reference.sigmoid(z) + 0.75 * reference.hard(z)),
        (lambda z: z.cos(), torch.cos),
    ],
)
def test_relu_gradient_is_forward_gradient_injection(gate, formula):
    z, upstream = draw(4, 5).requires_grad_(), draw(4, 5, seed=1)
    (found,) = grad(functional.relu(z, gate), z, upstream)
    (expected,) = grad(reference.relu(z, formula), z, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("gate", [gates.Sigmoid(), gates.NormalCDF(), Surrogate(mix=0.5, gain="raw")])
def test_relu_gradient_at_infinite_and_huge_pre_activations_is_the_hard_one(gate):
    z = torch.tensor([math.inf, -math.inf, 1e300, -1e300], dtype=torch.float64, requires_grad=True)
    (found,) = grad(functional.relu(z, gate), z, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert found.tolist() == [1, 0, 3, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relu_gate_arithmetic_is_float32_for_half_precision(dtype):
    z, upstream = draw(1000, dtype=dtype).requires_grad_(), draw(1000, seed=1, dtype=dtype)
    (found,) = grad(functional.relu(z, gates.Sigmoid()), z, upstream)
    expected = (upstream.float() * gates.Sigmoid()(z.detach().float())).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert not torch.equal(found, upstream * gates.Sigmoid()(z.detach()))  # what half arithmetic would give


def test_inplace_relu_overwrites_its_argument_and_gates_by_the_old_value():
    z = draw(6, 7).requires_grad_()
    before = z * 1
    out = functional.relu(before, gates.Sigmoid(), inplace=True)
    assert out.data_ptr() == before.data_ptr()
    assert torch.equal(before, F.relu(z))
    (found,) = grad(before.sum() + out.sum(), z)
    torch.testing.assert_close(found, 2 * reference.sigmoid(z.detach()))


def test_inplace_relu_on_a_view_writes_and_differentiates_through_to_its_base():
    z = draw(4, 6).requires_grad_()
    base = z * 1
    functional.relu(base[:, :3], gates.Sigmoid(), inplace=True)
    assert torch.equal(base[:, :3], F.relu(z[:, :3]))
    assert torch.equal(base[:, 3:], z[:, 3:])
    (found,) = grad(base.sum(), z)
    expected = torch.cat([reference.sigmoid(z.detach()[:, :3]), torch.ones(4, 3, dtype=z.dtype)], 1)
    torch.testing.assert_close(found, expected)


def test_relu_gate_is_a_constant_when_differentiated_twice():
    z, weight = draw(6).requires_grad_(), draw(6, 6, seed=1).requires_grad_()
    out = weight @ functional.relu(z, gates.Sigmoid())
    gate = reference.sigmoid(z.detach())
    (first,) = grad(out.square().sum(), z, create_graph=True)
    direction = draw(6, seed=2)
    to_z, to_weight = grad(first @ direction, (z, weight))
    # by hand: y = relu(z); dL/dz = gate * 2 W'W y; the derivative of y is the gate again, that of the gate is none
    inner = 2 * weight.T @ weight
    expected_z = gate * (inner @ (gate * direction))
    w = weight.detach().clone().requires_grad_()
    (expected_weight,) = grad((gate * (2 * w.T @ (w @ F.relu(z.detach())))) @ direction, w)
    torch.testing.assert_close(to_z, expected_z.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(to_weight, expected_weight, rtol=1e-12, atol=1e-13)


def test_relu_of_a_linear_loss_has_no_second_derivative():
    z = draw(6).requires_grad_()
    (first,) = grad(functional.relu(z, gates.Sigmoid()).sum(), z, create_graph=True)
    assert not first.requires_grad or grad(first.sum(), z, allow_unused=True)[0] is None
