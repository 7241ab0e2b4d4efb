"""Semantic pullbacks against the formula, step by step."""

import math

import pytest
import torch

import block_networks
import reference
import softgate as sg
from softgate.explainers import SemanticPullback, semantic_pullback

RULE = sg.Surrogate.semantic()


def slow(model, x, target, rule, steps, size, clip, low, high):
    """Image by image, step by step, from `sg.pullback`."""
    found = []
    for image in x.split(1):
        moved = image.clone()
        for step in range(steps):
            direction = sg.pullback(model, moved, target, rule)
            moved = moved + size * direction / direction.square().sum().sqrt()
            if clip == "each" or (clip == "last" and step == steps - 1):
                moved = moved.clamp(low, high)
        found.append(moved - image)
    return torch.cat(found)


@pytest.mark.parametrize("clip", ["never", "each", "last"])
@pytest.mark.parametrize("rule", [RULE, None], ids=["semantic", "gradient"])
def test_it_is_the_sum_of_its_steps(clip, rule):
    model, x = block_networks.build("convnext"), block_networks.images(3)
    size = 20 * math.sqrt(3 * 32 * 32 / 150528)
    found = semantic_pullback(model, x, 2, rule, clip=clip, bounds=(-2, 1.5))
    expected = slow(model, x, 2, rule, 5, size, clip, -2, 1.5)
    assert reference.distance(found, expected) < 1e-10
    outside = bool(((x + found < -2) | (x + found > 1.5)).any())
    assert outside == (clip == "never")


def test_several_targets_and_chunks_are_what_one_at_a_time_is():
    model, x = block_networks.build("convnext"), block_networks.images(3)
    many = semantic_pullback(model, x, [0, 3], RULE, steps=2, chunk=4)
    assert many.shape == (3, 2, 3, 32, 32)
    for place, target in enumerate((0, 3)):
        assert reference.distance(many[:, place], semantic_pullback(model, x, target, RULE, steps=2)) < 1e-12


def test_one_step_is_the_pullback_itself_as_far_as_its_direction_goes():
    model, x = block_networks.build("vit"), block_networks.images()
    found = semantic_pullback(model, x, 1, RULE, steps=1).flatten(1)
    pulled = sg.pullback(model, x, 1, RULE).flatten(1)
    assert torch.allclose(torch.cosine_similarity(found, pulled), torch.ones(2, dtype=x.dtype))
    assert sg.explainers.by_name("semantic_pullback") == SemanticPullback()
    explained = SemanticPullback(RULE, steps=1)(model, x, torch.tensor([1, 1])).flatten(1)
    assert torch.equal(explained, found)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("steps", 0, "at least 1"),
        ("step_size", 0.0, "must be > 0"),
        ("clip", "first", "each, last, never"),
        ("bounds", (1, -1), "least, greatest"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(option, value, words):
    with pytest.raises(sg.SoftgateError, match=rf"semantic_pullback: {option}.*{words}"):
        semantic_pullback(block_networks.build("convnext"), block_networks.images(), 0, **{option: value})
