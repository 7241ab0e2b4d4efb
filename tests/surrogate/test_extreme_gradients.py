"""Gradients that are very large or very small, windows that are very wide: nothing overflows, and no digit is lost."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import reference
from functional_inputs import draw
from softgate import Surrogate
from softgate.surrogate import functional, pools
from softgate.surrogate.numerics import matched

MATCHED = Surrogate(gain="matched")
SIZES = [1e-38, 1e-30, 1e-25, 1e-18, 1.0, 1e18, 1e30]


def pulled(function, z, upstream):
    z = z.detach().clone().requires_grad_()
    return grad(function(z), z, upstream)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(6,), (6, 40), (2, 3, 12, 12)], ids=str)
def test_matched_gain_is_the_same_for_gradients_of_every_size(size, shape):
    z, upstream = draw(*shape), draw(*shape, seed=1)

    def gated(z):
        return functional.relu(z, MATCHED)

    found = pulled(gated, z.float(), (upstream * size).float()).double() / size
    assert reference.distance(found, pulled(gated, z, upstream)) < 1e-5


def test_matched_gain_of_single_numbers_makes_each_its_true_gradient():
    z = torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    upstream = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64)
    found = pulled(lambda z: functional.relu(z, MATCHED), z, upstream)
    torch.testing.assert_close(found, upstream * (z > 0), rtol=1e-15, atol=0)


@settings(max_examples=40)
@given(st.integers(0, 999), st.permutations(range(5)), st.sampled_from([(5,), (5, 3), (5, 3, 4)]))
def test_matched_gain_does_not_mix_examples(seed, order, shape):
    soft, hard = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    whole = matched(soft, hard)
    assert torch.equal(matched(soft[order], hard[order]), whole[order])
    for number in range(5):
        one = slice(number, number + 1)
        torch.testing.assert_close(matched(soft[one], hard[one]), whole[one], rtol=1e-14, atol=0)


def test_matched_gain_at_a_pooling_takes_an_image_without_a_batch_for_one_image():
    z, upstream = draw(3, 9, 9), draw(3, 4, 4, seed=1)

    def pooled(z):
        return functional.max_pool2d(z, 2, pool=pools.LSE(), match=True)

    alone = pulled(pooled, z, upstream)
    assert reference.distance(alone, pulled(pooled, z[None], upstream[None])[0]) < 1e-14


@pytest.mark.parametrize("kind", [pools.LSE, pools.SoftmaxFull])
@pytest.mark.parametrize("size", SIZES[1:-1])
@pytest.mark.parametrize("height", [-80, -50, 0, 50, 80])
@pytest.mark.parametrize("geometry", [(3, 2, 1), (2, 2, 0)], ids=["overlapping", "tiles"])
def test_a_pooling_far_from_zero_keeps_the_digits_of_gradients_of_every_size(kind, size, height, geometry):
    x = (0.3 * (draw(2, 3, 8, 8, seed=2) + height)).float()
    upstream = draw(2, 3, 4, 4, seed=1).float()

    def pooled(x):
        return functional.max_pool2d(x, *geometry, pool=kind(0.3))

    found = pulled(pooled, x, upstream * size).double() / size
    assert reference.distance(found, pulled(pooled, x.double(), upstream.double())) < 1e-5


WIDE = {
    "plane": ((8, 9), ((8, 9),)),
    "tiles": ((10, 12), ((5, 6),)),
    "large": ((16, 16), (9, 3, 4)),
    "large, stride 1": ((14, 13), (7, 1, 3)),
    "dilated": ((15, 15), (5, 2, 1, 3)),
    "one row": ((1, 12), ((1, 9), 1)),
}


@pytest.mark.parametrize("case", WIDE)
@pytest.mark.parametrize(
    ("kind", "slow"), [(pools.LSE, reference.max_pool2d), (pools.SoftmaxFull, reference.softmax_pool2d)]
)
def test_large_windows_within_a_transform_are_the_reference(case, kind, slow):
    size, geometry = WIDE[case]
    x = draw(2, 3, *size) * 4
    upstream = draw(*F.max_pool2d(x, *geometry).shape, seed=1)

    def loss(x, upstream):
        return (functional.max_pool2d(x, *geometry, pool=kind(0.3)) * upstream).sum()

    found = torch.func.grad(loss)(x, upstream)
    expected = pulled(lambda x: slow(x, *geometry, temperature=0.3), x, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    batched = torch.func.vmap(torch.func.grad(loss), (None, 0))(x, torch.stack([upstream, -2 * upstream]))
    torch.testing.assert_close(batched, torch.stack([expected, -2 * expected]), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("size", "geometry", "most"),
    [(56, (56,), 60), (56, (28,), 60), (28, (14,), 60), (28, (14, 7), 14 * 40), (20, (13, 1, 6), 13 * 40)],
)
def test_large_windows_are_not_unrolled(size, geometry, most):
    """A compiler sees some operations for each row and column of a window, not for each of its elements."""
    x = draw(1, 1, size, size, dtype=torch.float32)
    pooling = functional.soft_pooling(functional.window_of(*geometry), pools.LSE())
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        traced = make_fx(lambda grad, x: pooling.spread(grad, x))(torch.ones_like(pooling.pool(x)), x)
    assert len(traced.graph.nodes) < most
