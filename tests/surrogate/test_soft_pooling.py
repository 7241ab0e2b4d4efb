"""What holds for max pooling of every legal argument, layout, dtype and value, over drawn cases.

tests/surrogate/test_functional_max_pool.py has the pointed examples and the gradients of second order.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg
from softgate.surrogate import functional, pools

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = st.sampled_from([pools.LSE, pools.SoftmaxFull])
SOFTMAX = {pools.LSE: reference.max_pool2d, pools.SoftmaxFull: reference.softmax_pool2d}


# -- drawn cases --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A legal max pooling: the input's shape and layout, the seed of its values, and the five settings."""

    shape: tuple[int, ...]
    layout: str
    seed: int
    kernel: object
    stride: object
    padding: object
    dilation: object
    ceil_mode: bool

    @property
    def sizes(self):
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    def generator(self, more=0):
        return torch.Generator().manual_seed(self.seed + 1000 * more)

    def normal(self, dtype=torch.float64):
        return self.laid_out(torch.randn(self.shape, generator=self.generator(), dtype=torch.float64).to(dtype))

    def distinct(self):
        """A permutation of 0, 1, 2, ...: no two values of the input are nearer to each other than one."""
        values = torch.randperm(math.prod(self.shape), generator=self.generator()).double()
        return self.laid_out(values.reshape(self.shape))

    def of(self, values, dtype=torch.float64):
        """An input of these values only, drawn with replacement."""
        chosen = torch.randint(0, len(values), self.shape, generator=self.generator())
        return self.laid_out(torch.tensor(values, dtype=dtype)[chosen])

    def laid_out(self, x):
        """The same values in the case's memory layout."""
        if self.layout == "channels_last" and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        elif self.layout == "transposed":
            x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        elif self.layout == "strided":
            x = torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
        elif self.layout == "offset":
            x = F.pad(x, (1, 2, 2, 1), value=7.0)[..., 2:-1, 1:-2]
        return x.detach()

    def upstream(self, out):
        return torch.randn(out.shape, generator=self.generator(1), dtype=torch.float64).to(out.dtype)


@st.composite
def cases(draw, overlap=True):
    """Every legal combination of arguments; `overlap=False` leaves out windows that share an element."""

    def size(low, high):
        two = draw(st.integers(low, high)), draw(st.integers(low, high))
        return draw(st.sampled_from([two, list(two), two[0], [two[0]]]))

    def both(value):
        return reference.pair(value if isinstance(value, int) or len(value) > 1 else value[0])

    kernel, dilation = size(1, 4), size(1, 3) if overlap else 1
    stride = draw(st.one_of(st.none(), st.just(size(1, 4)))) if overlap else None
    pads = [draw(st.integers(0, k // 2)) for k in both(kernel)]
    padding = draw(st.sampled_from([tuple(pads), pads, min(pads)]))
    edges = []
    for k, d, p in zip(both(kernel), both(dilation), both(padding), strict=True):
        least = max(1, d * (k - 1) + 1 - 2 * p)
        edges.append(draw(st.integers(least, least + 6)))
    lead = draw(st.sampled_from([(1,), (3,), (1, 1), (2, 3)]))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed", "strided", "offset"]))
    case = Case(
        (*lead, *edges), layout, draw(st.integers(0, 999)), kernel, stride, padding, dilation, draw(st.booleans())
    )
    # PyTorch gives a window that touches no input an index out of bounds, and its own backward writes there
    assume(windows(torch.zeros(case.shape), case).isfinite().any(-1).any(-1).all())
    return case


def windows(x, case):
    """The case's windows written out, [..., oH, oW, kH, kW]."""
    return reference.windows(x, *as_pairs(case))


def as_pairs(case):
    def both(value):
        return (value[0], value[0]) if not isinstance(value, int) and len(value) == 1 else reference.pair(value)

    stride = case.kernel if case.stride is None else case.stride
    return both(case.kernel), both(stride), both(case.padding), both(case.dilation), case.ceil_mode


def bits(x):
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def pulled(x, case, pool, upstream=None, mix=1.0):
    """The gradient of a pooling with respect to its input."""
    x = x.detach().requires_grad_()
    out = functional.max_pool2d(x, *case.sizes, pool=pool, mix=mix)
    return grad(out, x, case.upstream(out) if upstream is None else upstream)[0]


# -- forward ------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(
    cases(),
    st.sampled_from(FLOATS),
    st.sampled_from(["normal", "ties", "special"]),
    KINDS,
    st.sampled_from([1.0, 0.3]),
    st.booleans(),
)
def test_the_forward_is_pytorchs_bit_for_bit(case, dtype, values, kind, mix, with_grad):
    if values == "normal":
        x = case.normal(dtype)
    elif values == "ties":
        x = case.of([-1.0, -0.0, 0.0, 0.5], dtype)
    else:
        top = torch.finfo(dtype).max
        x = case.of([math.nan, math.inf, -math.inf, top, -top, 0.0, -0.0, 1.0], dtype)
    expected = F.max_pool2d(x, *case.sizes)
    found = functional.max_pool2d(x.requires_grad_(with_grad), *case.sizes, pool=kind(), mix=mix)
    assert found.dtype == dtype
    assert found.stride() == expected.stride()
    assert torch.equal(bits(found.detach()), bits(expected))
    assert found.requires_grad == with_grad


@settings(max_examples=250)
@given(
    st.data(),
    st.sampled_from([(1, 5, 6), (2, 1, 6, 5), (7,), (4, 4), (1, 1, 1, 5, 5)]),
    KINDS,
    st.booleans(),
)
def test_what_pytorch_refuses_is_refused_and_what_it_takes_is_taken(data, shape, kind, ceil_mode):
    number = st.integers(-1, 5)
    one = st.one_of(number, st.lists(number, min_size=0, max_size=3))
    kernel, stride, padding, dilation = (data.draw(one) for _ in range(4))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    sizes = kernel, stride, padding, dilation, ceil_mode
    try:
        expected = F.max_pool2d(x, *sizes)
    except (RuntimeError, ValueError, TypeError, IndexError):
        with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
            functional.max_pool2d(x, *sizes, pool=kind())
        return
    assert torch.equal(functional.max_pool2d(x, *sizes, pool=kind()), expected)


# -- gradient -----------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(cases(), KINDS, st.floats(0.02, 50), st.sampled_from([1.0, 0.7]), st.booleans())
def test_gradient_mass_is_conserved(case, kind, temperature, mix, ties):
    x = case.of([-1.0, 0.0, 0.5]) if ties else case.normal()
    upstream = case.upstream(F.max_pool2d(x, *case.sizes))
    found = pulled(x, case, kind(temperature), upstream, mix)
    assert abs(float(found.sum() - upstream.sum())) <= 1e-12 * float(upstream.abs().sum())


@settings(max_examples=200)
@given(cases(), KINDS, st.floats(0.02, 50), st.data())
def test_one_outputs_gradient_stays_in_its_window_and_sums_to_one(case, kind, temperature, data):
    x = case.normal()
    numbers = torch.arange(1.0, x.numel() + 1).reshape(x.shape)
    inside = windows(numbers, case).flatten(-2)
    chosen = data.draw(st.integers(0, inside[..., 0].numel() - 1))
    unit = torch.zeros_like(F.max_pool2d(x, *case.sizes)).flatten()
    unit[chosen] = 1
    found = pulled(x, case, kind(temperature), unit.view(inside.shape[:-1]))
    assert abs(float(found.sum()) - 1) <= 1e-12
    assert not found[~torch.isin(numbers, inside.flatten(0, -2)[chosen])].any()


@settings(max_examples=250)
@given(cases(), KINDS, st.floats(0.1, 3), st.sampled_from([torch.float64, torch.float32]), st.floats(-3, 3))
def test_the_gradient_is_the_references_in_every_layout_and_scale(case, kind, temperature, dtype, exponent):
    x = (case.normal() * 10**exponent).to(dtype)
    wide = x.double().clone().requires_grad_()
    out = SOFTMAX[kind](wide, *as_pairs(case), temperature=temperature)
    upstream = case.upstream(out)
    (expected,) = grad(out, wide, upstream)
    found = pulled(case.laid_out(x), case, kind(temperature), upstream.to(dtype))
    assert found.dtype == dtype
    # float32 rounds x / T, of the size of the spread of x in units of T, before it is exponentiated
    rounding = torch.finfo(dtype).eps * (20 + 4 * float(x.abs().max()) / temperature)
    assert float((found - expected).abs().max()) <= rounding * max(1.0, float(upstream.abs().max())) * 16


@settings(max_examples=150)
@given(cases(), KINDS, st.floats(0.05, 3), st.sampled_from(["contiguous", "channels_last", "transposed", "strided"]))
def test_the_gradient_does_not_depend_on_the_layout(case, kind, temperature, layout):
    other = replace(case, layout=layout)
    found, expected = (pulled(one.normal(), one, kind(temperature)) for one in (other, case))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@settings(max_examples=100)
@given(cases(), KINDS, st.floats(0.05, 3), st.sampled_from([1.0, 0.4]))
def test_the_images_of_a_batch_are_pooled_one_by_one(case, kind, temperature, mix):
    x = case.normal()
    assume(x.dim() == 4)
    upstream = case.upstream(F.max_pool2d(x, *case.sizes))
    together = pulled(x, case, kind(temperature), upstream, mix)
    alone = [pulled(one, case, kind(temperature), up, mix) for one, up in zip(x, upstream, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-13)


# -- temperature --------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(cases(), KINDS, st.sampled_from([1e-3, 1e-6, 1e-12, 1e-30]))
def test_at_temperature_zero_the_gradient_is_the_hard_one(case, kind, temperature):
    x = case.distinct().requires_grad_()
    out = F.max_pool2d(x, *case.sizes)
    upstream = case.upstream(out)
    torch.testing.assert_close(
        pulled(x, case, kind(temperature), upstream), grad(out, x, upstream)[0], rtol=1e-14, atol=1e-14
    )


@settings(max_examples=150)
@given(cases(), st.floats(0.01, 0.5))
def test_the_gradient_comes_as_near_to_the_hard_one_as_the_gap_between_values_allows(case, temperature):
    x = case.distinct().requires_grad_()
    out = F.max_pool2d(x, *case.sizes)
    upstream = case.upstream(out)
    apart = (pulled(x, case, pools.LSE(temperature), upstream) - grad(out, x, upstream)[0]).abs().sum()
    others = windows(x.detach(), case).flatten(-2).isfinite().sum(-1) - 1
    allowed = 2 * (upstream.abs() * others).sum() * math.exp(-1 / temperature)  # values lie 1 or more apart
    assert float(apart) <= float(allowed) * (1 + 1e-9) + 1e-12


@settings(max_examples=100)
@given(cases(), KINDS)
def test_at_temperature_zero_equal_maxima_share_the_gradient(case, kind):
    x = case.of([0.0, 1.0, 2.0])
    spread = windows(x, case)
    top = spread == spread.amax((-2, -1), keepdim=True)
    shares = windows(torch.arange(x.numel()).reshape(x.shape).double(), case)
    upstream = case.upstream(top[..., 0, 0].double())
    weight = top * (upstream / top.sum((-2, -1)))[..., None, None]
    expected = torch.zeros(x.numel(), dtype=torch.float64)
    expected.index_add_(0, shares[top].long(), weight[top])
    torch.testing.assert_close(pulled(x, case, kind(1e-3), upstream).flatten(), expected, rtol=1e-12, atol=1e-13)


@settings(max_examples=100)
@given(cases(), KINDS)
def test_at_an_infinite_temperature_every_element_of_the_window_gets_the_same(case, kind):
    x = case.normal().requires_grad_()
    spread = windows(x, case)
    inside = spread.detach().isfinite()
    mean = spread.masked_fill(~inside, 0).sum((-2, -1)) / inside.sum((-2, -1))
    upstream = case.upstream(mean)
    torch.testing.assert_close(
        pulled(x, case, kind(1e12), upstream), grad(mean, x, upstream)[0], rtol=1e-10, atol=1e-10
    )


@settings(max_examples=100)
@given(cases(), KINDS, st.floats(0.05, 3), st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_the_gradient_depends_on_differences_in_units_of_the_temperature_only(case, kind, temperature, shift, scale):
    x = case.normal()
    upstream = case.upstream(F.max_pool2d(x, *case.sizes))
    torch.testing.assert_close(
        pulled(x * scale + shift, case, kind(temperature * scale), upstream),
        pulled(x, case, kind(temperature), upstream),
        rtol=1e-7,
        atol=1e-7 * max(1.0, 1 / scale),
    )


# -- extreme values -----------------------------------------------------------------------------------


@settings(max_examples=250)
@given(
    cases(),
    KINDS,
    st.sampled_from([1e-3, 0.3, 100.0]),
    st.sampled_from(FLOATS),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from(["finite and infinite", "all minus infinity", "all plus infinity", "huge and near"]),
)
def test_no_gradient_is_nan_for_infinite_and_huge_inputs(case, kind, temperature, dtype, mix, values):
    top = torch.finfo(dtype).max
    x = case.of(
        {
            "finite and infinite": [math.inf, -math.inf, top, -top, top / 3, 0.0, -0.0, 1.0],
            "all minus infinity": [-math.inf],
            "all plus infinity": [math.inf],
            "huge and near": [top, top * (1 - 2 * torch.finfo(dtype).eps), 1.0, -1.0],
        }[values],
        dtype,
    )
    ones = torch.ones_like(F.max_pool2d(x, *case.sizes))
    found = pulled(x, case, kind(temperature), ones, mix)
    assert found.isfinite().all()
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    assert float(found.double().sum()) == pytest.approx(ones.numel(), rel=rounding)


# -- mix, and through an attached model ---------------------------------------------------------------


@settings(max_examples=150)
@given(cases(), KINDS, st.floats(0.05, 3), st.floats(0, 1), st.booleans())
def test_mix_interpolates_between_the_true_gradient_and_the_rules(case, kind, temperature, mix, ties):
    x = (case.of([-1.0, 0.0, 0.5]) if ties else case.normal()).requires_grad_()
    out = F.max_pool2d(x, *case.sizes)
    upstream = case.upstream(out)
    (hard,) = grad(out, x, upstream)
    soft = pulled(x, case, kind(temperature), upstream)
    found = pulled(x, case, kind(temperature), upstream, mix)
    torch.testing.assert_close(found, mix * soft + (1 - mix) * hard, rtol=1e-12, atol=1e-13)


class Pooling(nn.Module):
    """Max pooling with indices, as SegNet's encoders have it."""

    def __init__(self, case, indices):
        super().__init__()
        self.pool = nn.MaxPool2d(*case.sizes[:4], return_indices=indices, ceil_mode=case.ceil_mode)

    def forward(self, x):
        return self.pool(x * 1)


@settings(max_examples=150)
@given(cases(), KINDS, st.floats(0.05, 3), st.booleans(), st.booleans())
def test_an_attached_pooling_returns_the_true_values_and_indices(case, kind, temperature, indices, ties):
    assume(case.shape[0] > 0)
    x = (case.of([-1.0, 0.0, 0.5]) if ties else case.normal()).requires_grad_()
    model = Pooling(case, indices)
    bare = model(x)
    with sg.attach(model, sg.Surrogate(pool=kind(temperature))) as sites:
        found = model(x)
        assert [(site.kind, site.covered) for site in sites.table()] == [("max_pool2d", True)]
    out = found[0] if indices else found
    assert torch.equal(out, bare[0] if indices else bare)
    if indices:
        assert torch.equal(found[1], bare[1])
        assert found[1].dtype == torch.int64
        assert not found[1].requires_grad
    upstream = case.upstream(out)
    torch.testing.assert_close(
        grad(out, x, upstream)[0], pulled(x, case, kind(temperature), upstream), rtol=1e-12, atol=1e-13
    )


@given(cases(), KINDS, st.floats(0.05, 3))
def test_a_windows_weights_are_those_it_gathers_by_and_padding_has_none(case, kind, temperature):
    x, values = case.normal() - 3, case.distinct()  # below zero: padding of zeros would be the largest
    window = functional.window_of(*case.sizes)
    pooling = functional.soft_pooling(window, kind(temperature))
    expected = pooling.gather(values, x)
    padded = F.pad(values, window.pads(x.shape, expected.shape), value=1e6)
    pieces = zip(pooling.weights(x).unbind(-3), window.slices(padded, expected.shape), strict=True)
    torch.testing.assert_close(sum(weight * piece for weight, piece in pieces), expected, rtol=1e-9, atol=1e-9)
