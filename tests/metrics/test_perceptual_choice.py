"""Which of two distortions is nearer: distances and agreement against loops over pixels and triplets."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import softgate as sg
from metric_cases import network, probe
from softgate import SoftgateError
from softgate.metrics import (
    FeatureDistance,
    PerceptualChoice,
    choice_agreement,
    corrupt,
    milder_of_another,
    milder_or_stronger,
    of_network,
    pixel_distance,
    severity_ladder,
    ssim_distance,
)


def pixels(count, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(0, 1)


# -- distances ----------------------------------------------------------------------------------------


def slow_ssim(a, b):
    """Wang et al. 2004, equation 13, at every place, the images mirrored at their edges, the mean over colours."""
    steps = np.arange(11) - 5
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2, found = 0.01**2, 0.03**2, []
    shape, pads = a.shape, ((0, 0), (5, 5), (5, 5))
    a, b = np.pad(a, pads, mode="reflect"), np.pad(b, pads, mode="reflect")
    for c, i, j in itertools.product(*map(range, shape)):
        p, q = a[c, i : i + 11, j : j + 11], b[c, i : i + 11, j : j + 11]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
        cov = (window * (p - mp) * (q - mq)).sum()
        found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return sum(found) / len(found)


def test_pixels_and_structure_against_loops():
    a, b = pixels(2), pixels(2, seed=1)
    for i in range(2):
        mse = sum(float(p - q) ** 2 for p, q in zip(a[i].flatten(), b[i].flatten(), strict=True)) / a[i].numel()
        assert float(pixel_distance(a, b)[i]) == pytest.approx(mse, rel=1e-12)
    assert ssim_distance(a, b).tolist() == pytest.approx(
        [1 - slow_ssim(*map(np.asarray, p)) for p in zip(a, b, strict=True)], rel=1e-9
    )


def slow_features(net, layers, a, b):
    """The sum over layers of the mean over places of one minus the cosine, for one pair, from recorded outputs."""
    kept = {}
    for side, x in (("a", a), ("b", b)):
        for name in layers:
            hook = net.get_submodule(name).register_forward_hook(
                lambda module, given, out, key=(side, name): kept.__setitem__(key, out.clone())
            )
            net(x[None])
            hook.remove()
    total = 0.0
    for name in layers:
        u, v = kept["a", name][0], kept["b", name][0]
        places = list(itertools.product(range(u.shape[1]), range(u.shape[2])))
        for i, j in places:
            p, q = u[:, i, j].tolist(), v[:, i, j].tolist()
            norms = math.sqrt(sum(s * s for s in p)) * math.sqrt(sum(s * s for s in q))
            empty = not any(p) and not any(q)
            cosine = 1.0 if empty else sum(s * t for s, t in zip(p, q, strict=True)) / norms if norms else 0.0
            total += (1 - cosine) / len(places)
    return total


def test_features_against_loops_and_the_network_is_as_it_was():
    net, (x, _) = network(), probe(4)
    net.train()
    found = FeatureDistance(net, ["norm1", "conv2"])(x[:2], x[2:])
    assert net.training
    net.eval()
    for i in range(2):
        assert float(found[i]) == pytest.approx(slow_features(net, ["norm1", "conv2"], x[i], x[2 + i]), rel=1e-10)
    one = FeatureDistance(net, ["norm1"])(x[:1], x)
    torch.testing.assert_close(one, FeatureDistance(net, ["norm1"])(x[:1].expand_as(x), x))
    assert not any(module._forward_hooks for module in net.modules())


def test_features_that_are_zero_and_overwritten_ones():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 5, 1).double(), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.conv(x)).mean((2, 3))

    torch.manual_seed(0)
    net, (x, _) = InPlace(), probe(4)
    for layers in (["conv"], ["relu"], ["conv", "relu"]):
        found = FeatureDistance(net, layers)(x[:2], x[2:])
        plain = nn.Sequential(net.conv, nn.ReLU())
        names = [{"conv": "0", "relu": "1"}[name] for name in layers]
        assert [float(v) for v in found] == pytest.approx([slow_features(plain, names, x[i], x[2 + i]) for i in (0, 1)])


def test_a_distance_of_a_networks_images_takes_pixels():
    a, b = pixels(2), pixels(2, seed=1)
    net, mean, std = network(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    centre, spread = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    distance = FeatureDistance(net, ["conv2"])
    expected = distance((a - centre) / spread, (b - centre) / spread)
    torch.testing.assert_close(of_network(distance, mean, std)(a, b), expected)


# -- agreement ----------------------------------------------------------------------------------------


def test_agreement_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    near, far = (torch.randint(4, (60,), generator=generator).double() for _ in range(2))
    judge = torch.randint(6, (60,), generator=generator).double() / 5
    found = choice_agreement(near, far, judge)
    for d0, d1, share, score in zip(*(v.tolist() for v in (near, far, judge, found)), strict=True):
        assert score == pytest.approx(0.5 if d0 == d1 else share if d1 < d0 else 1 - share)
    assert choice_agreement(torch.tensor(math.nan), torch.tensor(0.0), torch.tensor(0.0)).isnan()


def test_the_metric_is_the_mean_within_families_and_over_all_however_it_is_batched():
    generator = torch.Generator().manual_seed(1)
    near, far, judge = (torch.rand(5, 7, generator=generator) for _ in range(3))
    family = torch.randint(2, (5, 7), generator=generator)
    family[3] = 0  # a photograph without triplets of the second
    metric = PerceptualChoice(["blur", "noise"])
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(near[part], far[part], judge[part], family[part])
    found = metric.compute()
    scores = choice_agreement(near, far, judge)
    for number, name in enumerate(("blur", "noise")):
        rows = [scores[i][family[i] == number].mean() for i in range(5) if (family[i] == number).any()]
        assert float(found[name]) == pytest.approx(float(sum(rows) / len(rows)))
    assert float(found["all"]) == pytest.approx(float(scores.mean()))
    low, high = metric.interval()["all"]
    assert low < found["all"] < high


def test_the_mild_one_is_nearer_in_every_pair_of_severities():
    ladder = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]])
    mild, strong, judge, family = milder_or_stronger(ladder)
    expected = [(f, ladder[0, f, a], ladder[0, f, b]) for f in range(2) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert list(zip(family[0].tolist(), mild[0], strong[0], strict=True)) == expected
    metric = PerceptualChoice(["rises", "does not"])
    metric.update(mild, strong, judge, family)
    assert {name: round(float(v), 3) for name, v in metric.compute().items()} == {
        "rises": 1.0, "does not": 0.333, "all": 0.667,
    }  # fmt: skip
    mild, strong, *_ = milder_or_stronger(ladder, neighbours=True)
    assert list(zip(mild[0].tolist(), strong[0].tolist(), strict=True)) == [(1, 2), (2, 3), (3, 1), (1, 2)]


def test_the_mild_one_of_a_family_against_the_strong_one_of_every_other():
    ladder = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mild, strong, judge, family = milder_of_another(ladder)
    assert not judge.any()
    for i in range(2):
        expected = {(a, float(ladder[i, a, 0]), float(ladder[i, b, 3])) for a in range(3) for b in range(3) if a != b}
        assert set(zip(family[i].tolist(), mild[i].tolist(), strong[i].tolist(), strict=True)) == expected


def test_a_ladder_is_the_distance_from_each_photograph_to_its_corruptions():
    images, families = pixels(2), ["fog", "gaussian_noise"]
    net = network().float()
    distances = {
        "pixels": pixel_distance,
        "paths": lambda a, b: sg.paths.kernel_distance(net, a, b),
        "features": FeatureDistance(net, ["conv2"]),
    }
    done = []
    found = severity_ladder(distances, images, families, (1, 4), seed=3, told=done.append)
    assert done == [1, 2]
    for name, distance in distances.items():
        assert found[name].shape == (2, 2, 2)
        for i, f, s in itertools.product(range(2), range(2), range(2)):
            image = images[i : i + 1].float()
            one = distance(image, corrupt(image, families[f], (1, 4)[s], seed=3))
            assert float(found[name][i, f, s]) == pytest.approx(float(one), rel=1e-5)


# -- refusals -----------------------------------------------------------------------------------------

ONE = torch.zeros(1, 1)
REFUSED = {
    "shapes": (lambda: choice_agreement(ONE, ONE, ONE[0]), "shapes .*three that are the same"),
    "judge": (lambda: choice_agreement(ONE, ONE, ONE + 2), r"judge: shares .* \[0, 1\]"),
    "no families": (lambda: PerceptualChoice([]), r"families=\[\]: names"),
    "family called all": (lambda: PerceptualChoice(["all"]), "none 'all'"),
    "family": (lambda: PerceptualChoice(["fog"]).update(ONE, ONE, ONE, ONE.long() + 1), "from 0 to 0"),
    "rows": (lambda: PerceptualChoice(["fog"]).update(ONE[0], ONE[0], ONE[0], ONE[0].long()), r"\[B, T\] twice"),
    "severities": (lambda: severity_ladder({}, pixels(1), ["fog"], (3, 1)), r"severities=\[3, 1\]: two or more"),
    "corruption": (lambda: severity_ladder({}, pixels(1), ["frost"]), "frost: there is no such"),
    "ladder": (lambda: milder_or_stronger(ONE), r"shape \(1, 1\)"),
    "one family": (lambda: milder_of_another(torch.zeros(2, 1, 3)), r"shape \(2, 1, 3\)"),
    "partners": (lambda: pixel_distance(pixels(2), pixels(3)), r"shapes \(2, 3, 16, 16\) and \(3, 3, 16, 16\)"),
    "small": (lambda: ssim_distance(pixels(1, 8), pixels(1, 8)), r"\(8, 8\) pixels; at least 11"),
    "layer": (
        lambda: FeatureDistance(network(), ["conv3"]),
        "layers=conv3: the model has no such layer.* such as conv2",
    ),
    "no layer": (lambda: FeatureDistance(network(), []), r"layers=\[\]"),
    "no network": (lambda: FeatureDistance("net", ["conv"]), "model is of type str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_in_one_sentence(case):
    call, said = REFUSED[case]
    with pytest.raises(SoftgateError, match=said):
        call()


def test_a_layer_that_is_never_called_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return torch.relu(self.used(x)).mean((2, 3))

    with pytest.raises(SoftgateError, match="idle is not called"):
        FeatureDistance(Idle(), ["idle"])(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
