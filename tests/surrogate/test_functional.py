import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import grad
from torch.nn import functional as F

import reference
from softgate import SoftgateError, Surrogate
from softgate.surrogate import functional, gates, pools, soft_pooling

SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1.5, -1.5, 3e38, -3e38]
LSE = pools.LSE()


def bits(x):
    """The bit pattern, so that NaN equals NaN and -0.0 differs from 0.0."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# -- relu ---------------------------------------------------------------------------------------------


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


# -- max pooling --------------------------------------------------------------------------------------


@st.composite
def geometries(draw):
    """A legal max pooling: shape of the input, and the five settings, each an int or two."""

    def size(low, high):
        pair = draw(st.integers(low, high)), draw(st.integers(low, high))
        return draw(st.sampled_from([pair, list(pair), pair[0]]))

    kernel, dilation = size(1, 4), size(1, 3)
    stride = draw(st.one_of(st.none(), st.just(size(1, 4))))
    pads = [draw(st.integers(0, k // 2)) for k in reference.pair(kernel)]
    padding = draw(st.sampled_from([tuple(pads), min(pads)]))
    shape = []
    for k, d, p in zip(*map(reference.pair, (kernel, dilation, padding)), strict=True):
        least = max(1, d * (k - 1) + 1 - 2 * p)
        shape.append(draw(st.integers(least, least + 7)))
    lead = draw(st.sampled_from([(1,), (3,), (1, 1), (2, 3)]))
    sizes = kernel, stride, padding, dilation, draw(st.booleans())
    # PyTorch gives a window that touches no input an index out of bounds, and its own backward writes there
    assume(reference.windows(torch.zeros(shape), *sizes).isfinite().any(-1).any(-1).all())
    return (*lead, *shape), sizes


def pooled_input(shape, seed, ties=False, channels_last=False):
    x = draw(*shape, seed=seed)
    x = x.round() if ties else x
    return x.to(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x


@settings(max_examples=300)
@given(geometries(), st.integers(0, 99), st.booleans(), st.booleans(), st.sampled_from([torch.float64, torch.float32]))
def test_pool_forward_is_bit_equal_for_every_geometry(geometry, seed, ties, channels_last, dtype):
    shape, sizes = geometry
    x = pooled_input(shape, seed, ties, channels_last).to(dtype)
    expected = F.max_pool2d(x, *sizes)
    found = functional.max_pool2d(x, *sizes, pool=LSE)
    assert torch.equal(bits(found), bits(expected))
    assert found.stride() == expected.stride()


@settings(max_examples=300)
@given(geometries(), st.integers(0, 99), st.floats(0.05, 3), st.booleans(), st.booleans())
def test_pool_gradient_is_that_of_logsumexp_for_every_geometry(geometry, seed, temperature, ties, channels_last):
    shape, sizes = geometry
    x = pooled_input(shape, seed, ties, channels_last).requires_grad_()
    out = functional.max_pool2d(x, *sizes, pool=pools.LSE(temperature))
    upstream = draw(*out.shape, seed=seed + 1)
    (found,) = grad(out, x, upstream)
    expected_out = reference.max_pool2d(x, *sizes, temperature=temperature)
    assert torch.equal(expected_out, out)
    (expected,) = grad(expected_out, x, upstream)
    assert float((found - expected).abs().max()) <= 1e-12


@settings(max_examples=300)
@given(geometries(), st.integers(0, 99), st.floats(0.05, 3), st.booleans())
def test_the_full_softmax_gradient_is_listing_2s_for_every_geometry(geometry, seed, temperature, ties):
    shape, sizes = geometry
    x = pooled_input(shape, seed, ties).requires_grad_()
    out = functional.max_pool2d(x, *sizes, pool=pools.SoftmaxFull(temperature))
    assert torch.equal(out, F.max_pool2d(x, *sizes))
    upstream = draw(*out.shape, seed=seed + 1)
    (found,) = grad(out, x, upstream)
    (expected,) = grad(reference.softmax_pool2d(x, *sizes, temperature=temperature), x, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert float(found.sum()) == pytest.approx(float(upstream.sum()), rel=1e-9, abs=1e-9)


def test_the_full_softmax_gradient_is_negative_for_most_of_a_window_after_a_relu_and_the_lse_one_is_not():
    x = draw(1, 4, 32, 32).relu().requires_grad_()
    full, lse = (
        grad(functional.max_pool2d(x, 3, 2, 1, pool=pool).sum(), x)[0] for pool in (pools.SoftmaxFull(), pools.LSE())
    )
    assert float((full < 0).double().mean()) > 0.4
    assert not (lse < 0).any()


def test_the_full_softmax_gradient_of_the_second_order_holds_its_weights_constant():
    x, v = draw(1, 2, 7, 7).requires_grad_(), draw(1, 2, 7, 7, seed=5)
    out = functional.max_pool2d(x, 3, 2, 1, 1, True, pool=pools.SoftmaxFull())
    upstream = torch.ones_like(out, requires_grad=True)
    (first,) = grad(out, x, upstream, create_graph=True)
    (second,) = grad((first * v).sum(), upstream)
    columns = []
    for basis in torch.eye(out.numel(), dtype=torch.float64).view(-1, *out.shape):
        columns.append(
            (grad(functional.max_pool2d(x, 3, 2, 1, 1, True, pool=pools.SoftmaxFull()), x, basis)[0] * v).sum()
        )
    torch.testing.assert_close(second.flatten(), torch.stack(columns))


@pytest.mark.parametrize("pool", [pools.LSE(1e-3), pools.LSE(), pools.SoftmaxFull(1e-3), pools.SoftmaxFull()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_pool_gradient_is_nan_for_infinite_or_huge_inputs(pool, dtype):
    huge = torch.finfo(dtype).max
    values = torch.tensor([-math.inf, -huge, -1.0, 0.0, 1.0, huge, math.inf], dtype=dtype)
    x = values[torch.randint(0, 7, (1, 8, 9, 9), generator=torch.Generator().manual_seed(0))].requires_grad_()
    (found,) = grad(functional.max_pool2d(x, 3, 2, 1, ceil_mode=True, pool=pool).sum(), x)
    assert found.isfinite().all()


@settings(max_examples=150)
@given(geometries(), st.integers(0, 99), st.floats(0.05, 3), st.sampled_from([pools.LSE, pools.SoftmaxFull]))
def test_the_fast_pool_backward_and_the_sliced_one_are_the_same(geometry, seed, temperature, kind):
    shape, sizes = geometry
    x = pooled_input(shape, seed).requires_grad_()
    upstream = draw(*F.max_pool2d(x, *sizes).shape, seed=seed + 1)
    (fast,) = grad(functional.max_pool2d(x, *sizes, pool=kind(temperature)), x, upstream)
    with mock.patch.object(soft_pooling.SoftPooling, "_shared_excitation", return_value=None):
        (sliced,) = grad(functional.max_pool2d(x, *sizes, pool=kind(temperature)), x, upstream)
    torch.testing.assert_close(fast, sliced, rtol=1e-11, atol=1e-11)


def test_a_window_far_below_the_rest_of_its_plane_keeps_its_weights():
    x = torch.tensor([[[1e4, 0.0, 0.1, -0.2], [0.0, 0.0, 0.0, 0.3]]]).requires_grad_()
    (found,) = grad(functional.max_pool2d(x, 2, pool=LSE).sum(), x)
    right = torch.tensor([[0.1, -0.2], [0.0, 0.3]])
    torch.testing.assert_close(found[0, :, 2:], (right / 0.3).flatten().softmax(0).view(2, 2))
    assert found[0, :, :2].tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_pool_gradient_has_the_memory_order_of_its_input(channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = draw(2, 4, 9, 9).to(memory_format=order).requires_grad_()
    (found,) = grad(functional.max_pool2d(x, 3, 2, 1, pool=LSE).sum(), x)
    assert found.is_contiguous(memory_format=order)


@settings(max_examples=300)
@given(geometries(), st.integers(0, 99), st.floats(1e-3, 1e3), st.floats(0, 1), st.booleans())
def test_pool_neither_loses_nor_makes_gradient(geometry, seed, temperature, mix, ties):
    shape, sizes = geometry
    x = pooled_input(shape, seed, ties).requires_grad_()
    out = functional.max_pool2d(x, *sizes, pool=pools.LSE(temperature), mix=mix)
    upstream = draw(*out.shape, seed=seed + 1).abs()
    (found,) = grad(out, x, upstream)
    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(float(upstream.sum()), rel=1e-12)


def test_a_window_that_touches_no_input_has_no_gradient():
    x = draw(1, 1, 1, 3).requires_grad_()
    sizes = (2, 1), (1, 1), (1, 0), (2, 1)
    out = functional.max_pool2d(x, *sizes, pool=LSE)
    assert torch.equal(out, F.max_pool2d(x, *sizes))
    assert out.isneginf().all()
    assert torch.equal(grad(out, x, torch.ones_like(out))[0], torch.zeros_like(x))


def test_pool_padding_takes_no_gradient():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    out = functional.max_pool2d(x, 3, 2, 1, pool=LSE)
    (found,) = grad(out.sum(), x)
    assert float(found.sum()) == pytest.approx(16, rel=1e-14)


@settings(max_examples=200)
@given(geometries(), st.integers(0, 99), st.sampled_from([1e-6, 1e-12, 1e-30]))
def test_pool_gradient_becomes_the_hard_one_as_the_temperature_goes_to_zero(geometry, seed, temperature):
    shape, sizes = geometry
    count = math.prod(shape)
    x = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).double().reshape(shape).requires_grad_()
    out = functional.max_pool2d(x, *sizes, pool=pools.LSE(temperature))
    upstream = draw(*out.shape, seed=seed + 1)
    torch.testing.assert_close(
        grad(out, x, upstream), grad(F.max_pool2d(x, *sizes), x, upstream), rtol=1e-14, atol=1e-14
    )


@settings(max_examples=150)
@given(geometries(), st.integers(0, 99), st.floats(0, 1), st.booleans())
def test_pool_mix_interpolates_linearly_between_the_hard_and_the_soft_gradient(geometry, seed, mix, ties):
    shape, sizes = geometry
    x = pooled_input(shape, seed, ties).requires_grad_()
    out = functional.max_pool2d(x, *sizes, pool=LSE, mix=mix)
    assert torch.equal(out, F.max_pool2d(x, *sizes))
    upstream = draw(*out.shape, seed=seed + 1)
    (found,) = grad(out, x, upstream)
    (soft,) = grad(functional.max_pool2d(x, *sizes, pool=LSE), x, upstream)
    (hard,) = grad(F.max_pool2d(x, *sizes), x, upstream)
    torch.testing.assert_close(found, mix * soft + (1 - mix) * hard, rtol=1e-12, atol=1e-13)


@settings(max_examples=300)
@given(
    geometries(),
    st.data(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1.0, 0.5]),
)
def test_pool_gradient_of_infinite_and_huge_inputs_is_finite_and_sums_up(geometry, data, dtype, mix):
    shape, sizes = geometry
    top = torch.finfo(dtype).max
    values = st.sampled_from([math.inf, -math.inf, top, -top, top / 3, 0.0, -0.0, 1.0])
    count = math.prod(shape)
    assume(count <= 400)
    x = torch.tensor(data.draw(st.lists(values, min_size=count, max_size=count)), dtype=dtype)
    x = x.reshape(shape).requires_grad_()
    out = functional.max_pool2d(x, *sizes, pool=LSE, mix=mix)
    assert torch.equal(out, F.max_pool2d(x, *sizes))
    (found,) = grad(out, x, torch.ones_like(out))
    assert found.isfinite().all()
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    assert float(found.double().sum()) == pytest.approx(out.numel(), rel=rounding)


@pytest.mark.parametrize("temperature", [1e-300, 1e-50, 1e-30, 1e-6, 1e6, 1e30, 1e50, 1e300])
def test_pool_gradient_is_finite_for_every_temperature_that_is_accepted(temperature):
    x = draw(1, 2, 6, 6, dtype=torch.float32).requires_grad_()
    try:
        pool = pools.LSE(temperature)
    except SoftgateError:
        assert not 1e-10 < temperature < 1e10
        return
    out = functional.max_pool2d(x, 3, 2, 1, pool=pool)
    (found,) = grad(out.sum(), x)
    assert float(found.sum()) == pytest.approx(out.numel(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pool_arithmetic_is_float32_for_half_precision(dtype):
    x = draw(2, 3, 9, 9, dtype=dtype).requires_grad_()
    out = functional.max_pool2d(x, 3, 2, 1, pool=LSE)
    upstream = draw(*out.shape, seed=1, dtype=dtype)
    (found,) = grad(out, x, upstream)
    wide = x.detach().float().requires_grad_()
    (expected,) = grad(functional.max_pool2d(wide, 3, 2, 1, pool=LSE), wide, upstream.float())
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


@settings(max_examples=60)
@given(geometries(), st.integers(0, 99), st.sampled_from([1.0, 0.4]))
def test_pool_weights_are_constants_when_differentiated_twice(geometry, seed, mix):
    shape, sizes = geometry
    x = pooled_input(shape, seed).requires_grad_()
    assume(x.numel() <= 150)
    # the backward pass as an explicit matrix, one column for each output
    out = functional.max_pool2d(x, *sizes, pool=LSE, mix=mix)
    units = torch.eye(out.numel(), dtype=out.dtype).reshape(-1, *out.shape)
    matrix = torch.stack([grad(out, x, unit, retain_graph=True)[0].flatten() for unit in units], 1)
    upstream = draw(*out.shape, seed=seed + 1).requires_grad_()
    (first,) = grad(out, x, upstream, create_graph=True)
    torch.testing.assert_close(first.flatten(), matrix @ upstream.detach().flatten(), rtol=1e-12, atol=1e-13)
    direction = draw(*shape, seed=seed + 2)
    to_upstream, to_x = grad(first, (upstream, x), direction, create_graph=True, allow_unused=True)
    torch.testing.assert_close(to_upstream.flatten(), matrix.T @ direction.flatten(), rtol=1e-12, atol=1e-13)
    assert to_x is None or not to_x.any()
    # and once more: the transpose's transpose
    other = draw(*shape, seed=seed + 3).requires_grad_()
    (again,) = grad(first, upstream, other, create_graph=True)
    third = draw(*out.shape, seed=seed + 4)
    (back,) = grad(again, other, third)
    torch.testing.assert_close(back.flatten(), matrix @ third.flatten(), rtol=1e-12, atol=1e-13)


def test_second_order_of_a_quadratic_loss_runs_through_the_weights_twice():
    x = draw(1, 1, 5, 5).requires_grad_()
    out = functional.max_pool2d(x, 3, 2, 1, pool=LSE)
    units = torch.eye(out.numel(), dtype=out.dtype).reshape(-1, *out.shape)
    matrix = torch.stack([grad(out, x, unit, retain_graph=True)[0].flatten() for unit in units], 1)
    (first,) = grad(out.square().sum(), x, create_graph=True)
    direction = draw(*x.shape, seed=1)
    (second,) = grad(first, x, direction)
    torch.testing.assert_close(second.flatten(), 2 * matrix @ (matrix.T @ direction.flatten()))


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 0, 6, 6)])
@pytest.mark.parametrize("mix", [1.0, 0.5])
def test_pool_takes_what_torch_takes_when_nothing_is_in_it(shape, mix):
    x = torch.zeros(shape, requires_grad=True)
    try:
        expected = F.max_pool2d(x, 3, 2, 1)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            functional.max_pool2d(x, 3, 2, 1, pool=LSE, mix=mix)
        return
    out = functional.max_pool2d(x, 3, 2, 1, pool=LSE, mix=mix)
    assert out.shape == expected.shape
    assert grad(out.sum(), x)[0].shape == shape


def test_pool_gradient_of_a_strided_input_is_that_of_its_copy():
    wide = draw(2, 3, 9, 16)
    strided = wide[..., ::2].transpose(-1, -2).requires_grad_()
    plain = strided.detach().contiguous().requires_grad_()
    for mix in (1.0, 0.5):
        found, expected = (
            grad(functional.max_pool2d(x, 3, 2, 1, pool=LSE, mix=mix).sum(), x) for x in (strided, plain)
        )
        assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("stride", [None, [], (), 2, [2], (2,), (2, 1)])
@pytest.mark.parametrize("kernel", [3, [3], (3, 2)])
def test_pool_takes_sizes_in_every_form_that_torch_takes(kernel, stride):
    x = draw(1, 2, 7, 7).requires_grad_()
    expected = F.max_pool2d(x, kernel, stride)
    assert torch.equal(functional.max_pool2d(x, kernel, stride, pool=LSE), expected)


@pytest.mark.parametrize("pool", [LSE, pools.Hard()])
@pytest.mark.parametrize("sizes", [(3, 2, 2), (0,), (2, 0), (2, 1, 0, 0), (9,), (2, 2, -1)])
def test_pool_refuses_every_geometry_that_torch_refuses(pool, sizes):
    x = draw(1, 1, 5, 5)
    with pytest.raises((RuntimeError, ValueError)):
        F.max_pool2d(x, *sizes)
    with pytest.raises((RuntimeError, ValueError)):
        functional.max_pool2d(x, *sizes, pool=pool)


def test_hard_pool_and_no_mix_are_torchs_own_gradient_with_its_choice_among_ties():
    x = draw(2, 3, 8, 8).round().requires_grad_()
    (expected,) = grad(F.max_pool2d(x, 3, 2, 1).sum(), x)
    for settings_ in ({"pool": pools.Hard()}, {"pool": LSE, "mix": 0.0}, {"pool": LSE, "mix": 0}):
        (found,) = grad(functional.max_pool2d(x, 3, 2, 1, **settings_).sum(), x)
        assert torch.equal(found, expected)


def test_a_pool_without_a_backward_pass_is_refused_by_name():
    class Mine(pools.Pool):
        pass

    with pytest.raises(SoftgateError, match=r"LSE"):
        functional.max_pool2d(draw(1, 1, 4, 4), 2, pool=Mine())


def test_kernel_of_three_sizes_is_refused_with_option_and_value():
    with pytest.raises((SoftgateError, RuntimeError)) as error:
        functional.max_pool2d(draw(1, 1, 4, 4), (2, 2, 2), pool=LSE)
    assert "kernel_size" in str(error.value)


def test_input_can_be_overwritten_after_pooling_only_with_an_error():
    z = draw(1, 1, 4, 4).requires_grad_()
    x = z * 1
    out = functional.max_pool2d(x, 2, pool=LSE)
    x.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()


def test_output_can_be_overwritten_after_pooling_as_with_torch():
    z = draw(1, 2, 6, 6).requires_grad_()
    (expected,) = grad(F.max_pool2d(z, 2).mul(3).sum(), z)
    assert expected.any()
    (hard,) = grad(F.max_pool2d(z, 2).mul_(3).sum(), z)
    assert torch.equal(hard, expected)
    (clean,) = grad(functional.max_pool2d(z, 2, pool=LSE).mul(3).sum(), z)
    (found,) = grad(functional.max_pool2d(z, 2, pool=LSE).mul_(3).sum(), z)
    assert torch.equal(found, clean)


def test_nothing_is_kept_for_backward_without_grad():
    x = draw(1, 2, 6, 6).requires_grad_()
    with torch.no_grad():
        assert not functional.max_pool2d(x, 2, pool=LSE).requires_grad
        assert not functional.relu(x, gates.Sigmoid()).requires_grad
