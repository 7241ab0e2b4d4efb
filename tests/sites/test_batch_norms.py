"""Batch normalisation of one image: its gradient is that of the formula, however its tensors lie in memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import softgate as sg

EPS = 1e-5


def plainly(x, weight, bias, running, kind):
    """The formula of batch normalisation and of instance normalisation."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    if kind == "evaluation":
        mean, variance = (statistic.view(shape) for statistic in running)
    else:
        dims = tuple(range(2, x.dim())) if kind == "instance" else (0, *range(2, x.dim()))
        mean = x.mean(dims, keepdim=True)
        variance = ((x - mean) ** 2).mean(dims, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt() * weight.view(shape) + bias.view(shape)


def as_tokens(x):
    """The same pixels, in memory as tokens lie there."""
    return x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).reshape(x.shape)


def channels_last(x):
    return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])


def turned(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


ORDERS = {"plain": torch.Tensor.contiguous, "tokens": as_tokens, "channels last": channels_last, "turned": turned}


class Norm(nn.Module):
    """One normalisation, then whatever the gradient comes through."""

    def __init__(self, channels, kind):
        super().__init__()
        self.kind = kind
        self.weight, self.bias = (nn.Parameter(torch.randn(channels, dtype=torch.float64)) for _ in range(2))
        self.running = torch.randn(channels, dtype=torch.float64), torch.rand(channels, dtype=torch.float64) + 0.5

    def forward(self, x):
        if self.kind == "instance":
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=EPS)
        mean, variance = (statistic.clone() for statistic in self.running)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.kind == "training", 0.1, EPS).relu()


def gradients(out, inputs, grad):
    return torch.autograd.grad(out, inputs, grad)


@given(
    kind=st.sampled_from(["evaluation", "training", "instance"]),
    images=st.integers(1, 2),
    channels=st.integers(1, 4),
    size=st.one_of(st.tuples(st.integers(1, 4), st.integers(2, 4)), st.tuples(*[st.integers(2, 3)] * 3)),
    orders=st.tuples(st.sampled_from(sorted(ORDERS)), st.sampled_from(sorted(ORDERS))),
    seed=st.integers(0, 9),
)
def test_the_gradient_is_that_of_the_formula_in_every_order_of_memory(kind, images, channels, size, orders, seed):
    torch.manual_seed(seed)
    x, grad = torch.randn(2, images, channels, *size, dtype=torch.float64).unbind(0)
    model = Norm(channels, kind)
    sg.attach(model, None)
    inputs = (x.requires_grad_(), model.weight, model.bias)
    true = plainly(x, model.weight, model.bias, model.running, kind)
    expected = gradients(true if kind == "instance" else true.relu(), inputs, grad)
    laid = ORDERS[orders[0]](x.detach()).requires_grad_()
    out = model(laid)
    found = gradients(out, (laid, *inputs[1:]), ORDERS[orders[1]](grad))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


class Tokens(nn.Module):
    """A stem of convolutions with batch normalisation, then tokens, as in LevIT, EfficientFormer and XCiT."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.norm(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("rule", [None, sg.Surrogate.semantic()], ids=["none", "semantic"])
def test_one_image_has_the_pullback_that_it_has_among_others(rule):
    model = Tokens().double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    together = sg.pullback(model, images, torch.tensor([0, 1, 2]), rule)
    alone = [sg.pullback(model, images[i : i + 1], torch.tensor([i]), rule) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-12, rtol=1e-12)


def test_a_second_derivative_and_torch_func_go_the_same_way():
    model = Tokens().double().eval()
    sg.attach(model, None)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    pair = torch.cat([x, torch.randn_like(x)])
    alone = torch.func.grad(lambda image: model(image)[0, 1])(x)
    torch.testing.assert_close(alone[0], torch.func.grad(lambda both: model(both)[0, 1])(pair)[0])

    def penalty(image):
        (grad,) = torch.autograd.grad(model(image)[0, 1], image, create_graph=True)
        return grad[0].square().sum()

    twice = [torch.autograd.grad(penalty(image.requires_grad_()), image)[0][0] for image in (x.clone(), pair.clone())]
    torch.testing.assert_close(*twice)
