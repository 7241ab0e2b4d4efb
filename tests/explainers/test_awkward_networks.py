"""Networks that normalise their input in place or keep maps aside, no image at all, and a last chunk of one image."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import SoftgateError, explainers, metrics
from softgate.explainers.folding import fold
from softgate.explainers.pullback import predict, size_factor
from softgate.metrics.base import logits

RULE = sg.Surrogate()
TARGET = torch.tensor([0, 2, 1])


class Normalising(nn.Module):
    """A network that takes pixels in [0, 1] and normalises them, in place or not."""

    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.inplace, self.norm = inplace, nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x.sub_(0.5).div_(0.25) if self.inplace else (x - 0.5) / 0.25
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))


def pixels():
    return torch.rand(3, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def network(inplace=True):
    return Normalising(inplace).double().eval()


LOOKS = {
    "pullback": lambda net, x: sg.pullback(net, x, TARGET, RULE),
    "ascend": lambda net, x: sg.ascend(net, x, TARGET, RULE, steps=3, step_size=0.5, radius=1.0, bounds=(0, 1)).image,
    "predict": predict,
    "logits": logits,
    "representation": lambda net, x: sg.representation(net, x, TARGET, RULE),
    "record": lambda net, x: sg.paths.record(net, x, RULE).sites["(model).relu"].values,
    "calibrate": lambda net, x: sg.calibrate(net, [x])["(model).relu"],
    "grad_cam": lambda net, x: explainers.grad_cam(net, x, TARGET),
    "guided_backprop": lambda net, x: explainers.guided_backprop(net, x, TARGET),
    "smoothgrad": lambda net, x: explainers.smoothgrad(net, x, TARGET, samples=2),
    "input_x_gradient": lambda net, x: explainers.input_x_gradient(net, x, TARGET),
    "integrated_gradients": lambda net, x: explainers.integrated_gradients(net, x, TARGET, steps=4),
    "randomized": lambda net, x: logits(metrics.randomized(net, "all", x), x),
    "fold": lambda net, x: logits(fold(net, x), x),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_network_may_normalise_its_input_in_place(look):
    x = pixels()
    found = look(network(), x)
    assert torch.equal(x, pixels())
    torch.testing.assert_close(found, look(network(inplace=False), x), rtol=1e-12, atol=1e-14)


class Aside(nn.Module):
    """A network that makes a map after its last one on the way to the logits."""

    def __init__(self, aside):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.aside = aside

    def forward(self, x):
        h = F.relu(self.first(x))
        out = self.head(h.mean((2, 3)))
        if self.aside:
            self.kept = F.relu(self.second(h))
        return out


def test_grad_cam_takes_the_last_map_on_the_way_to_the_logits():
    x = pixels()
    found = explainers.grad_cam(Aside(True).double(), x, TARGET)
    assert torch.equal(found, explainers.grad_cam(Aside(False).double(), x, TARGET))
    assert found.any()


def test_grad_cam_without_a_map_before_the_logits_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(243, 3)).double()
    with pytest.raises(SoftgateError, match="grad_cam: Sequential makes no feature map"):
        explainers.grad_cam(net, pixels(), TARGET)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 9])
def test_the_gates_of_other_examples_have_no_last_chunk_of_one(count):
    x = torch.rand(count, 3, 9, 9, dtype=torch.float64)
    rule = sg.Surrogate(sg.gates.Shuffled())
    assert sg.pullback(network(), x, 1, rule, chunk=4).shape == x.shape
    assert sg.paths.record(network(), x, rule, chunk=4).images == count
    torch.testing.assert_close(sg.pullback(network(), x, 1, chunk=4), sg.pullback(network(), x, 1), rtol=1e-12, atol=0)


def test_gates_of_other_examples_that_have_no_other_one_are_refused():
    with pytest.raises(SoftgateError, match=r"gate\.name=shuffled: .* batches of 2, and chunks of 2, are needed"):
        sg.pullback(network(), pixels(), 1, sg.Surrogate(sg.gates.Shuffled()), chunk=1)


NO_IMAGE = {
    **{name: LOOKS[name] for name in ("predict",)},
    "pullback": lambda net, x: sg.pullback(net, x, 1, RULE),
    "ascend": lambda net, x: sg.ascend(net, x, 1, RULE),
    "representation": lambda net, x: sg.representation(net, x, 1, RULE),
    "diagnose": lambda net, x: sg.diagnose(net, x, torch.zeros(0, dtype=torch.long), RULE),
    "record": sg.paths.record,
    "calibrate": lambda net, x: sg.calibrate(net, [x]),
    "grad_cam": lambda net, x: explainers.grad_cam(net, x, 1),
    "guided_backprop": lambda net, x: explainers.guided_backprop(net, x, 1),
    "smoothgrad": lambda net, x: explainers.smoothgrad(net, x, 1),
    "input_x_gradient": lambda net, x: explainers.input_x_gradient(net, x, 1),
    "integrated_gradients": lambda net, x: explainers.integrated_gradients(net, x, 1),
    "gradient": lambda net, x: explainers.gradient(net, x, 1),
}


@pytest.mark.parametrize("look", NO_IMAGE.values(), ids=NO_IMAGE)
def test_no_image_is_one_sentence(look):
    with pytest.raises(SoftgateError, match=r"no image|is empty|with B >= 1"):
        look(network(), pixels()[:0])


def test_the_size_factor_needs_no_image():
    assert size_factor(torch.empty(0, 3, 224, 224)) == 1
