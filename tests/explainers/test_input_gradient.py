"""The first convolution's input gradient, phase by phase, against autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from softgate.explainers.folding import fold
from softgate.explainers.input_gradient import Stem

sizes = st.integers(1, 23)


@settings(max_examples=150, deadline=None)
@given(
    kernel=st.integers(1, 8),
    stride=st.integers(2, 5),
    padding=st.integers(0, 4),
    channels=st.integers(1, 4),
    bias=st.booleans(),
    height=sizes,
    width=sizes,
)
def test_the_input_gradient_is_autograds(kernel, stride, padding, channels, bias, height, width):
    if min(height, width) + 2 * padding < kernel:
        return
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 5, kernel, stride, padding, bias=bias).double()
    x = torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True)
    stem = Stem(conv)
    expected, found = conv(x), stem(x)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    (got,) = torch.autograd.grad(found, x, upstream)
    assert (got - wanted).abs().max() <= 1e-12 * (1 + wanted.abs().max())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(5, 8, 3, stride=2),
        nn.Conv2d(3, 6, 3, stride=2, groups=3),
        nn.Conv2d(3, 8, 3, stride=2, dilation=2),
        nn.Conv2d(3, 8, 3, stride=(2, 1)),
        nn.Conv2d(3, 8, (3, 5), stride=2),
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
    ],
    ids=["stride 1", "five channels", "groups", "dilation", "strides", "oblong", "reflect"],
)
def test_other_convolutions_stay_as_they_are(conv):
    assert not Stem.fits(conv)


def test_the_folded_copy_has_one_and_gives_the_same_second_derivative():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 7, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    x = torch.randn(2, 3, 17, 19, dtype=torch.float64, requires_grad=True)
    folded = fold(net, x)
    assert isinstance(folded[0], Stem)
    assert type(net[0]) is nn.Conv2d

    def second(model: nn.Module) -> torch.Tensor:
        (first,) = torch.autograd.grad(model(x)[:, 1].sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert (second(folded) - second(net)).abs().max() <= 1e-12
