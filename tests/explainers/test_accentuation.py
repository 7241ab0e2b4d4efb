"""Feature accentuation: against its formula, in range, without a trace, each picture by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from classifier import CLASSES, RULE, assert_same, everything
from explainers.test_fourier import slow_decode
from softgate.explainers import noise
from softgate.explainers.fourier import MARGIN, encode

How = sg.AccentuationSettings
QUICK = How(steps=3, crops=2)


def slow(model, seed_image, target, how, layer):
    """Adam on E[logit(crop)] - w b E[distance of the crop to the seed's] for one image, as arXiv 2402.10039 has it."""
    (generator,) = noise.generators(seed_image, how.seed)
    theta = encode(seed_image, (-1.0, 1.0))
    _, _, height, width = seed_image.shape
    first, second, balance = torch.zeros_like(theta), torch.zeros_like(theta), 0.0
    for step in range(1, how.steps + 1):
        theta = theta.detach().requires_grad_()
        image = slow_decode(theta, height, width, -1.0, 1.0)
        response, distance = 0.0, 0.0
        for _ in range(how.crops):
            side, down, across = torch.rand(3, generator=generator).tolist()
            side = how.crop[0] + side * (how.crop[1] - how.crop[0])
            tall, wide = max(1, round(side * height)), max(1, round(side * width))
            top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
            views = []
            for of in (image, seed_image):
                part = of[:, :, top : top + tall, left : left + wide]
                resized = F.interpolate(part, (height, width), mode="bilinear", antialias=True)
                views.append(resized + 2 * how.noise * torch.randn(3, height, width, generator=generator).double())
            response = response + model(views[0])[0, target] / how.crops
            a, b = layer(views[0]), layer(views[1])
            distance = distance + (a - b).square().sum(1).sqrt().mean() / how.crops
        up = torch.autograd.grad(response, theta, retain_graph=True)[0]
        away = torch.autograd.grad(distance, theta)[0]
        balance = balance or float(up.abs().sum() / away.abs().sum())
        down = how.weight * balance * away - up
        first, second = 0.9 * first + 0.1 * down, 0.999 * second + 0.001 * down**2
        rate = how.learning_rate / (1 - 0.9**step)
        theta = theta.detach() - rate * first / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return slow_decode(theta, height, width, -1.0, 1.0).detach()


@pytest.mark.parametrize("steps", [1, 3])
def test_it_is_adam_on_the_coefficients_of_the_image(model, x, steps):
    how = How(steps=steps, crops=2, crop=(0.4, 0.9), noise=0.05, weight=0.7, layer="body.0", seed=3)
    found = sg.accentuate(model, x[:2], 1, None, how)
    for one, image in zip(x[:2].split(1), found.image.split(1), strict=True):
        torch.testing.assert_close(image, slow(model, one, 1, how, model.body[0]), rtol=1e-7, atol=1e-9)
    assert found.difference.abs().max() > 1e-3


def test_the_image_itself_comes_back_where_no_step_is_long(model, x):
    inside = x.clamp(-1 + 2 * MARGIN, 1 - 2 * MARGIN)
    found = sg.accentuate(model, inside, [0, 3], RULE, How(steps=2, crops=2, learning_rate=1e-13))
    torch.testing.assert_close(found.image, inside[:, None].expand_as(found.image), rtol=0, atol=1e-9)
    still = sg.accentuate(model, torch.ones_like(x), 0, None, How(steps=1, crops=1, learning_rate=1e-13))
    assert 0 < float(still.difference.abs().max()) <= 2 * MARGIN + 1e-9  # half a grey level, at a bound


def test_images_are_real_and_in_range_and_the_logit_rises(model, x):
    found = sg.accentuate(model, x, [0, 3], None, How(steps=15, crops=2, weight=0.1, learning_rate=0.1))
    assert found.image.dtype == x.dtype
    assert float(found.image.min()) >= -1
    assert float(found.image.max()) <= 1
    torch.testing.assert_close(found.difference, found.image - x[:, None])
    assert (found.logits[..., 1] > found.logits[..., 0]).all()
    with torch.no_grad():
        for k, target in enumerate([0, 3]):
            torch.testing.assert_close(found.logits[..., k, 0], model(x)[:, target])
            torch.testing.assert_close(found.logits[..., k, 1], model(found.image[:, k])[:, target])
            assert torch.equal(found.predicted[:, k, 1], model(found.image[:, k]).argmax(1))
    assert found.responses.shape == (4, 2, 15)
    assert not any(part.requires_grad for part in (found.image, found.difference, found.logits, found.responses))


def test_a_greater_weight_keeps_the_image_nearer_to_its_seed_in_that_layer(model, x):
    def distance(weight):
        made = sg.accentuate(model, x, 2, None, How(steps=15, crops=2, weight=weight, learning_rate=0.05)).image
        with torch.no_grad():
            return float((model.body[0](made) - model.body[0](x)).norm())

    assert distance(20.0) < 0.7 * distance(0.0)


@pytest.mark.parametrize("rule", [None, RULE])
def test_a_picture_does_not_depend_on_its_neighbours_other_targets_or_chunks(model, x, rule):
    every = sg.accentuate(model, x, [0, 3], rule, QUICK)
    for b in range(len(x)):
        alone = sg.accentuate(model, x[b : b + 1], 3, rule, QUICK)
        torch.testing.assert_close(alone.image[0], every.image[b, 1], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(alone.responses[0], every.responses[b, 1])
    for chunk in (1, 3, 5):
        torch.testing.assert_close(sg.accentuate(model, x, [0, 3], rule, QUICK, chunk=chunk).image, every.image)


def test_crops_are_drawn_from_the_seed_and_nobody_elses_numbers_move(model, x):
    one = sg.accentuate(model, x, 1, None, QUICK)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = sg.accentuate(model, x, 1, None, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.image, again.image)
    assert not torch.equal(sg.accentuate(model, x, 1, None, How(steps=3, crops=2, seed=1)).image, one.image)


def test_an_attached_network_is_read_by_the_rule_asked_for_and_left_as_it_was(model, x):
    expected = {rule: sg.accentuate(model, x, 1, rule, QUICK).image for rule in (None, RULE)}
    assert not torch.equal(expected[None], expected[RULE])
    with sg.attach(model.train(), RULE):
        before = everything(model)
        for rule, image in expected.items():
            torch.testing.assert_close(sg.accentuate(model, x, 1, rule, QUICK).image, image)
        assert_same(everything(model), before)
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_passes_are_the_images_that_the_network_is_run_on(model, x, weight):
    ran = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            ran.append(len(x))
            return self.inner(x)

    found = sg.accentuate(Counting(), x, 1, None, How(steps=3, crops=4, weight=weight))
    assert found.passes == 3 * 4 * (1 + bool(weight)) + 2 == sum(ran) / len(x)
    assert How().passes == 3202
    assert found.layer == ("inner.body.0" if weight else None)


def test_a_unit_of_a_layer_is_accentuated(model, x):
    found = sg.accentuate(model, x, [5, 7], None, How(steps=15, crops=2, unit_of="conv", learning_rate=0.05))
    with torch.no_grad():
        before = model.conv(model.body(x)).mean((2, 3))[:, [5, 7]]
        after = torch.stack(
            [model.conv(model.body(found.image[:, k])).mean((2, 3))[:, u] for k, u in ((0, 5), (1, 7))], 1
        )
    torch.testing.assert_close(found.logits[..., 0], before)
    torch.testing.assert_close(found.logits[..., 1], after)
    assert (after > before).all()
    assert found.layer == "body.0"


def test_normalize_stands_between_the_images_and_the_model(model, x):
    images = (x + 1) / 2
    found = sg.accentuate(model, images, 1, None, QUICK, bounds=(0, 1), normalize=lambda image: image * 2 - 1)
    torch.testing.assert_close(found.logits[:, 0], model(x)[:, 1].detach())
    assert float(found.image.min()) >= 0
    assert found.bounds == (0.0, 1.0)


def test_images_of_half_precision_and_one_colour_are_taken():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(2, 1, 7, 9).to(torch.bfloat16)
    found = sg.accentuate(model.to(torch.bfloat16), x, 1, None, QUICK, bounds=(0, 1))
    assert found.image.dtype == torch.bfloat16
    assert found.image.isfinite().all()


def test_the_weight_is_free_of_the_scale_of_the_layer_and_of_the_logits(model, x):
    found = sg.accentuate(model, x, 1, None, QUICK)
    heavier = sg.accentuate(model, x, 1, None, How(steps=3, crops=2, weight=8.0))
    with torch.no_grad():
        model.head.weight *= 8
        model.head.bias *= 8
    scaled = sg.accentuate(model, x, 1, None, QUICK)
    moved = float(found.difference.norm())
    assert float((scaled.image - found.image).norm()) < 0.01 * moved
    assert float((heavier.image - found.image).norm()) > 0.1 * moved


def test_without_noise_and_crops_the_distance_begins_where_it_has_a_gradient(model, x):
    found = sg.accentuate(model, x, 1, None, How(steps=3, crops=1, crop=(1.0, 1.0), noise=0.0))
    assert found.image.isfinite().all()
    assert found.difference.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps=0: a whole number >= 1"),
        ({"crops": 1.5}, "crops=1.5: a whole number >= 1"),
        ({"weight": -1.0}, "weight=-1.0: a number >= 0"),
        ({"noise": -0.1}, "noise=-0.1: a number >= 0"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"learning_rate": 0}, "learning_rate=0: a number > 0"),
        ({"crop": (0.5, 0.1)}, "crop=(0.5, 0.1)"),
        ({"crop": 0.5}, "crop=0.5"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": -1}, "seed=-1"),
        ({"weight": 0, "layer": "conv"}, "layer=conv: with weight=0"),
        ({"layer": "body.9"}, "layer=body.9: the model has no such layer"),
        ({"unit_of": "bdy"}, "unit_of=bdy: the model has no such layer"),
        ({"layer": "head", "unit_of": "conv"}, "layer=head: it comes after unit_of=conv"),
        ({"layer": "conv", "unit_of": "conv"}, "layer=conv: it comes after unit_of=conv, or is the same"),
        ({"unit_of": "body.0"}, "layer=None: the model calls no layer with weights before"),
    ],
)
def test_a_setting_that_cannot_be_is_named(model, x, settings, said):
    with pytest.raises(sg.SoftgateError) as error:
        sg.accentuate(model, x, 1, None, How(**{"steps": 1, "crops": 1, **settings}))
    assert said in str(error.value)


def test_targets_bounds_and_layers_that_are_not_called_are_refused(model, x):
    model.spare = nn.Linear(2, 2).double()
    for settings, bounds, target, said in (
        (QUICK, (-1, 1), CLASSES, "target=5: the model has the classes 0 to 4"),
        (How(steps=1, unit_of="conv"), (-1, 1), 8, "target=8: the layer conv has the units 0 to 7"),
        (QUICK, (1, -1), 1, "bounds=(1, -1)"),
        (QUICK, (0.5, 1), 1, "x has pixels outside of bounds=(0.5, 1)"),
        (How(steps=1, layer="spare"), (-1, 1), 1, "layer=spare: the model does not call this layer"),
        (How(steps=1, unit_of="spare"), (-1, 1), 1, "unit_of=spare: the model does not call this layer"),
    ):
        with pytest.raises(sg.SoftgateError) as error:
            sg.accentuate(model, x, target, None, settings, bounds=bounds)
        assert said in str(error.value)
