"""Additive constants by every road, and networks in which images are no rows: the value is the logit, or an error."""

import warnings
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import softgate as sg
from path_networks import run_by_hand
from softgate import SoftgateError
from softgate.explainers.representation import representation

RULE = sg.Surrogate(sg.gates.Sigmoid(0.25), sg.pools.LSE(0.4))
C = torch.linspace(-1, 2, 4, dtype=torch.float64)


class Made(nn.Module):
    """A convolution, something done to its activations [B, 4, 6, 6], a ReLU and a linear layer."""

    def __init__(self, change):
        super().__init__()
        self.change, self.conv, self.head = change, nn.Conv2d(3, 4, 3), nn.LazyLinear(5)
        self.trainable = [torch.randn(4, 1, 1, dtype=torch.float64, requires_grad=True)]  # registered nowhere

    def forward(self, x):
        y = self.change(self, torch.relu(self.conv(x)))
        return self.head(torch.relu(y - 0.1).flatten(1))


def made(change, seed=0):
    torch.manual_seed(seed)
    model = Made(change).double().eval()
    model(images(2))
    nn.init.normal_(model.conv.bias)
    return model


def images(count, size=8, seed=1):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scaled_and_shifted(y: torch.Tensor) -> torch.Tensor:
    return y * 2 + 0.7


def relu(y: torch.Tensor) -> torch.Tensor:
    return torch.relu(y - 0.3)


@cache
def scripted(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        return torch.jit.script(function)


def overwritten(y):
    y = y.clone()
    y[:, :, 0] = 1.5
    y[:, 1, 2].copy_(torch.arange(y.shape[3]))
    y[:, 2, 3:].fill_(-0.5)
    return y


def put_in(y):
    canvas = torch.full_like(y, 0.7)
    canvas[:, :3, 1:] = y[:, :3, 1:]
    return torch.stack([canvas, torch.ones_like(y)], 1).sum(1)


def coordinates(y):
    return torch.cat([y, torch.linspace(-1, 1, y.shape[3], dtype=y.dtype).expand(len(y), 1, y.shape[2], -1)], 1)


def normed(y):
    return torch.batch_norm(y, C, C.abs() + 0.5, C + 1, C.exp(), False, 0.1, 1e-5, False)


FLAT = torch.linspace(-1, 1, 36, dtype=torch.float64)
CONSTANTS = {
    "subtract": lambda m, y: y.subtract(C[:, None, None]),
    "subtract_": lambda m, y: y.clone().subtract_(0.6),
    "rsub": lambda m, y: torch.rsub(y, 0.8, alpha=2),
    "add other=": lambda m, y: torch.add(y, other=C[:, None, None], alpha=3),
    "sub alpha": lambda m, y: torch.sub(C[:, None, None], y, alpha=2),
    "addmm": lambda m, y: FLAT.expand(len(y), 36).addmm(y.mean(1).flatten(1), FLAT.diag(), beta=2, alpha=-1),
    "baddbmm": lambda m, y: torch.baddbmm(FLAT.view(6, 6).expand(len(y), 6, 6), y[:, 0], y.new_ones(len(y), 6, 6)),
    "addcmul": lambda m, y: torch.addcmul(C[:, None, None], y, C[:, None, None], value=0.3),
    "lerp": lambda m, y: torch.lerp(y, C[:, None, None].expand_as(y), 0.3),
    "batch_norm": lambda m, y: normed(y),
    "column_stack": lambda m, y: torch.column_stack([y.flatten(1), FLAT.expand(len(y), -1)]),
    "row_stack": lambda m, y: torch.vstack([y.flatten(1).T, torch.ones(3, len(y), dtype=y.dtype)]).T,
    "hstack": lambda m, y: torch.hstack([y, torch.ones_like(y)]),
    "unregistered": lambda m, y: (y + m.trainable[0]) * m.trainable[0],
    "pad": lambda m, y: F.pad(y, (1, 0, 2, 1), value=0.7),
    "ConstantPad2d": lambda m, y: nn.ConstantPad2d(1, -0.4)(y),
    "aten": lambda m, y: torch.ops.aten.add(torch.ops.aten.sub.Scalar(y, 0.9), C[:, None, None]),
    "time first": lambda m, y: (y.flatten(2).permute(2, 0, 1) + FLAT[:, None, None]).permute(1, 2, 0),
    "transposed": lambda m, y: (y.flatten(1).T + FLAT.repeat(4)[:, None]).T,
    "einsum": lambda m, y: torch.einsum("bchw,cd->bdhw", y, C.diag()) + 1,
    "coordinates": lambda m, y: coordinates(y),
    "overwritten": lambda m, y: overwritten(y),
    "put in": lambda m, y: put_in(y),
    "index_add": lambda m, y: y.index_add(1, torch.tensor([0, 2]), torch.ones_like(y[:, :2]), alpha=-0.7),
    "relu6": lambda m, y: F.relu6(9 * y),
    "hardtanh": lambda m, y: F.hardtanh(y, -0.3, 0.4),
    "leaky_relu": lambda m, y: F.leaky_relu(y - 0.4, 0.1),
    "clamp": lambda m, y: y.sub(0.3).clamp(min=0),
    "amax": lambda m, y: (y - 0.2).amax((2, 3)),
    "instance norm": lambda m, y: F.instance_norm(y, C, C.abs() + 0.5, C + 1, C.exp(), use_input_stats=False),
}


GATED = ("relu6", "hardtanh", "leaky_relu", "clamp", "amax")
AFFINE = [name for name in CONSTANTS if name not in GATED]


def off(model, x, rule=None):
    """By how much the values of all logits are beside the network's, run with its gates written down by hand."""
    with torch.no_grad():
        expected = model(x) if rule is None else run_by_hand(model, x, rule)
    return float((representation(model, x, list(range(5)), rule) - expected).abs().max())


@pytest.mark.parametrize("count", [1, 3, 4])  # 4: as many images as channels
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_counted_however_it_is_written(name, count):
    model, x = made(CONSTANTS[name]), images(count)
    assert off(model, x) < 1e-12
    bare = (sg.pullback(model, x, 0) * x).flatten(1).sum(1)
    assert (bare - model(x)[:, 0]).abs().max() > 1e-3  # the constants matter


@pytest.mark.parametrize("name", AFFINE)
def test_and_under_soft_gates(name):
    assert off(made(CONSTANTS[name]), images(3), RULE) < 1e-12


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("mix", [1.0, 0.6])
def test_every_activation_that_a_rule_covers_is_run_with_the_gates_of_the_backward_pass(name, mix):
    model, x = made(CONSTANTS[name]), images(3)
    model.conv.bias.data.zero_()
    x[0] = 0  # every unit exactly on its kink, every window a tie
    rule = sg.Surrogate(sg.gates.Sigmoid(0.25), sg.pools.Hard(), mix=mix)
    values = representation(model, x, [0, 1], rule)  # raises where the pullback and the gates are not one map
    assert (values - model(x)[:, :2]).abs().max() > 1e-4


class Sequence(nn.Module):
    """A network that keeps time first, [T, B, C], with a bias for each time."""

    def __init__(self, times=8):
        super().__init__()
        self.inside, self.head = nn.Linear(12, 6), nn.Linear(6, 3)
        self.offset = nn.Parameter(torch.randn(times, 1, 6))

    def forward(self, x):
        y = x.reshape(len(x), -1, 12).transpose(0, 1)  # [T, B, 12]
        return self.head(torch.relu(self.inside(y) + self.offset).sum(0))


@pytest.mark.parametrize("count", [1, 8, 5])
def test_times_that_are_as_many_as_the_images_are_no_images(count):
    torch.manual_seed(0)
    model = Sequence(8).double()
    x = torch.randn(count, 3, 4, 8, dtype=torch.float64)
    assert (representation(model, x, 1) - model(x)[:, 1]).abs().max() < 1e-12
    assert (representation(model, x, 1, RULE) - run_by_hand(model, x, RULE)[:, 1]).abs().max() < 1e-12


def test_features_in_rows_are_no_images():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.constant, self.head = nn.Linear(12, 6), torch.randn(6, 1).double(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.relu((self.layer(x.flatten(1)).T + self.constant).T))

    torch.manual_seed(0)
    model = Turned().double()
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    assert (representation(model, x, 1) - model(x)[:, 1]).abs().max() < 1e-12


def test_parts_of_images_may_be_rows():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x):
            y = torch.relu(self.conv(torch.cat(x.chunk(2, 3))))
            return self.head(sum(y.mean((2, 3)).chunk(2)))

    torch.manual_seed(0)
    model, x = Patches().double(), images(3)
    assert (representation(model, x, 0) - model(x)[:, 0]).abs().max() < 1e-12


class Forged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad


REFUSED = {
    "detach": (lambda m, y: y + y.detach(), "not affine"),
    "images that are mixed": (lambda m, y: y + y.mean(0, keepdim=True), "not affine"),
    "reversed gradient": (lambda m, y: Forged.apply(y), "Forged"),
    "abs": (lambda m, y: (y - 0.3).abs(), "Abs"),
    "sigmoid": (lambda m, y: torch.sigmoid(y), "Sigmoid"),
    "where": (lambda m, y: torch.where(y > 0.3, y, 0.1), "Where"),
    "masked": (lambda m, y: y.masked_fill(y < 0.3, 0), "MaskedFill"),
    "put": (lambda m, y: y.clone().index_put_((y < 0.3,), torch.zeros((), dtype=y.dtype)), "IndexPut"),
    "product": (lambda m, y: y * y.mean((2, 3), keepdim=True), "product or quotient"),
    "quotient": (lambda m, y: C[:, None, None] / (y + 1), "product or quotient"),
    "addcmul": (lambda m, y: torch.addcmul(y, y, y), "product or quotient"),
    "lerp": (lambda m, y: torch.lerp(y, torch.zeros_like(y), y), "product or quotient"),
    "matrices": (lambda m, y: y @ y, "product or quotient"),
    "sorted": (lambda m, y: y.flatten(1).gather(1, y.flatten(1).argsort(1)), "not affine"),
    "by its values": (lambda m, y: y * float(y.detach().amax()), "not affine"),
    "scripted additions": (lambda m, y: scripted(scaled_and_shifted)(y), "scripted code"),
    "scripted relu": (lambda m, y: scripted(relu)(y), "outside of Python|called as torch.ops|no rule covers: relu"),
    "too many rows": (lambda m, y: torch.cat([y, y]), r"\(6, 5\) for 3 image"),
}


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_affine_with_its_gates_held_is_refused(name, rule):
    change, words = REFUSED[name]
    model = made(change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SoftgateError, match=words):
            representation(model, images(3), 0, rule)


def interpreted(y):
    """An operator as TorchScript's interpreter now and then runs it: a mode sees it, and its error becomes another."""
    try:
        return torch.ops.aten.relu(y - 0.3)
    except SoftgateError:
        raise RuntimeError("The following operation failed in the TorchScript interpreter.") from None


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
def test_a_refusal_within_scripted_code_stays_what_it_is(rule):
    with pytest.raises(sg.UnreachableSites, match="no rule covers"):
        representation(made(lambda m, y: interpreted(y)), images(3), 0, rule)
    with pytest.raises(sg.UnreachableSites, match="no rule covers: relu"):
        sg.paths.record(made(lambda m, y: interpreted(y)), images(3), rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_is_no_error(dtype):
    model = made(CONSTANTS["overwritten"]).to(dtype)
    x = images(3).to(dtype)
    values = representation(model, x, 0, RULE)
    assert torch.allclose(values.double(), representation(model.double(), x.double(), 0, RULE), rtol=0.1, atol=0.1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    names=st.lists(st.sampled_from(sorted(CONSTANTS)), min_size=1, max_size=4),
    count=st.integers(1, 6),
    soft=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chains_of_such_operations(names, count, soft, seed):
    def change(m, y):
        for name in names:
            y = CONSTANTS[name](m, y).reshape(len(y), -1)
            y = y.repeat(1, -(-144 // y.shape[1]))[:, :144].reshape(len(y), 4, 6, 6)
        return y

    model, x = made(change, seed), images(count, seed=seed)
    rule = sg.Surrogate(sg.gates.Sigmoid(0.5)) if soft else None
    values = representation(model, x, [0, 4], rule)
    if not soft:
        assert torch.allclose(values, model(x)[:, [0, 4]], rtol=1e-9, atol=1e-9)
