"""Pictures: what is drawn where. Read back as pixels."""

import numpy as np
import pytest
import torch

from softgate import SoftgateError, figures


def test_scaling_is_symmetric_about_zero_whatever_the_size_and_saturates_at_most_half_a_percent():
    v = torch.randn(3, 2, 3, 32, 32) ** 3 * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1, 1, 1)
    scaled = figures.scale_each(v)
    assert torch.allclose(scaled + figures.scale_each(-v), torch.ones_like(v))
    saturated = ((scaled <= 0) | (scaled >= 1)).float().mean(dim=(-3, -2, -1))
    assert saturated.max() <= 0.006
    assert saturated.min() > 0
    one = torch.zeros(3, 32, 32)
    one[0, 0, 0] = 2.0
    assert figures.scale_each(one)[0, 0, 0] == 1  # a single bright pixel stays visible


def test_a_dead_or_broken_pullback_is_mid_grey_not_a_crash():
    v = torch.zeros(2, 3, 4, 4)
    v[1] = float("nan")
    assert torch.equal(figures.scale_each(v), torch.full_like(v, 0.5))


def test_every_cell_of_the_grid_shows_its_own_tensor():
    images = torch.stack([torch.full((3, 96, 96), 0.2), torch.full((3, 96, 96), 0.8)])
    block = torch.zeros(2, 3, 3, 96, 96)
    for row in range(2):
        for k in range(3):
            block[row, k, row] = 1.0 if k < 2 else -1.0  # red in the first row, green in the second
    picture = figures.pullback_grid(
        images, {"a": block, "b": -block}, ["one", "two"], ["x", "y", "z"], [0, 1], [0, 1, 2], "title"
    )
    pixels = np.asarray(picture)
    colours = {tuple(c) for c in pixels.reshape(-1, 3)[::7]}
    for expected in [(51, 51, 51), (204, 204, 204), (255, 128, 128), (128, 255, 128), (0, 128, 128), (128, 0, 128)]:
        assert any(np.abs(np.array(c, int) - expected).max() <= 2 for c in colours), expected
    middle = pixels.shape[1] // 2
    red = [255, 128, 128]
    left = (np.abs(pixels[:, :middle].astype(int) - red).max(-1) <= 2).sum()
    right = (np.abs(pixels[:, middle:].astype(int) - red).max(-1) <= 2).sum()
    assert left > 1.5 * right  # two red cells in block a, one in block b


def test_small_images_are_enlarged_by_a_whole_factor():
    v = torch.randn(1, 1, 3, 8, 8)
    picture = figures.pullback_grid(torch.rand(1, 3, 8, 8), {"a": v}, ["r"], ["c"], [0], [1])
    assert picture.height > figures.CELL


def test_the_own_class_is_framed():
    grey = torch.zeros(2, 2, 3, 96, 96)
    images = torch.full((2, 3, 96, 96), 0.5)
    frame = np.array([214, 39, 40])

    def framed(targets: list[int]) -> int:
        picture = figures.pullback_grid(images, {"a": grey}, ["r", "s"], ["c", "d"], [0, 1], targets)
        return int((np.abs(np.asarray(picture).astype(int) - frame).max(-1) < 40).sum())

    assert framed([0, 1]) > 2 * 96
    assert framed([2, 3]) == 0


def test_a_block_of_the_wrong_shape_is_refused():
    with pytest.raises(SoftgateError, match="grid block 'a' of shape"):
        figures.pullback_grid(torch.rand(1, 3, 8, 8), {"a": torch.rand(1, 2, 3, 8, 8)}, ["r"], ["c"], [0], [1])


def test_curves_draw_every_panel_that_has_points():
    picture = figures.curves({"loss": {"train": [(0, 1.0), (1, 0.5)]}, "empty": {"train": []}})
    both = figures.curves({"loss": {"train": [(0, 1.0)]}, "accuracy": {"val": [(0, 0.5)]}})
    assert both.width > 1.8 * picture.width
    assert np.asarray(picture).std() > 1
    with pytest.raises(SoftgateError, match="no point to draw"):
        figures.curves({"loss": {"train": []}})
