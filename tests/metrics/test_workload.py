"""What a control table will take: the counts beforehand are those of the table itself."""

import warnings

import pytest
import torch
from torch import nn

from softgate.errors import SoftgateWarning
from softgate.metrics import controls, workload
from softgate.metrics.control_table import Probe, control_table
from softgate.surrogate.rule import Surrogate


class Counting:
    """Maps that a linear network has, and how many of one image were asked for; it makes no pass of its own."""

    def __init__(self):
        self.maps = 0

    def __call__(self, model, x, target):
        self.maps += len(x)
        return model[1].weight[target].view_as(x) + 0.01 * x


def linear(classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, classes)).eval()


@pytest.mark.parametrize(("images", "few", "classes", "draws"), [(12, 8, 5, 3), (10, 5, 4, 4), (16, 16, 8, 2)])
def test_maps_and_passes_are_counted_as_the_table_makes_them(images, few, classes, draws):
    net, labels = linear(classes), torch.arange(images) % classes
    x = torch.rand(images, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    explainer, passes = Counting(), []
    net.register_forward_hook(lambda module, given, out: passes.append(len(given[0])))
    control_table(net, {"one": explainer}, Probe(x, labels), dear=few, draws=draws)
    todo = workload.workload(images, few, classes, draws)
    # Mosaics take four images of different classes each: with few classes there are fewer than asked for.
    assert todo.maps - 4 * max(1, few // 4) <= explainer.maps <= todo.maps
    assert abs(sum(passes) - todo.passes) <= 20, "single images are run to see what the network takes"


def test_the_time_is_that_of_the_maps_and_passes(monkeypatch):
    net = linear(3)
    x, labels = torch.rand(9, 3, 6, 6), torch.arange(9) % 3
    monkeypatch.setattr(workload, "_seconds", lambda run: (run(), 8.0)[1])
    found = workload.expected(net, {"one": Counting()}, Probe(x, labels), 4, 2)
    todo = workload.workload(9, 4, 3, 2)
    assert found == {"one": todo.maps + todo.passes}


def test_a_warning_is_left_to_the_measurement(recwarn):
    def warned(model, x, target):
        warnings.warn("of little use", SoftgateWarning, stacklevel=1)
        return x

    x, labels = torch.rand(9, 3, 6, 6), torch.arange(9) % 3
    assert "one" in workload.expected(linear(3), {"one": warned}, Probe(x, labels), 4, 2)
    assert not len(recwarn)


def test_an_explainer_that_fails_has_no_time_and_the_others_have():
    net = linear(3)
    x, labels = torch.rand(9, 3, 6, 6), torch.arange(9) % 3
    found = workload.expected(net, controls.standard(Surrogate(), x, 2), Probe(x, labels), 4, 2)
    assert {"gradient", "SmoothGrad", "edge filter"} == {*found}  # the network has no call sites
    assert all(seconds > 0 for seconds in found.values())
