"""Normalisations with constant statistics, against the formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
import reference_blocks
import softgate as sg
from softgate.surrogate.held_norm import Norm, held_norm
from softgate.surrogate.selection import Kind

SHAPE = (3, 6, 4, 5)


def norm_of(kind, eps=1e-5):
    shape = SHAPE[2:] if kind in (Kind.LAYER_NORM, Kind.RMS_NORM) else ()
    return Norm(kind, shape, groups=2 if kind == Kind.GROUP_NORM else 0, eps=eps)


def expected_of(norm, x, weight, bias):
    if norm.kind == Kind.LAYER_NORM:
        return reference_blocks.layer_norm(x, norm.shape, weight, bias, norm.eps)
    if norm.kind == Kind.RMS_NORM:
        return reference_blocks.rms_norm(x, norm.shape, weight, norm.eps)
    if norm.kind == Kind.GROUP_NORM:
        return reference_blocks.group_norm(x, norm.groups, weight, bias, norm.eps)
    return reference_blocks.instance_norm(x, weight=weight, bias=bias, eps=norm.eps)


def drawn(kind, seed=0, affine=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator, dtype=dtype) * 3 + 1
    sizes = SHAPE[2:] if kind in (Kind.LAYER_NORM, Kind.RMS_NORM) else SHAPE[1:2]
    weight, bias = (torch.randn(sizes, generator=generator, dtype=dtype) if affine else None for _ in range(2))
    bias = None if kind == Kind.RMS_NORM else bias
    upstream = torch.randn(SHAPE, generator=generator, dtype=dtype)
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    return x, weight, bias, upstream, leaves


NORMS = [Kind.LAYER_NORM, Kind.RMS_NORM, Kind.GROUP_NORM, Kind.INSTANCE_NORM]


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("affine", [True, False])
def test_the_gradients_are_those_of_the_formula(kind, affine):
    norm = norm_of(kind)
    x, weight, bias, upstream, leaves = drawn(kind, affine=affine)
    out = held_norm(x, weight, bias, norm)
    assert torch.equal(out, norm.run(x, weight, bias))
    found = torch.autograd.grad(out, leaves, upstream)
    expected = torch.autograd.grad(expected_of(norm, x, weight, bias), leaves, upstream)
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) < 1e-12


@pytest.mark.parametrize("kind", NORMS)
def test_without_the_rule_the_gradient_is_the_true_one_and_a_mix_lies_between(kind):
    norm = norm_of(kind)
    x, weight, bias, upstream, leaves = drawn(kind, seed=1)
    true = torch.autograd.grad(norm.run(x, weight, bias), leaves, upstream)
    none = torch.autograd.grad(held_norm(x, weight, bias, norm, mix=0.0), leaves, upstream)
    soft = torch.autograd.grad(held_norm(x, weight, bias, norm), leaves, upstream)
    part = torch.autograd.grad(held_norm(x, weight, bias, norm, mix=0.3), leaves, upstream)
    for place in range(len(leaves)):
        assert reference.distance(none[place], true[place]) < 1e-12
        assert reference.distance(part[place], 0.3 * soft[place] + 0.7 * true[place]) < 1e-12
    assert reference.distance(soft[0], true[0]) > 0.01


@pytest.mark.parametrize("kind", NORMS)
def test_matched_gives_each_example_the_norm_of_its_true_gradient(kind):
    norm = norm_of(kind)
    x, weight, bias, upstream, _ = drawn(kind, seed=2)
    true = torch.autograd.grad(norm.run(x, weight, bias), x, upstream)[0]
    found = torch.autograd.grad(held_norm(x, weight, bias, norm, match=True), x, upstream)[0]
    assert torch.allclose(found.flatten(1).norm(dim=1), true.flatten(1).norm(dim=1), rtol=1e-12)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    width=st.integers(2, 6),
    eps=st.sampled_from([1e-6, 1e-5, 0.1]),
    kind=st.sampled_from([Kind.LAYER_NORM, Kind.RMS_NORM]),
)
def test_layer_norms_of_any_shape(batch, length, width, eps, kind):
    x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(batch + 7 * width)).double()
    x.requires_grad_()
    norm = Norm(kind, (width,), eps=eps)
    found = torch.autograd.grad(held_norm(x, None, None, norm).square().sum(), x)[0]
    expected = torch.autograd.grad(expected_of(norm, x, None, None).square().sum(), x)[0]
    assert reference.distance(found, expected) < 1e-11


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_value_is_bit_equal_and_gradients_have_their_dtypes(kind, dtype):
    norm = norm_of(kind)
    x, weight, bias, upstream, leaves = drawn(kind, dtype=dtype)
    out = held_norm(x, weight, bias, norm)
    assert torch.equal(out, norm.run(x, weight, bias))
    for leaf, grad in zip(leaves, torch.autograd.grad(out, leaves, upstream), strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.isfinite().all()


@pytest.mark.parametrize("kind", NORMS)
def test_within_transforms_of_torch_func_the_gradient_is_the_same(kind):
    norm = norm_of(kind)
    x, weight, bias, upstream, _ = drawn(kind)

    def loss(x, weight):
        return (held_norm(x, weight, bias, norm, mix=0.6) * upstream).sum()

    found = torch.func.grad(loss, argnums=(0, 1))(x.detach(), weight.detach())
    expected = torch.autograd.grad(loss(x, weight), (x, weight))
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) < 1e-12
    each = torch.func.vmap(torch.func.grad(lambda one: (held_norm(one[None], weight, bias, norm)).square().sum()))
    whole = torch.autograd.grad(held_norm(x, weight, bias, norm).square().sum(), x)[0]
    assert reference.distance(each(x.detach()), whole) < 1e-12


@pytest.mark.parametrize("kind", NORMS)
def test_differentiated_twice_the_statistics_are_constants(kind):
    norm = norm_of(kind)
    x, weight, bias, upstream, _ = drawn(kind)
    first = torch.autograd.grad(held_norm(x, weight, bias, norm).square().sum() / 2, x, create_graph=True)[0]
    second = torch.autograd.grad((first * upstream).sum(), x)[0]
    _, rate = norm.statistics(x)
    factor = rate if weight is None else rate * norm.spread(weight.detach(), x)
    assert reference.distance(second, upstream * factor.square()) < 1e-10


def test_a_matched_gain_within_transforms_is_refused():
    norm = norm_of(Kind.LAYER_NORM)
    x, weight, bias, _, _ = drawn(Kind.LAYER_NORM)
    with pytest.raises(sg.SoftgateError, match="matched"):
        torch.func.grad(lambda x: held_norm(x, weight, bias, norm, match=True).sum())(x.detach())


def test_instance_norm_updates_its_running_statistics_as_ever():
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, theirs = ((torch.zeros(6), torch.ones(6)) for _ in range(2))
    held_norm(x, None, None, Norm(Kind.INSTANCE_NORM, running=(*ours, 0.1)))
    torch.nn.functional.instance_norm(x, *theirs, use_input_stats=True, momentum=0.1)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
