"""The measures of a comparison: each against a slow, obvious reference, and what they leave untouched."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import SoftgateError
from softgate.evaluation.generalization import attacks, scores, sharpness
from softgate.evaluation.generalization.attacks import PGD
from softgate.explainers.adversarial import scaled_l2
from softgate.metrics.corruptions import FAMILIES, corrupt

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


class Net(nn.Sequential):
    def __init__(self, seed=0, width=6, classes=4):
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, classes),
        )  # fmt: skip


def images(count=12, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, size, size, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    return pixels, normalized(pixels), labels


def normalized(pixels):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


# -- scores -------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.1, 8), st.integers(0, 99))
def test_scores_are_those_of_a_plain_loop(count, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    probabilities = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for i in range(count):
        p, label = probabilities[i].tolist(), int(labels[i])
        assert scores.nll(logits, labels)[i] == pytest.approx(-math.log(p[label]), abs=1e-9)
        expected = sum((q - (k == label)) ** 2 for k, q in enumerate(p))
        assert scores.brier(logits, labels)[i] == pytest.approx(expected, abs=1e-9)
        assert scores.correct(logits, labels)[i] == float(p.index(max(p)) == label)
        bins.setdefault(min(14, max(0, math.ceil(max(p) * 15) - 1)), []).append((max(p), p.index(max(p)) == label))
    expected = 0.0
    for members in bins.values():
        expected += abs(sum(c for c, _ in members) - sum(r for _, r in members)) / count
    assert scores.ece(logits, labels) == pytest.approx(expected, abs=1e-6)


# -- attacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacked_images_stay_in_the_ball_and_in_the_range_of_pixels(norm):
    pixels, x, labels = images()
    radius = {"linf": 0.05, "l2": 0.6}[norm]
    standing, found = PGD(norm, radius, steps=4, restarts=2)(Net().eval(), x, labels, MEAN, STD)
    changed = found * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    away = (changed - pixels).flatten(1)
    length = away.abs().amax(1) if norm == "linf" else away.norm(dim=1)
    assert length.max() <= radius * 1.001
    assert changed.min() >= -1e-6
    assert changed.max() <= 1 + 1e-6
    assert torch.equal(standing, Net().eval()(found).argmax(1) == labels)


def test_in_a_linear_network_the_attack_finds_the_worst_image():
    """There the worst point of the cube is known: each pixel moves against the sign of the weights' difference."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    pixels = 0.2 + 0.6 * torch.rand(200, 3, 4, 4)
    labels = net(normalized(pixels)).argmax(1)
    weights = (net[1].weight[1] - net[1].weight[0]).view(3, 4, 4) / torch.tensor(STD).view(3, 1, 1)
    margin = (net(normalized(pixels)) @ torch.tensor([-1.0, 1.0])).abs()
    for norm, radius, most in (("linf", 0.03, weights.abs().sum()), ("l2", 0.2, weights.norm())):
        standing, _ = PGD(norm, radius, steps=20)(Wrapped(net), normalized(pixels), labels, MEAN, STD)
        expected = margin > radius * float(most.detach())
        assert 20 < int(expected.sum()) < 180
        assert (standing != expected).sum() <= 1


class Wrapped(nn.Module):
    """A linear network behind a ReLU that changes nothing, so that there is something to attach to."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(F.relu(x + 100) - 100)


def test_the_attack_uses_the_true_gradient_and_leaves_the_network_as_it_was():
    _, x, labels = images()
    bare, attached = Net().train(), Net().train()
    attack = PGD("linf", 0.03, steps=3)
    expected = attack(bare, x, labels, MEAN, STD)[1]
    with sg.attach(attached, sg.Surrogate(gate=sg.gates.Leaky(-3.0))) as sites:
        found = attack(attached, x, labels, MEAN, STD)[1]
        assert sites.rule is not None
    assert torch.equal(found, expected)
    assert attached.training
    assert all(p.grad is None for p in attached.parameters())
    assert torch.equal(attached[1].running_mean, Net()[1].running_mean)


def test_an_attack_does_not_depend_on_the_batch_and_more_restarts_never_help_the_network():
    _, x, labels = images(20)
    net = Net().eval()
    labels = net(x).argmax(1)
    attack = PGD("l2", 0.5, steps=3)
    whole = attack(net, x, labels, MEAN, STD)[0]
    parts = [attack(net, x[i : i + 7], labels[i : i + 7], MEAN, STD)[0] for i in (0, 7, 14)]
    assert torch.equal(whole, torch.cat(parts))
    harder = PGD("l2", 0.5, steps=3, restarts=4)(net, x, labels, MEAN, STD)[0]
    assert not bool((harder & ~whole).any())
    assert not bool(whole.all())


def test_an_image_that_is_wrong_already_is_not_attacked():
    _, x, _ = images()
    net = Net().eval()
    wrong = (net(x).argmax(1) + 1) % 4
    standing, found = PGD("linf", 0.1)(net, x, wrong, MEAN, STD)
    assert not bool(standing.any())
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"norm": "l1"}, "attack norm=l1"), ({"radius": 0}, "radius=0"), ({"steps": 0}, "steps=0"),
     ({"restarts": 0}, "restarts=0")],
)  # fmt: skip
def test_an_attack_out_of_range_is_refused(change, message):
    with pytest.raises(SoftgateError, match=message):
        PGD(**({"norm": "linf", "radius": 0.1} | change))


def test_l2_radii_change_each_pixel_as_much_at_every_size():
    assert scaled_l2(0.5, 32) == 0.5
    assert scaled_l2(0.5, 128) == 2.0


def test_autoattack_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    with pytest.raises(SoftgateError, match="torchattacks is not installed"):
        attacks.require_auto_attack()


# -- sharpness ----------------------------------------------------------------------------------------


def test_the_largest_eigenvalue_is_that_of_the_whole_hessian():
    _, x, labels = images()
    net = Net(width=3).double().eval()
    x = x.double()
    names, weights = zip(*net.named_parameters(), strict=True)

    def loss(flat):
        parts = torch.split(flat, [p.numel() for p in weights])
        state = {name: part.view_as(p) for name, part, p in zip(names, parts, weights, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, state, x), labels)

    flat = torch.cat([p.detach().flatten() for p in weights])
    expected = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])
    assert sharpness.largest_eigenvalue(net, x, labels, iterations=40) == pytest.approx(expected, rel=2e-3)


def test_sharpness_is_taken_under_the_true_gradient_in_chunks_and_changes_nothing(monkeypatch):
    _, x, labels = images()
    net = Net().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    expected = [sharpness.largest_eigenvalue(net, x, labels), sharpness.ascent_gap(net, x, labels)]
    monkeypatch.setattr(sharpness, "_parts", lambda x, y: zip(x.split(5), y.split(5), strict=True))
    with sg.attach(net, sg.Surrogate()):
        found = [sharpness.largest_eigenvalue(net, x, labels), sharpness.ascent_gap(net, x, labels)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_the_ascent_gap_is_the_rise_of_the_loss_after_one_step_uphill():
    _, x, labels = images()
    net = Net().double().eval()
    x = x.double()
    here = F.cross_entropy(net(x), labels)
    slope = torch.autograd.grad(here, list(net.parameters()))
    length = math.sqrt(sum(float((s * s).sum()) for s in slope))
    found = sharpness.ascent_gap(net, x, labels, 0.2)
    with torch.no_grad():
        for p, s in zip(net.parameters(), slope, strict=True):
            p += 0.2 * s / length
        assert found == pytest.approx(float(F.cross_entropy(net(x), labels) - here))
    assert found > 0


def test_sharpness_of_a_network_that_diverged_is_no_number():
    _, x, labels = images()
    net = Net()
    net[-1].weight.data.fill_(math.nan)
    assert math.isnan(sharpness.largest_eigenvalue(net, x, labels))


# -- corruptions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [16, 40])
def test_a_corruption_is_an_image_file_the_same_in_every_batch_and_worse_with_severity(family, size):
    smooth = F.interpolate(images(6, 5, seed=1)[0], (size, size), mode="bicubic").clamp(0, 1)
    found = {severity: corrupt(smooth, family, severity, seed=3) for severity in (1, 3, 5)}
    for one in found.values():
        assert one.shape == smooth.shape
        assert one.min() >= 0
        assert one.max() <= 1
        torch.testing.assert_close((one * 255).round(), one * 255)
    torch.testing.assert_close(corrupt(smooth[2:4], family, 3, seed=3), found[3][2:4], atol=1 / 250, rtol=0)
    assert not torch.equal(found[1], found[5])
    if family not in ("elastic_transform", "glass_blur"):  # there severities differ in kind
        assert (found[5] - smooth).abs().mean() > (found[1] - smooth).abs().mean()


def test_noise_has_the_published_strength():
    grey = torch.full((4, 3, 64, 64), 0.5)
    assert float((corrupt(grey, "gaussian_noise", 1) - grey).std()) == pytest.approx(0.08, rel=0.05)
    hit = (corrupt(grey, "impulse_noise", 3) - grey).abs() > 0.3
    assert float(hit.float().mean()) == pytest.approx(0.09, rel=0.1)
    shot = corrupt(grey, "shot_noise", 1)
    assert float(shot.var()) == pytest.approx(0.5 / 60, rel=0.1)
    assert float(shot.mean()) == pytest.approx(0.5, abs=0.01)


def test_blurs_keep_a_flat_image_and_brightness_and_contrast_are_hsv_value_and_distance_to_the_mean():
    flat = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for family in (
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "elastic_transform",
        "pixelate",
        "contrast",
    ):
        torch.testing.assert_close(corrupt(flat, family, 5), flat, atol=1 / 250, rtol=0)
    lighter = corrupt(flat, "brightness", 2)[0, :, 0, 0]
    torch.testing.assert_close(lighter, torch.tensor([0.2, 0.4, 0.6]) * 0.8 / 0.6, atol=1 / 250, rtol=0)


def test_a_motion_blur_smears_along_one_direction():
    dot = torch.zeros(1, 3, 65, 65)
    dot[..., 32, 32] = 1.0
    (rows, columns) = (corrupt(dot, "motion_blur", 5)[0, 0] > 0).nonzero().T
    assert columns.max() - columns.min() >= 3
    assert columns.max() - columns.min() >= rows.max() - rows.min() - 1  # within 45 degrees of the horizontal


def test_an_unknown_corruption_is_named():
    with pytest.raises(SoftgateError, match=r"corruptions=frost.*allowed: .*fog"):
        corrupt(torch.zeros(1, 3, 8, 8), "frost", 1)
    with pytest.raises(SoftgateError, match="severity=6"):
        corrupt(torch.zeros(1, 3, 8, 8), "fog", 6)
