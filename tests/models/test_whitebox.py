"""The white-box network: each layer against loops from its formula, in float64, and how it trains."""

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import softgate as sg
from configs import TINY, composed
from softgate import SoftgateError
from softgate.models.whitebox import AffineFeatures, LogicalLayer, RotatedConvolution, TwoStep, WhiteBox, turn
from softgate.training.train import train

# What the pixel function does no rule governs, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:(WhiteBox|TwoStep) selects or bends data:softgate.SoftgateWarning")


def corners(row, column):
    """The four pixels around a place."""
    return itertools.product(*((math.floor(at), math.floor(at) + 1) for at in (row, column)))


def drawn(layer, seed=0):
    """A layer in float64 with parameters moved off their start."""
    torch.manual_seed(seed)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return layer


# -- the pixel function -------------------------------------------------------------------------------


def slow_step(layer, pixel):
    u = 2 * pixel - 1
    side = 0 if u < 0 else 1
    sign, a, t = (-1, 1)[side], layer.heights.tolist()[side], 2 * layer.thresholds.tolist()[side] - 1
    scales = layer.scales.tolist()
    outer, inner = (scales[0], scales[1]) if side == 0 else (scales[3], scales[2])

    def sigma(v, s):
        return v / (s + abs(v))

    if abs(u) < abs(t):
        return a * (sigma(u - t, inner) + sigma(t, inner)) / sigma(abs(t), inner)
    return sign * a + (1 - a) * sigma(u - t, outer) / sigma(1 - abs(t), outer)


@pytest.mark.parametrize("seed", range(5))
def test_the_pixel_function_is_its_formula_rises_and_maps_onto_all_values(seed):
    layer = drawn(TwoStep(), seed)
    layer.renormalise()
    pixels = torch.linspace(0, 1, 301, dtype=torch.float64)
    found = layer(pixels).detach()
    assert found.tolist() == pytest.approx([slow_step(layer, float(p)) for p in pixels], abs=1e-12)
    assert [float(found[i]) for i in (0, 150, -1)] == pytest.approx([-1, 0, 1], abs=1e-12)
    assert bool((found.diff() > 0).all())
    assert float(found.diff().max()) < 0.9  # no jump at a threshold


def test_the_pixel_function_of_an_image_does_not_depend_on_its_batch():
    layer = drawn(TwoStep())
    batch = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(batch)[:1], layer(batch[:1]), rtol=0, atol=0)


# -- the convolution ----------------------------------------------------------------------------------


def slow_turn(image, angle):
    """Each pixel read, bilinearly, where the turn sends it; zero outside."""
    side, middle = len(image), (len(image) - 1) / 2
    out = torch.zeros(side, side, dtype=torch.float64)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for i, j in itertools.product(range(side), repeat=2):
        down, across = i - middle, j - middle
        row, column = middle + s * across + c * down, middle + c * across - s * down
        for r, q in corners(row, column):
            if 0 <= r < side and 0 <= q < side:
                out[i, j] += float(image[r, q]) * (1 - abs(row - r)) * (1 - abs(column - q))
    return out


@pytest.mark.parametrize("angle", [0.0, 11.25, 90.0, 201.0])
def test_a_turn_is_a_turn(angle):
    image = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turn(image, angle), slow_turn(image, angle), atol=1e-9, rtol=0)
    if angle == 90:
        assert any(torch.allclose(turn(image, 90), image.rot90(k)) for k in (1, 3))


def test_the_convolution_is_the_best_response_over_kernels_and_turns():
    layer = drawn(RotatedConvolution(kernels=2, poses=5, side=3))
    x = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    found = layer(x).detach()
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        best = -math.inf
        for kernel, pose in itertools.product(layer.weight.detach(), range(5)):
            turned = slow_turn(kernel, 360 * pose / 5)
            turned = turned / turned.norm()
            response = sum(
                float(turned[r, q] * x[b, 0, i + r - 1, j + q - 1])
                for r, q in itertools.product(range(3), repeat=2)
                if 0 <= i + r - 1 < 4 and 0 <= j + q - 1 < 5
            )
            best = max(best, response)
        assert float(found[b, 0, i, j]) == pytest.approx(max(0.0, best / 3), abs=1e-8)


# -- the templates ------------------------------------------------------------------------------------


def slow_pose(template, pose, size):
    """The padded template read, bilinearly, where the pose sends each pixel about the middle; of norm 1."""
    before, middle = (size - len(template)) // 2, (size - 1) / 2
    padded = torch.zeros(size, size, dtype=torch.float64)
    padded[before : before + len(template), before : before + len(template)] = template
    out = torch.zeros(size, size, dtype=torch.float64)
    (a, b, shift_across), (c, d, shift_down) = pose.tolist()
    for i, j in itertools.product(range(size), repeat=2):
        across, down = j - middle, i - middle
        column, row = middle + a * across + b * down + shift_across, middle + c * across + d * down + shift_down
        for r, q in corners(row, column):
            if 0 <= r < size and 0 <= q < size:
                out[i, j] += float(padded[r, q]) * (1 - abs(row - r)) * (1 - abs(column - q))
    return out / out.norm()


@pytest.mark.parametrize("size", [6, 7])
def test_features_are_the_best_scalar_product_over_affine_poses(size):
    layer = drawn(AffineFeatures(features=3, poses=4, size=size, side=4))
    x = torch.randn(5, 1, size, size, dtype=torch.float64)
    found = layer(x).detach()
    for f in range(3):
        posed = [slow_pose(layer.weight[f].detach(), layer.poses[f, p].detach(), size) for p in range(4)]
        for b in range(5):
            best = max(float((one * x[b, 0]).sum()) for one in posed)
            assert float(found[b, f]) == pytest.approx(max(0.0, best), abs=1e-8)


# -- the logical layer --------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "classes"), [(8, 2), (6, 3), (3, 3), (2, 1)])
def test_a_class_is_the_best_roll_of_its_largest_weight_and_the_weights_of_the_others(features, classes):
    layer = drawn(LogicalLayer(features, classes))
    x = torch.rand(4, features, dtype=torch.float64)
    found, share = layer(x).detach(), features // classes
    for b, c in itertools.product(range(4), range(classes)):
        own = range(c * share, (c + 1) * share)
        kept = max(own, key=lambda j, c=c: float(layer.weight.detach()[c, j]))
        scores = []
        for roll in range(share):  # the largest weight alone, rolled within the class's own features
            weights = [0.0 if j in own else float(layer.weight[c, j]) for j in range(features)]
            weights[c * share + (kept - c * share + roll) % share] = float(layer.weight[c, kept])
            scores.append(sum(w * float(v) for w, v in zip(weights, x[b], strict=True)))
        assert float(found[b, c]) == pytest.approx(max(scores), abs=1e-12)


# -- the network --------------------------------------------------------------------------------------


def small(**options):
    torch.manual_seed(0)
    return WhiteBox(**{"features": 4, "poses": 4, "size": 12, **options})


def test_the_published_network_has_4810_parameters():
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in WhiteBox().named_children()}
    assert count == {"pixel": 8, "conv": 50, "affine": 3200 + 1536, "logical": 16}


def test_it_takes_images_as_the_data_normalises_them():
    net, pixels = small().double().eval(), torch.rand(3, 1, 12, 12, dtype=torch.float64)
    other = small(mean=[0.1307], std=[0.3081]).double().eval()
    torch.testing.assert_close(other((pixels - 0.1307) / 0.3081), net(pixels))


def test_every_maximum_over_poses_is_a_call_site():
    net = small().eval()
    with sg.attach(net, sg.Surrogate()) as sites:
        net(torch.rand(2, 1, 12, 12)).sum().backward()
        found = {site.name: site.covered for site in sites.table()}
    expected = ["conv.amax", "conv.relu", "affine.amax", "affine.relu", "logical.amax"]
    assert found == dict.fromkeys(expected, True)


def test_soft_pooling_over_poses_spreads_the_gradient_by_the_softmax_of_the_scores():
    layer = drawn(AffineFeatures(features=2, poses=3, size=6, side=4))
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    templates = layer.templates().detach().flatten(2)
    scores = templates @ x.detach().flatten()
    rule = sg.Surrogate(gate=sg.gates.Hard(), pool=sg.pools.LSE(0.7))
    with sg.attach(layer, rule):
        layer(x).sum().backward()
    expected = torch.zeros(36, dtype=torch.float64)
    for f in range(2):
        weights = [math.exp(float(s) / 0.7) for s in scores[f]]
        if float(scores[f].max()) > 0:
            for p in range(3):
                expected += weights[p] / sum(weights) * templates[f, p]
    torch.testing.assert_close(x.grad.flatten(), expected)


def norms(net):
    return [float(v) for v in (*net.conv.weight.flatten(1).norm(dim=1), *net.affine.weight.flatten(1).norm(dim=1))]


def test_weights_are_normalised_before_each_step_of_anybodys_loop():
    net, x, labels = small(), torch.rand(6, 1, 12, 12), torch.arange(6) % 2
    optimizer = torch.optim.Adam(net.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        assert norms(net) == pytest.approx([1.0] * 6, rel=1e-5)
        assert 0.0099 <= float(net.pixel.thresholds[0].detach()) <= 0.4901
        assert 0.5099 <= float(net.pixel.thresholds[1].detach()) <= 0.9901
        again = F.cross_entropy(net(x), labels)  # two passes before one backward
        (loss + again).backward()
        optimizer.step()
        assert norms(net) != pytest.approx([1.0] * 6, rel=1e-3)


def test_evaluation_and_functional_calls_change_no_weights():
    net = small()
    with torch.no_grad():
        net.affine.weight.mul_(3.0)
    state = copy.deepcopy(net.state_dict())
    x = torch.rand(2, 1, 12, 12)
    expected = net.eval()(x)
    sg.pullback(net, x, 0, sg.Surrogate())
    given = {name: value.detach().clone() for name, value in net.named_parameters()}
    found = torch.func.functional_call(net.train(), given, (x,))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(found, expected)
    net(x)
    assert not torch.equal(net.affine.weight, state["affine.weight"])


def digits(path: Path):
    """Threes and fives of 60 images: bars at the top or at the bottom, in noise."""
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3 + 3
    images = 40 * torch.rand(60, 28, 28, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[6 : 10 if label == 3 else 6] += 200
        image[18 : 22 if label == 5 else 18] += 200
    np.savez(path / "mnist-made.npz", images=images.byte().numpy(), labels=labels.numpy())


WORDS = ("model=whitebox", "data=mnist", "data.classes=[3,5]", "data.size=12", "model.poses=4", "data.batch_size=8")


@pytest.mark.slow  # a whole run
def test_the_command_trains_it_and_its_checkpoint_is_read(tmp_path):
    from softgate.evaluation.evaluate import restore

    digits(tmp_path)
    tiny = [word for word in TINY if not word.startswith(("data", "model"))]
    words = (*tiny, *WORDS, f"data.root={tmp_path}", "trainer.max_epochs=1", "callbacks=none", "data.num_workers=0")
    summary = train(composed(*words, directory=tmp_path / "run"))
    assert summary["status"] == "finished"
    module, about = restore(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert isinstance(module.net, WhiteBox)
    assert module.net.mean == pytest.approx(0.1307)
    assert about["size"] == 12


REFUSED = {
    "odd": ({"features": 7}, r"model\.features=7: 2 classes share them evenly; a multiple of 2"),
    "ten classes": ({"num_classes": 10}, r"model\.features=8: 10 classes share them evenly; a multiple of 10"),
    "half": ({"features": 4.5}, r"model\.features=4\.5: a whole number"),
    "no poses": ({"poses": 0}, r"model\.poses=0: a whole number >= 1"),
    "no kernels": ({"kernels": 0}, r"model\.kernels=0: a whole number >= 1"),
    "colours": ({"mean": [0.1, 0.2, 0.3]}, r"model\.mean=\[0\.1, 0\.2, 0\.3\]: grey images have one"),
    "std": ({"std": 0.0}, r"model\.std=0\.0: a number > 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_in_one_sentence(case):
    options, said = REFUSED[case]
    with pytest.raises(SoftgateError, match=said):
        WhiteBox(**{"features": 8, **options})


def test_other_layers_and_images_that_do_not_fit_are_refused_too():
    with pytest.raises(SoftgateError, match=r"model\.side=4: an odd number"):
        RotatedConvolution(side=4)
    with pytest.raises(SoftgateError, match=r"model\.side=9: templates of 1 to 8 pixels"):
        AffineFeatures(size=8, side=9)
    with pytest.raises(SoftgateError, match=r"shape \(1, 3, 12, 12\): grey images \[B, 1, 12, 12\] are needed"):
        small()(torch.rand(1, 3, 12, 12))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.features=7", r"model\.features=7: 2 classes share them evenly"),
        ("data.channels=3", "grey images .*data.channels=1"),
        ("data.classes=[3,11]", r"data\.classes.*11"),
        ("+model.pose=3", r"model\.pose: .*poses"),
    ],
)
def test_the_command_says_in_one_sentence_what_does_not_fit(tmp_path, word, said):
    digits(tmp_path)
    grey = ("data.mean=[0.1,0.1,0.1]", "data.std=[0.3,0.3,0.3]") if "channels" in word else ()
    words = (*WORDS, f"data.root={tmp_path}", "callbacks=none", word, *grey)
    with pytest.raises(SoftgateError, match=said) as caught:
        train(composed(*words, directory=tmp_path / "run"))
    assert "\n" not in str(caught.value)
