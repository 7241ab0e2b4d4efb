"""Ascent along the pullback: steps, ball, box, and what is predicted on the way."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from classifier import CLASSES, RULE


@pytest.mark.parametrize("rule", [None, RULE])
def test_one_step_goes_step_size_along_the_pullback(model, x, rule):
    direction = sg.pullback(model, x, 2, rule)
    result = sg.ascend(model, x, 2, rule, steps=1, step_size=0.7, radius=50.0, bounds=(-90, 90))
    norms = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(result.difference, 0.7 * direction / norms, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(result.image, x + result.difference)


def test_logits_begin_at_the_models_end_at_the_images_and_rise(model, x):
    result = sg.ascend(model, x, [0, 3], RULE, steps=5, step_size=0.05, radius=50.0, bounds=(-90, 90))
    with torch.no_grad():
        torch.testing.assert_close(result.logits[..., 0], model(x)[:, [0, 3]])
        for k, target in enumerate([0, 3]):
            torch.testing.assert_close(result.logits[:, k, -1], model(result.image[:, k])[:, target])
    assert (result.logits[..., -1] > result.logits[..., 0]).all()


def test_several_targets_ascend_as_each_does_alone(model, x):
    both = sg.ascend(model, x, [0, 3], RULE, steps=3, step_size=0.5, radius=1.0)
    for k, target in enumerate([0, 3]):
        alone = sg.ascend(model, x, target, RULE, steps=3, step_size=0.5, radius=1.0)
        torch.testing.assert_close(both.image[:, k], alone.image)
        torch.testing.assert_close(both.difference[:, k], alone.difference)
        torch.testing.assert_close(both.logits[:, k], alone.logits)


def test_ascent_stays_in_the_ball_around_the_original_and_reaches_its_edge(model, x):
    result = sg.ascend(model, x, 1, RULE, steps=8, step_size=1.0, radius=2.5, bounds=(-90, 90))
    norms = result.difference.flatten(1).norm(dim=1)
    assert (norms <= 2.5 * (1 + 1e-12)).all()
    assert (norms > 2.4).all()


def test_ascent_stays_in_the_box_and_fills_it(model, x):
    result = sg.ascend(model, x, 1, RULE, steps=5, step_size=20.0, radius=100.0, bounds=(-1, 1))
    assert float(result.image.min()) == -1
    assert float(result.image.max()) == 1
    torch.testing.assert_close(result.difference, result.image - x)


def test_an_image_whose_pullback_is_zero_stays_and_the_others_go_on(x):
    class Dead(nn.Module):  # its second half of the batch has no gradient
        def forward(self, x):
            alive = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=x.dtype)
            return F.relu(x.flatten(1))[:, :CLASSES] * alive[:, None]

    result = sg.ascend(Dead(), x, 1, RULE, steps=3, step_size=0.1, radius=1.0)
    assert torch.equal(result.image[2:], x[2:])
    assert (result.difference[:2].flatten(1).norm(dim=1) > 0.05).all()
    assert result.image.isfinite().all()


def test_normalize_stands_between_the_images_and_the_model(model, x):
    images = (x + 1) / 2

    def normalize(image):
        return image * 2 - 1

    found = sg.ascend(model, images, 1, RULE, steps=3, step_size=0.2, radius=9.0, bounds=(0, 1), normalize=normalize)
    both = sg.ascend(
        nn.Sequential(_Call(normalize), model), images, 1, RULE, steps=3, step_size=0.2, radius=9.0, bounds=(0, 1)
    )
    torch.testing.assert_close(found.image, both.image)
    torch.testing.assert_close(found.logits[:, 0], model(x)[:, 1].detach())
    assert float(found.image.min()) >= 0


class _Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"step_size": -1.0}, "step_size=-1.0"),
        ({"radius": 0.0}, "radius=0.0"),
        ({"bounds": (1, -1)}, "bounds=(1, -1)"),
        ({"bounds": (0.5, 1)}, "bounds=(0.5, 1)"),
    ],
)
def test_a_setting_of_ascend_out_of_range_is_named(model, x, settings, said):
    with pytest.raises(sg.SoftgateError) as error:
        sg.ascend(model, x, 1, RULE, **settings)
    assert said in str(error.value)


def test_ascend_results_are_detached_and_independent_of_the_images(model, x):
    before = x.clone()
    result = sg.ascend(model, x.requires_grad_(), 1, RULE, steps=2, step_size=0.1)
    assert not any(part.requires_grad for part in (result.image, result.difference, result.logits))
    result.image.zero_()
    assert torch.equal(x, before)


def test_ascent_says_what_is_predicted_before_and_after(model, x):
    result = sg.ascend(model, x, [0, 3], RULE, steps=4, step_size=5.0, radius=50.0, bounds=(-90, 90))
    with torch.no_grad():
        assert torch.equal(result.predicted[..., 0], model(x).argmax(1)[:, None].expand(-1, 2))
        for k in range(2):
            assert torch.equal(result.predicted[:, k, 1], model(result.image[:, k]).argmax(1))
    assert (result.predicted[..., 0] != result.predicted[..., 1]).any()
