"""One tensor for each ReLU: what later layers keep is recomputed from the pre-activation, bit for bit."""

import gc

import pytest
import torch
import torchvision
from torch import nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

import softgate as sg
from softgate.sites.saved_tensors import Outputs, _Note

RULE = sg.Surrogate()


def images(size=32, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def everything(model, x, share, double=False):
    """Output, input gradient, parameter gradients and, if asked for, second derivatives."""
    torch.manual_seed(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with sg.attach(model, RULE, share=share):
        x = x.clone().requires_grad_()
        out = model(x)
        first = grad(out.square().sum(), [x, *parameters], create_graph=double, allow_unused=True)
        more = grad(first[0].square().sum(), parameters, allow_unused=True) if double else ()
    return [t for t in (out, *first, *more) if t is not None]


def notes_in(model, x):
    """How many of the tensors kept in a forward pass are notes."""
    found = []
    call = Outputs.call

    def watched(self, func, args, kwargs):
        before = saved_tensors_hooks.__init__

        def init(hooks, pack, unpack):
            def counting(tensor):
                kept = pack(tensor)
                found.append(isinstance(kept, _Note))
                return kept

            before(hooks, counting, unpack)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saved_tensors_hooks, "__init__", init)
            return call(self, func, args, kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outputs, "call", watched)
        with sg.attach(model, RULE):
            model(x.requires_grad_()).sum().backward()
    return sum(found)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn", "densenet121", "squeezenet1_1", "mobilenet_v2"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_bit_equal_to_those_of_a_pass_that_keeps_everything(name, channels_last):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10)
    x = images(33 if name == "squeezenet1_1" else 32)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert notes_in(model, x.clone()) > 5
    state = {key: value.clone() for key, value in model.state_dict().items()}
    runs = []
    for share in (True, False):
        model.load_state_dict(state)
        runs.append(everything(model, x, share))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_second_derivatives_are_bit_equal_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3)
    ).double()
    x = images(14).double()
    runs = [everything(model, x, share, double=True) for share in (True, False)]
    assert len(runs[0]) == len(runs[1]) > 2 + len(list(model.parameters()))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


class Custom(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), between

    def forward(self, x):
        return self.between(self, self.first(x))


def reused_memory(self, z):
    y = F.relu(z)
    total = y.mean()
    del y  # the next tensors may take its id and its address
    others = []
    for i in range(20):
        other = torch.tanh(z * (i + 1))
        others.append(self.last(other).mean())
        del other
    return total + sum(others)


CASES = {
    "a view": lambda self, z: F.linear(F.relu(z).flatten(2), torch.ones(5, z.shape[2] * z.shape[3])),
    "a part of it": lambda self, z: self.last(F.relu(z)[:, :, 1:, 2:]),
    "a transposed view": lambda self, z: self.last(F.relu(z).transpose(2, 3)),
    "a pre-activation that is a part": lambda self, z: self.last(F.relu(z.repeat(1, 2, 1, 1)[:, ::2])),
    "written to before": lambda self, z: self.last(F.relu(z).add_(1)),
    "written to after": lambda self, z: (lambda y: self.last(y) + y.mul(2).mean())(F.relu(z)),
    "used twice": lambda self, z: (lambda y: self.last(y) * self.last(y * y))(F.relu(z)),
    "times itself": lambda self, z: self.last((lambda y: y * y)(F.relu(z))),
    "relu6": lambda self, z: self.last(F.relu6(z * 10)),
    "leaky": lambda self, z: self.last(F.leaky_relu(z, 0.1)),
    "average pools": lambda self, z: F.adaptive_avg_pool2d(F.avg_pool2d(F.relu(z), 2), 2),
    "a norm": lambda self, z: self.last(F.batch_norm(F.relu(z), None, None, training=True)),
    "a max pool": lambda self, z: self.last(F.max_pool2d(F.relu(z), 3, 2, 1)),
    "an empty batch": lambda self, z: self.last(F.relu(z[:0])),
    "reused memory": reused_memory,
}


@pytest.mark.filterwarnings("ignore:Custom selects:softgate.SoftgateWarning")
@pytest.mark.parametrize("between", CASES.values(), ids=CASES.keys())
def test_whatever_stands_behind_a_relu_has_the_gradients_of_a_pass_that_keeps_everything(between):
    runs = [everything(Custom(between), images(12), share) for share in (True, False)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_an_output_written_to_after_a_layer_took_it_still_has_its_right_gradient():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x, late):
            y = F.relu(self.first(x))
            out = self.last(y)
            if late:
                y.zero_()
            return out

    x, found = torch.randn(5, 6), []
    model = Late()
    for late in (False, True):
        with sg.attach(model, RULE):
            found.append(grad(model(x, late).sum(), model.last.weight)[0])
    assert torch.equal(*found)


def test_a_pre_activation_written_to_before_the_backward_pass_is_an_error_not_a_wrong_gradient():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 4)

        def forward(self, z):
            return self.last(F.relu(z))

    model = Keeps()
    z = torch.randn(5, 6, requires_grad=True) * 1
    with sg.attach(model, RULE):
        out = model(z)
        with torch.no_grad():
            z.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            grad(out.sum(), model.last.weight)


def test_hooks_of_others_go_first_and_nothing_is_shared():
    model, x = Custom(CASES["used twice"]), images(12)
    plain, packed = everything(model, x, share=False), {True: [], False: []}
    for share, seen in packed.items():
        with saved_tensors_hooks(lambda t, seen=seen: seen.append(t.shape) or t, lambda t: t):
            found = everything(model, x, share)
        for one, other in zip(found, plain, strict=True):
            assert torch.equal(one, other)
    assert len(packed[True]) > 3
    assert packed[True] == packed[False]  # every tensor is handed to them, none kept as a note


def test_a_forward_pass_without_a_backward_pass_leaves_nothing_behind():
    model, x = Custom(CASES["used twice"]), images(12)

    def alive():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    with sg.attach(model, RULE):
        model(x)
        before = alive()
        for _ in range(5):
            model(x)
        assert alive() <= before


def test_a_sparse_factor_beside_a_relu_is_left_alone():
    class Graph(nn.Module):
        def __init__(self, adjacency):
            super().__init__()
            self.first, self.last, self.adjacency = nn.Linear(3, 4), nn.Linear(4, 2), adjacency

        def forward(self, x):
            return self.last(torch.mm(self.adjacency, F.relu(self.first(x))))

    torch.manual_seed(0)
    dense = (torch.rand(5, 5) > 0.5).double()
    net, other = Graph(dense.to_sparse()).double(), Graph(dense).double()
    other.load_state_dict(net.state_dict())
    x = torch.randn(5, 3).double()
    found = []
    for model in (net, other):
        with sg.attach(model, sg.Surrogate()):
            model(x).square().sum().backward()
        found.append(model.first.weight.grad)
    assert torch.allclose(*found)
