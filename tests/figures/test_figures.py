"""Pictures: what is drawn where. Read back as pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from softgate import SoftgateError, grids
from softgate.grids.sheet import width_of, wrap


def test_scaling_is_symmetric_about_zero_whatever_the_size_and_saturates_at_most_half_a_percent():
    v = torch.randn(3, 2, 3, 32, 32) ** 3 * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1, 1, 1)
    scaled = grids.scale_each(v)
    assert torch.allclose(scaled + grids.scale_each(-v), torch.ones_like(v))
    saturated = ((scaled <= 0) | (scaled >= 1)).float().mean(dim=(-3, -2, -1))
    assert saturated.max() <= 0.006
    assert saturated.min() > 0
    one = torch.zeros(3, 32, 32)
    one[0, 0, 0] = 2.0
    assert grids.scale_each(one)[0, 0, 0] == 1  # a single bright pixel stays visible


def test_a_dead_or_broken_pullback_is_mid_grey_not_a_crash():
    v = torch.zeros(2, 3, 4, 4)
    v[1] = float("nan")
    assert torch.equal(grids.scale_each(v), torch.full_like(v, 0.5))


def test_every_cell_of_the_grid_shows_its_own_tensor():
    images = torch.stack([torch.full((3, 96, 96), 0.2), torch.full((3, 96, 96), 0.8)])
    block = torch.zeros(2, 3, 3, 96, 96)
    for row in range(2):
        for k in range(3):
            block[row, k, row] = 1.0 if k < 2 else -1.0  # red in the first row, green in the second
    picture = grids.pullback_grid(
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
    picture = grids.pullback_grid(torch.rand(1, 3, 8, 8), {"a": v}, ["r"], ["c"], [0], [1])
    assert picture.height > grids.CELL


def test_the_own_class_is_framed():
    grey = torch.zeros(2, 2, 3, 96, 96)
    images = torch.full((2, 3, 96, 96), 0.5)
    frame = np.array([214, 39, 40])

    def framed(targets: list[int]) -> int:
        picture = grids.pullback_grid(images, {"a": grey}, ["r", "s"], ["c", "d"], [0, 1], targets)
        return int((np.abs(np.asarray(picture).astype(int) - frame).max(-1) < 40).sum())

    assert framed([0, 1]) > 2 * 96
    assert framed([2, 3]) == 0


def test_a_block_of_the_wrong_shape_is_refused():
    with pytest.raises(SoftgateError, match="grid block 'a' of shape"):
        grids.pullback_grid(torch.rand(1, 3, 8, 8), {"a": torch.rand(1, 2, 3, 8, 8)}, ["r"], ["c"], [0], [1])


# -- scales -------------------------------------------------------------------------------------------


def test_a_shared_scale_keeps_ratios_between_pullbacks_and_saturates_half_a_percent_of_all():
    v = torch.randn(4, 3, 32, 32) * torch.tensor([0.1, 0.5, 1.0, 2.0]).view(4, 1, 1, 1)
    scaled = grids.scale_shared(v)
    assert torch.allclose(scaled + grids.scale_shared(-v), torch.ones_like(v))
    assert 0.004 <= ((scaled <= 0) | (scaled >= 1)).float().mean() <= 0.006
    inside = (scaled > 0) & (scaled < 1)
    assert torch.allclose((scaled - 0.5)[inside], (v / (2 * grids.peak(v)))[inside], atol=1e-6)
    assert (grids.scale_shared(v, 1e9) - 0.5).abs().max() < 1e-6


def test_a_heat_map_is_blue_below_zero_white_at_zero_and_red_above_of_the_sum_over_channels():
    v = torch.zeros(1, 3, 2, 2)
    v[0, :, 0, 0] = torch.tensor([2.0, -1.0, 1.0])
    v[0, :, 0, 1] = torch.tensor([-1.0, -1.0, 0.0])
    v[0, :, 1, 0] = torch.tensor([1.0, -1.0, 0.0])  # sums to zero
    red, blue, white = (grids.seismic(v)[0, :, r, c] for r, c in ((0, 0), (0, 1), (1, 0)))
    assert red[0] > 0.4
    assert red[1:].max() < 0.05
    assert blue[2] > 0.25
    assert blue[:2].max() < 0.05
    assert white.min() > 0.95


@pytest.mark.parametrize("v", [torch.zeros(3, 4, 4), torch.full((3, 4, 4), float("nan"))])
def test_dead_and_broken_pullbacks_have_the_colour_of_zero_on_every_scale(v):
    assert grids.peak(v) == 0
    assert torch.equal(grids.scale_shared(v), torch.full_like(v, 0.5))
    assert grids.seismic(v).min() > 0.95


def test_an_unknown_scale_is_named():
    block = {"a": torch.rand(1, 1, 3, 8, 8)}
    with pytest.raises(SoftgateError, match=r"scale=shard.*Did you mean 'shared'"):
        grids.pullback_grid(torch.rand(1, 3, 8, 8), block, ["r"], ["c"], [0], [1], scale="shard")


# -- words --------------------------------------------------------------------------------------------


@given(st.text("abc defgh", max_size=60), st.integers(20, 200), st.integers(1, 4))
def test_words_never_take_more_room_than_they_have(words, width, lines):
    found = wrap(words, width, lines)
    assert 1 <= len(found) <= lines
    assert all(width_of(line) <= width for line in found)
    if width_of(words) <= width:
        assert found == [" ".join(words.split())]


def test_words_stand_under_the_cells_and_flipped_ones_are_green():
    images, values = torch.ones(1, 3, 112, 112), torch.ones(1, 2, 3, 112, 112)
    block = grids.Block(values, True, [[["Chesapeake Bay retriever", "1 -> 2"], ["dog", "3 -> 4"]]], [[False, True]])
    picture = grids.pullback_grid(images, {"a": block}, ["row"], ["x", "y"], [5], [0, 1])
    plain = grids.pullback_grid(images, {"a": grids.Block(values, True)}, ["row"], ["x", "y"], [5], [0, 1])
    assert picture.height > plain.height + 24
    pixels = np.asarray(picture).astype(int)
    green = np.abs(pixels - [26, 127, 55]).max(-1) < 60
    grey = (np.abs(pixels - 89).max(-1) < 40) & ~green
    assert green.any()
    where = np.nonzero(green)[1]
    assert where.min() > np.nonzero(grey)[1].min()  # the second cell's words are right of the first's
    columns = np.nonzero((pixels.min(-1) < 200)[-40:].any(0))[0]
    gaps = np.diff(columns)
    assert gaps.max() > 5  # the long name was cut and does not run into its neighbour


def test_blocks_stand_side_by_side_or_below_each_other():
    images, v = torch.rand(1, 3, 112, 112), torch.rand(1, 2, 3, 112, 112)
    blocks = {"a": v, "b": v, "c": v, "d": v}
    wide = grids.pullback_grid(images, blocks, ["r"], ["x", "y"], [0], [0, 1])
    square = grids.pullback_grid(images, blocks, ["r"], ["x", "y"], [0], [0, 1], across=2)
    assert wide.width > 1.6 * square.width
    assert square.height > 1.6 * wide.height


# -- film ---------------------------------------------------------------------------------------------


def test_a_film_shows_every_epoch_once_in_order(tmp_path):
    levels = torch.linspace(-1, 1, 5).view(5, 1, 1, 1)
    film = levels.expand(5, 3, 112, 112)
    strip = grids.film_strip(torch.zeros(3, 112, 112), {"a": film}, range(5), scale="shared")
    middle = np.asarray(strip)[strip.height // 2 + 10, :, 0]
    changes = np.nonzero(np.diff(middle.astype(int)))[0] + 1
    runs = [int(part[0]) for part in np.split(middle, changes) if len(part) >= 112]
    assert runs[-5:-1] == [0, 64, 128, 191]  # the last epoch is white as the sheet
    assert runs[-6] == 0  # the image, left of them
    path = tmp_path / "film.gif"
    grids.animation(torch.zeros(3, 112, 112), {"a": film, "b": -film}, range(5), path, scale="shared")
    with Image.open(path) as moving:
        assert moving.n_frames == 5
    assert [p.name for p in tmp_path.iterdir()] == ["film.gif"]
    assert path.stat().st_size < 40_000


def test_a_film_without_pictures_or_with_missing_ones_is_refused():
    with pytest.raises(SoftgateError, match="no epoch"):
        grids.film_strip(torch.zeros(3, 8, 8), {}, [])
    with pytest.raises(SoftgateError, match="film 'a' has 2 pictures for 3 epochs"):
        grids.film_strip(torch.zeros(3, 8, 8), {"a": torch.zeros(2, 3, 8, 8)}, [0, 1, 2])


def test_charts_are_drawings_of_a_phones_width_with_their_words_as_text():
    from xml.etree import ElementTree

    from softgate.figures import comparison
    from softgate.figures.panels import Line

    rows = [
        comparison.Interval("arm <a>", 0.1, -0.2, 0.4, (0.0, 0.2), claim=True),
        comparison.Interval("b", 1.0, *[float("nan")] * 2),
    ]
    line = Line([(0, 1.0), (1, 2.0)], [(0, 0.5), (1, 1.5)], [(0, 1.5), (1, 2.5)])
    made = {
        "forest": comparison.forest(rows, "top-1", "points"),
        "curves": comparison.curves({"a": line, "a, hard": Line(())}, {"a": 0, "a, hard": 0}, "loss"),
        "scatter": comparison.scatter({"a": [(1.0, 2.0)], "b": []}, "title", "x", "y"),
    }
    made = {name: chart.encoded("svg") for name, chart in made.items()}
    for name, chart in made.items():
        root = ElementTree.fromstring(chart)
        width = float(root.get("width").removesuffix("pt"))
        assert width * 96 / 72 <= 375, name
    words = "".join(ElementTree.fromstring(made["forest"]).itertext())
    for part in ("arm <a>", "top-1", "points"):
        assert part in words
    assert made["forest"] == comparison.forest(rows, "top-1", "points").encoded("svg")


def test_a_users_settings_of_matplotlib_change_no_chart_and_no_chart_changes_them():
    import matplotlib as mpl

    from softgate.figures import comparison, panels, paths

    points = [(0, 1.0), (1, 0.5), (2, 0.2)]
    line = panels.Line(points)
    drawn = {
        "panels": lambda: panels.draw({"a": {"hard": line, "soft": line}}, "title").encoded("png"),
        "dots": lambda: panels.dots({"m": [panels.Dots("a", {"x": (0.5, 0.4, 0.6)})]}, ["x"]).encoded("svg"),
        "heat maps": lambda: paths.heat_maps({"a": np.eye(2)}, [0, 1]).encoded("png"),
        "swap curves": lambda: paths.swap_curves({"a": {"b": ("hard", line)}}).encoded("pdf"),
        "curves": lambda: comparison.curves({"a": line}, {"a": 0}, "loss").encoded("svg"),
        "forest": lambda: comparison.forest([comparison.Interval("a", 0.1, 0.0, 0.2)], "top", "points").encoded("svg"),
        "scatter": lambda: comparison.scatter({"a": points}, "title", "x", "y").encoded("svg"),
    }
    before = {name: draw() for name, draw in drawn.items()}
    mine = {"font.size": 22, "axes.facecolor": "red", "figure.dpi": 31, "svg.fonttype": "path", "lines.linewidth": 9}
    with mpl.rc_context(mine):
        for name, draw in drawn.items():
            assert draw() == before[name], name
        assert {key: mpl.rcParams[key] for key in mine} == mine
