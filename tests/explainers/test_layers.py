"""What layers give in a pass: kept as it was, in order, and nothing stays on the network."""

import pytest
import torch
from torch import nn

import softgate as sg
from classifier import everything
from softgate.explainers.layers import listening, require_layer, units_second, with_weights


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pair = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x):
        x = self.relu(self.conv(x))
        return self.pair((self.relu(self.conv(x)).mean((2, 3)), x))[0]


def test_the_first_output_of_a_layer_is_kept_as_it_was_before_an_activation_wrote_into_it():
    net, x = Twice(), torch.randn(2, 3, 4, 4)
    with listening(net, {"conv"}) as outputs:
        net(x)
        assert torch.equal(outputs.kept["conv"], net.conv(x))
        assert outputs.kept["conv"].min() < 0
        assert outputs.order[:5] == ["conv", "relu", "conv", "relu", "pair"]
        outputs.clear()
        assert (outputs.kept, outputs.order) == ({}, [])


def test_nothing_stays_after_an_error_either():
    net = Twice()
    before = everything(net)
    with pytest.raises(RuntimeError), listening(net, {"conv"}):
        net(torch.randn(2, 5, 4, 4))
    assert everything(net)["names"] == before["names"]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_that_gives_no_tensor_is_refused():
    net = Twice()
    with pytest.raises(sg.SoftgateError, match=r"layer=pair: it gives tuple"), listening(net, {"pair"}):
        net(torch.randn(2, 3, 4, 4))


def test_layers_are_known_by_name():
    require_layer("layer", "conv", Twice())
    with pytest.raises(sg.SoftgateError, match=r"layer=cnv: the model has no such layer.*its 3, such as conv"):
        require_layer("layer", "cnv", Twice())
    assert with_weights(Twice(), ["relu", "conv", "pair"]) == ["conv"]


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 5), (2, 5, 1)), ((2, 7, 5), (2, 5, 7)), ((2, 5, 3, 4), (2, 5, 12))]
)
def test_units_come_second(shape, expected):
    assert units_second(torch.zeros(shape)).shape == expected
