"""Reading out whole grids: against a plain loop over cells, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import grids

RULE = sg.Surrogate()
NAMES = ["tench", "church", "golf ball", "ostrich", "gas pump"]
MEAN, STD = (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)
RULES = {"hard: gradient": None, "soft: excitation pullback": RULE}
TARGETS = [0, 2, 3]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2)
        self.second, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.conv(x))))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Classifier().double()
    model(torch.randn(8, 3, 12, 12, dtype=torch.float64))
    return model.train()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def normalize(pixels):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


def read(model, pixels, **settings):
    quick = sg.AccentuationSettings(steps=1, crops=2)
    settings = {"names": NAMES, "mean": MEAN, "std": STD, "accentuation": quick, **settings}
    return grids.read(model, normalize(pixels), [0, 1, 2], TARGETS, RULES, **settings)


def test_a_raw_grid_is_what_a_loop_over_its_cells_gives(model, pixels):
    grid = read(model, pixels, step_size=200.0)
    size = 200.0 * (3 * 12 * 12 / 150528) ** 0.5
    plain = model.eval()
    torch.testing.assert_close(grid.images, pixels)
    for name, rule in RULES.items():
        reading = grid.readings[name]
        for b in range(3):
            x = normalize(pixels[b : b + 1])
            for k, target in enumerate(TARGETS):
                v = sg.pullback(plain, x, target, rule)
                torch.testing.assert_close(reading.values[b, k : k + 1], v)
                along = v / torch.tensor(STD, dtype=v.dtype).view(3, 1, 1)  # d(pixel in [-1, 1]) = 2 std dx
                stepped = (pixels[b] * 2 - 1 + size * along / along.norm()).clamp(-1, 1)
                torch.testing.assert_close(reading.pixels[b, k : k + 1], (stepped + 1) / 2)
                with torch.no_grad():
                    logits = plain(normalize((stepped + 1) / 2))
                    assert reading.before[b, k] == pytest.approx(float(plain(x)[0, target]))
                assert reading.after[b, k] == pytest.approx(float(logits[0, target]))
                assert reading.predicted[b, k] == logits.argmax()
    with torch.no_grad():
        assert grid.predicted == plain(normalize(pixels)).argmax(1).tolist()


def test_an_ascent_grid_is_what_ascend_gives_on_pixels(model, pixels):
    grid = read(model, pixels, kind="ascent", steps=3, step_size=100.0, radius=150.0)
    factor = (3 * 12 * 12 / 150528) ** 0.5
    for name, rule in RULES.items():
        expected = sg.ascend(
            model,
            pixels * 2 - 1,
            TARGETS,
            rule,
            steps=3,
            step_size=100 * factor,
            radius=150 * factor,
            normalize=lambda image: normalize((image + 1) / 2),
        )
        reading = grid.readings[name]
        torch.testing.assert_close(reading.values, expected.difference)
        torch.testing.assert_close(reading.pixels, (expected.image + 1) / 2)
        torch.testing.assert_close(reading.before, expected.logits[..., 0])
        torch.testing.assert_close(reading.after, expected.logits[..., -1])
        assert torch.equal(reading.predicted, expected.predicted[..., 1])
    assert grid.settings["step_size"] == pytest.approx(100 * factor)


def test_reading_out_leaves_the_model_as_it_was(model, pixels):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    sites = sg.attach(model, sg.Surrogate(mix=0.5))
    random = torch.get_rng_state()
    read(model, pixels)
    read(model, pixels, kind="ascent", steps=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert sites.rule == sg.Surrogate(mix=0.5)


def test_the_table_has_one_row_for_each_cell_and_says_which_flipped(model, pixels):
    grid = read(model, pixels, kind="ascent", steps=5, step_size=400.0, radius=4000.0)
    rows = grid.table()
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        reading, b, k = grid.readings[row["read-out"]], row["image"], TARGETS.index(NAMES.index(row["target"]))
        assert row["class"] == NAMES[b]
        assert row["logit before"] == pytest.approx(float(reading.before[b, k]))
        assert row["logit after"] == pytest.approx(float(reading.after[b, k]))
        became = row["predicted after"] == row["target"] != row["predicted before"]
        assert row["flip"] == became
    assert {row["flip"] for row in rows} == {True, False}


@pytest.mark.parametrize("kind", grids.KINDS)
def test_raw_tensors_are_plain_data_that_can_be_saved_and_read(model, pixels, kind, tmp_path):
    grid = read(model, pixels, kind=kind, steps=1)
    torch.save(grid.tensors(), tmp_path / "grid.pt")
    found = torch.load(tmp_path / "grid.pt", weights_only=True)
    assert torch.equal(found["soft"], grid.readings["soft: excitation pullback"].values)
    assert torch.equal(found["hard/after"], grid.readings["hard: gradient"].after)
    assert found["rules"] == {"hard": None, "soft": RULE.to_dict()}
    assert found["names"] == ["tench", "golf ball", "ostrich"]


@pytest.mark.parametrize("kind", grids.KINDS)
@pytest.mark.parametrize("scale", ["cell", "shared", "seismic"])
def test_grids_draw_themselves_on_every_scale(model, pixels, kind, scale):
    picture = read(model, pixels, kind=kind, steps=1).picture("title", scale, {"hard: gradient": 1e-30})
    assert picture.width > 6 * 112
    assert picture.height > (3 if kind == "raw" else 6) * 112


def test_an_accentuated_grid_is_what_accentuate_gives(model, pixels):
    how = sg.AccentuationSettings(steps=3, crops=2, weight=0.5, layer="conv")
    grid = read(model, pixels, kind="accentuation", accentuation=how)
    for name, rule in RULES.items():
        made = sg.accentuate(model, pixels * 2 - 1, TARGETS, rule, how, normalize=lambda p: normalize((p + 1) / 2))
        torch.testing.assert_close(grid.readings[name].pixels, (made.image + 1) / 2)
        torch.testing.assert_close(grid.readings[name].values, made.difference)
        torch.testing.assert_close(grid.readings[name].after, made.logits[..., 1])
        assert torch.equal(grid.readings[name].predicted, made.predicted[..., 1])
    assert grid.settings["passes"] == 3 * 2 * 2 + 2
    assert "3 steps of Adam with 2 crops" in grid._footer()


def test_any_explainer_has_its_block(model, pixels):
    def constant(model, x, target):
        return torch.full_like(x, float(target))

    grid = grids.read(model, pixels, [0, 1, 2], TARGETS, {"constant": constant}, mean=(0, 0, 0), std=(1, 1, 1))
    assert grid.readings["constant"].values[:, :, 0, 0, 0].tolist() == [[0.0, 2.0, 3.0]] * 3
    with pytest.raises(sg.SoftgateError, match=r"kind=ascent: the read-out 'constant' is no rule"):
        grids.read(model, pixels, [0, 1, 2], TARGETS, {"constant": constant}, kind="ascent")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": [0, 5]}, "target=5: the model has the classes 0 to 4"),
        ({"labels": [0, 1, 9]}, "target=9: the model has the classes 0 to 4"),
        ({"labels": [0]}, "labels: 1 for 3 images"),
        ({"targets": []}, "at least one of each"),
        ({"kind": "rawr"}, "kind=rawr.*Did you mean 'raw'"),
        ({"rules": {"labels": None}}, "'labels': a read-out cannot be called that"),
        ({"names": ["a"]}, "names: 1 for a model of 5 classes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(model, pixels, change, said):
    given = {"labels": [0, 1, 2], "targets": TARGETS, "rules": RULES, **change}
    with pytest.raises(sg.SoftgateError, match=said):
        grids.read(model, pixels, **given)
    for wrong in (pixels[:0], pixels[:, :2], pixels[0]):
        with pytest.raises(sg.SoftgateError, match=r"images \[B, 3, H, W\], or \[B, 1, H, W\], are needed"):
            grids.read(model, wrong, [], TARGETS, RULES)


def test_grids_are_read_in_inference_mode(model, pixels):
    expected = read(model, pixels)
    with torch.inference_mode():
        found = read(model, pixels)
    for name, reading in found.readings.items():
        assert torch.equal(reading.values, expected.readings[name].values)


def test_many_read_outs_of_a_raw_grid_stand_below_each_other(model, pixels):
    rules = {f"{k}": sg.Surrogate(sg.gates.Sigmoid(0.1 + k / 10)) for k in range(4)}
    wide = grids.read(model, pixels, [0, 1, 2], [0, 1, 2, 3, 4] * 2, rules, mean=MEAN, std=STD).picture()
    few = grids.read(model, pixels, [0, 1, 2], [0, 1, 2, 3], rules, mean=MEAN, std=STD).picture()
    assert wide.width < 2 * wide.height
    assert few.width > few.height


def test_read_outs_that_are_called_alike_up_to_a_colon_keep_their_own_tensors(model, pixels):
    rules = {f"soft: {gate}": sg.Surrogate(gate) for gate in (sg.gates.Sigmoid(0.3), sg.gates.Sigmoid(0.1))}
    rules |= {"images: the gradient": None}
    grid = grids.read(model, pixels, [0, 1, 2], TARGETS, rules, mean=MEAN, std=STD)
    found = grid.tensors()
    for name in rules:
        assert torch.equal(found[name], grid.readings[name].values)
        assert torch.equal(found[f"{name}/after"], grid.readings[name].after)
    assert torch.equal(found["images"], grid.images)
    assert found["rules"].keys() == rules.keys() == grid.flip_rates().keys()
