"""`functional.max_pool2d`: the true forward pass, and the gradient of the soft maximum for every geometry."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import grad
from torch.nn import functional as F

import reference
from functional_inputs import LSE, bits, draw
from softgate import SoftgateError
from softgate.surrogate import functional, pools, soft_pooling


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
