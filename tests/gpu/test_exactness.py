"""On a device everything is what it is on the CPU: values the bare network's to the bit, gradients of the formula."""

import pytest
import torch
import torchvision

import reference
import softgate as sg
from device_networks import NAMES, images, network, passed

RULE = sg.Surrogate()
RULES = {
    "excitation": RULE,
    "normal_cdf": sg.Surrogate.normal_cdf(),
    "sugar": sg.Surrogate.sugar(),
    "unit_rms": sg.Surrogate(gain="unit_rms"),
    "matched": sg.Surrogate(gain="matched"),
    "softmax": sg.Surrogate(pool=sg.pools.SoftmaxFull(), mix=0.5),
}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_bare_networks_and_gradients_those_of_the_reference(name, device):
    model, x = network(name, device), images(device)
    bare = passed(model, x)
    with reference.patched(reference.sigmoid, 0.3):
        expected = passed(model, x)
    with sg.attach(model, RULE):
        found = passed(model, x)
    assert torch.equal(found[0], bare[0])
    assert reference.distance(found[1], bare[1]) > 1e-3, "the rule changed nothing"
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) < 1e-10


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_each_rule_has_the_gradients_that_it_has_on_the_cpu(rule, device):
    found = {}
    for where in ("cpu", str(device)):
        model = network("net", where)
        with sg.attach(model, rule):
            found[where] = passed(model, images(where))
    for one, other in zip(*found.values(), strict=True) if len(found) == 2 else ():
        assert reference.distance(one, other) < 1e-10
    assert all(one.isfinite().all() for one in found[str(device)])


def test_scales_of_channels_are_those_of_the_cpu(device):
    rule, found = sg.Surrogate(scale="channel"), {}
    for where in ("cpu", str(device)):
        model, x = network("net", where), images(where)
        sg.calibrate(model, [(x, torch.zeros(len(x)))], rule)
        found[where] = sg.pullback(model, x, 2, rule).cpu()
    assert reference.distance(found[str(device)], found["cpu"]) < 1e-10


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0"])
def test_transformers_and_the_like_are_what_they_are_on_the_cpu(name, device):
    rule, size, found = sg.Surrogate.semantic(), 32, {}
    settings = {"image_size": size} if name == "vit_b_16" else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=5, **settings).double().eval()
    if name == "vit_b_16":
        model.encoder.layers = model.encoder.layers[:2]
    for where in ("cpu", str(device)):
        model, x = model.to(where), images(where, 1, size)
        bare = model(x)
        with sg.attach(model, rule):
            assert torch.equal(model(x), bare)
            found[where] = passed(model, x)
    for one, other in zip(*found.values(), strict=True) if len(found) == 2 else ():
        assert reference.distance(one, other) < 1e-8


def test_read_outs_are_those_of_the_cpu(device):
    found = {}
    for where in ("cpu", str(device)):
        model, x = network("net", where), images(where)
        affine = sg.representation(model, x, 1, RULE)
        climb = sg.ascend(model, x, [0, 3], RULE, steps=3, bounds=(-9.0, 9.0))
        found[where] = [
            sg.pullback(model, x, [0, 1, 2], RULE),
            affine,
            climb.image,
            sg.paths.kernel(model, x, x, RULE),
            sg.paths.run(model, x, sg.paths.record(model, x, RULE)),
        ]
    for one, other in zip(*found.values(), strict=True) if len(found) == 2 else ():
        assert reference.distance(one.cpu(), other.cpu()) < 1e-9


def test_with_its_own_gates_a_network_is_itself(device):
    model, x = network("resnet18", device), images(device)
    assert torch.equal(sg.paths.run(model, x, sg.paths.record(model, x)), model(x))


def test_float32_gradients_are_those_of_float64_up_to_rounding(device):
    found = []
    for dtype in (torch.float64, torch.float32):
        model = network("resnet18", device, dtype)
        with sg.attach(model, RULE):
            found.append(passed(model, images(device, dtype=dtype)))
    for one, other in zip(*found, strict=True):
        assert reference.distance(other, one) < 1e-3
