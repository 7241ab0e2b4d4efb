"""The path kernel against a brute-force sum over all paths, and what is made of kernels."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import softgate as sg
from path_networks import RULE, images, network, odd
from softgate import SoftgateError
from softgate.paths import similarity

# A network is a list of layers: its forward and its sum over paths are two readings of the same list.


class Random(nn.Module):
    """A small random network with convolutions, groups, strides, BatchNorm, skips, concatenation and pooling."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.plan, self.parts = [], nn.ModuleList()
        self.channels, size = int(self.rng.integers(1, 3)), int(self.rng.integers(3, 5))
        self.shape = (self.channels, size, size)
        for _ in range(int(self.rng.integers(1, 4))):
            self.plan.append(self._layer(size))
            size = self._size()
        self.head = nn.Linear(self.channels * size**2, 2)

    def _size(self):
        with torch.no_grad():
            return self.eval().layers(torch.zeros(1, *self.shape)).shape[-1]

    def _conv(self, out, stride=1, groups=1):
        kernel = int(self.rng.choice([1, 3]))
        conv = nn.Conv2d(self.channels, out, kernel, stride, kernel // 2, groups=groups)
        norm = nn.BatchNorm2d(out) if self.rng.random() < 0.5 else nn.Identity()
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        self.parts.append(nn.Sequential(conv, norm))
        return conv, self.parts[-1]

    def _layer(self, size):
        kind = self.rng.choice(["conv", "conv", "skip", "cat", "max", "avg"]) if self.plan else "conv"
        if kind in ("max", "avg") and size >= 2:
            return kind, None, None
        groups = self.channels if self.rng.random() < 0.3 else 1
        if kind == "skip":
            conv, module = self._conv(self.channels, groups=groups)
        elif kind == "cat":
            conv, module = self._conv(self.channels, groups=groups)
            self.channels *= 2
        else:
            kind = "conv"
            out = groups * int(self.rng.integers(1, 3))
            conv, module = self._conv(out, int(self.rng.integers(1, 3)), groups)
            self.channels = out
        return kind, conv, module

    def layers(self, x):
        for kind, _, module in self.plan:
            if kind == "max":
                x = nn.functional.max_pool2d(x, 2, 2, ceil_mode=True)
            elif kind == "avg":
                x = nn.functional.avg_pool2d(x, 2)
            else:
                y = torch.relu(module(x))
                if kind == "skip":
                    x += y  # in place, as in ResNet
                    x = torch.relu_(x)
                else:
                    x = torch.cat([x, y], 1) if kind == "cat" else y
        return x

    def forward(self, x):
        return self.head(self.layers(x).flatten(1))


class Paths:
    """For each unit the list of all paths that end there: [C][H][W] of arrays [paths, 3] of phi(x), phi(x'), factor."""

    def __init__(self, units):
        self.units = units

    @classmethod
    def start(cls, x, x2):
        made = np.empty(x.shape, object)
        for at in np.ndindex(*x.shape):
            made[at] = np.array([[x[at], x2[at], 1.0]])
        return cls(made)

    def conv(self, conv):
        (kernel, _), (stride, _), pad = conv.kernel_size, conv.stride, conv.padding[0]
        channels, height, width = self.units.shape
        size = [(n + 2 * pad - kernel) // stride + 1 for n in (height, width)]
        out = np.empty((conv.out_channels, *size), object)
        inside, outside = channels // conv.groups, conv.out_channels // conv.groups
        for c, i, j in np.ndindex(*out.shape):
            group, found = c // outside, [np.empty((0, 3))]
            for source in range(group * inside, (group + 1) * inside):
                for di, dj in np.ndindex(kernel, kernel):
                    row, column = i * stride - pad + di, j * stride - pad + dj
                    if 0 <= row < height and 0 <= column < width:
                        found.append(self.units[source, row, column])
            out[c, i, j] = np.concatenate(found)
        return Paths(out)

    def gated(self, a, b):
        out = np.empty(self.units.shape, object)
        for at in np.ndindex(*out.shape):
            out[at] = self.units[at] * np.array([float(a[at]), float(b[at]), 1.0])
        return Paths(out)

    def plus(self, other):
        out = np.empty(self.units.shape, object)
        for at in np.ndindex(*out.shape):
            out[at] = np.concatenate([self.units[at], other.units[at]])
        return Paths(out)

    def pooled(self, wa, wb, factor):
        """Windows of 2 x 2; weights [4, oH, oW] of the two images, and a fixed factor."""
        channels, height, width = self.units.shape
        size = wa.shape[-2:]
        out = np.empty((channels, *size), object)
        for c, i, j in np.ndindex(*out.shape):
            found = [np.empty((0, 3))]
            for place, (di, dj) in enumerate(np.ndindex(2, 2)):
                if 2 * i + di < height and 2 * j + dj < width:
                    weight = np.array([float(wa[c, place, i, j]), float(wb[c, place, i, j]), factor])
                    found.append(self.units[c, 2 * i + di, 2 * j + dj] * weight)
            out[c, i, j] = np.concatenate(found)
        return Paths(out)

    def total(self):
        every = np.concatenate(self.units.ravel().tolist())
        return every.prod(1).sum(), len(every)


def brute_force(net, x, x2, first, second):
    """The kernel of one pair, path by path; and how many paths there are."""
    paths = Paths.start(x.numpy(), x2.numpy())
    names = iter(first.sites)

    def gates():
        name = next(names)
        return first.sites[name].weights()[0], second.sites[name].weights()[0]

    for kind, conv, _ in net.plan:
        if kind == "max":
            paths = paths.pooled(*gates(), 1.0)
        elif kind == "avg":
            channels, height, width = paths.units.shape
            ones = torch.ones(channels, 4, height // 2, width // 2)
            paths = paths.pooled(ones, ones, 0.25)
        else:
            y = paths.conv(conv).gated(*gates())
            if kind == "conv":
                paths = y
            elif kind == "skip":
                paths = paths.plus(y).gated(*gates())
            else:
                paths = Paths(np.concatenate([paths.units, y.units]))
    return paths.total()


def test_the_kernel_equals_the_sum_over_all_paths_on_200_random_networks():
    alive, most, kinds = 0, 0, set()
    for seed in range(200):
        torch.manual_seed(seed)
        net = Random(seed).double().eval()
        x = torch.randn(2, *net.shape, dtype=torch.float64)
        rule = RULE if seed % 2 else None
        gates = sg.paths.record(net, x, rule)
        found = sg.paths.kernel(net, x[:1], x[1:], rule).item()
        expected, count = brute_force(net, x[0], x[1], gates[:1], gates[1:])
        assert math.isclose(found, expected, rel_tol=1e-10, abs_tol=1e-12), (seed, found, expected)
        alive += expected != 0
        most, kinds = max(most, count), kinds | {kind for kind, _, _ in net.plan}
    assert kinds == {"conv", "skip", "cat", "max", "avg"}
    assert most > 10_000
    assert alive > 150


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
def test_equation_23_equals_it_on_chains_and_not_with_a_skip(rule):
    for seed in range(20):
        torch.manual_seed(seed)
        sizes = [4, *torch.randint(3, 7, (seed % 3 + 1,)).tolist()]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*layers, nn.Linear(sizes[-1], 3)).double()
        x, x2 = torch.randn(3, 4).double(), torch.randn(2, 4).double()
        sign, log = sg.paths.product_kernel(x, sg.paths.record(net, x, rule), x2, sg.paths.record(net, x2, rule))
        found = sg.paths.kernel(net, x, x2, rule)
        assert torch.allclose(found, sign * log.exp(), rtol=1e-12, atol=1e-12)
        mine, size = sg.paths.kernel(net, x, x2, rule, log=True)
        assert torch.allclose(found, mine * size.exp(), rtol=1e-12)
    torch.manual_seed(0)
    net = Random(3).double().eval()
    x = torch.randn(2, *net.shape, dtype=torch.float64)
    gates = sg.paths.record(net, x, RULE)
    sign, log = sg.paths.product_kernel(x, gates, x, gates)
    assert not torch.allclose(sg.paths.kernel(net, x, None, RULE), sign * log.exp(), rtol=0.01)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "squeezenet1_1"])
def test_it_is_a_symmetric_kernel_of_any_depth(name):
    torch.manual_seed(0)
    settings = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, num_classes=4, **settings).eval()
    x = images(4, 33, torch.float32)
    sign, log = sg.paths.kernel(net, x, None, RULE, log=True)
    whole = sg.paths.kernel(net, x[:2], x, RULE, log=True, pairs=3)
    for half, full in zip((sign, log), whole, strict=True):
        assert torch.allclose(half[:2], full, rtol=1e-9)
    assert bool((sign.diagonal() > 0).all())
    assert log.isfinite().all()
    values = torch.linalg.eigvalsh(similarity.cosine_kernel(sign, log))
    assert values.min() > -1e-9


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
def test_the_kernel_of_partners_and_its_distance_are_the_sum_over_all_paths_too(rule):
    for seed in range(12):
        torch.manual_seed(seed)
        net = Random(seed).double().eval()
        x = torch.randn(4, *net.shape, dtype=torch.float64)
        gates = sg.paths.record(net, x, rule)

        def slow(i, j, net=net, x=x, gates=gates):
            return brute_force(net, x[i], x[j], gates[i : i + 1], gates[j : j + 1])[0]

        for first, second in (([0, 1], [2, 3]), ([0, 0, 0], [1, 2, 3])):
            given = x[: len(set(first))]
            sign, log = sg.paths.paired_kernel(net, given, x[second], rule, pairs=2)
            found = sg.paths.kernel_distance(net, given, x[second], rule, pairs=2)
            for place, (i, j) in enumerate(zip(first, second, strict=True)):
                both, own, theirs = slow(i, j), slow(i, i), slow(j, j)
                assert math.isclose(float(sign[place] * log[place].exp()), both, rel_tol=1e-10, abs_tol=1e-12)
                distance = 1 - both / math.sqrt(own * theirs) if own * theirs else 1.0
                assert float(found[place]) == pytest.approx(distance, abs=1e-9)


def test_an_image_is_at_no_distance_from_itself_and_a_dead_one_at_1_from_all():
    net = network("resnet18")
    x = images(2, 33)
    torch.testing.assert_close(sg.paths.kernel_distance(net, x, x, RULE), torch.zeros(2).double(), atol=1e-9, rtol=0)
    dead = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    nn.init.constant_(dead[0].bias, -100.0)
    assert sg.paths.kernel_distance(dead, torch.ones(1, 3).double(), torch.ones(2, 3).double()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("function", ["paired_kernel", "kernel_distance"])
def test_images_without_partners_are_refused(function):
    for x2 in (images(3, 33), images(2, 32), images(2, 33)[:0]):
        with pytest.raises(SoftgateError, match=rf"paths\.{function}: images of shapes .* one x for all"):
            getattr(sg.paths, function)(network("resnet18"), images(2, 33), x2)


def test_weights_and_constants_play_no_part_beyond_the_gates():
    net = network("resnet18")
    x = images(2, 33)
    gates = sg.paths.record(net, x)
    before = sg.paths.kernel(net, x)
    with torch.no_grad():
        for module in net.modules():  # scaled by positive numbers, all gates stay
            if isinstance(module, nn.Linear):
                module.weight.mul_(-3.0)
                module.bias.add_(5.0)
    assert all(torch.equal(site.values, sg.paths.record(net, x).sites[n].values) for n, site in gates.sites.items())
    assert torch.equal(sg.paths.kernel(net, x), before)


def test_what_has_no_path_kernel_is_refused():
    with pytest.raises(SoftgateError, match="only ReLU"):
        sg.paths.kernel(odd(), images(2, 12))

    class Squared(nn.Module):
        def forward(self, x):
            x = torch.relu(x)
            return x * x

    with pytest.raises(SoftgateError, match="product"):
        sg.paths.kernel(Squared(), torch.ones(1, 3))

    deep = nn.Sequential(*[part for _ in range(400) for part in (nn.Linear(9, 9), nn.ReLU())], nn.Linear(9, 2))
    for module in deep.modules():
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 1 / 9)
            nn.init.zeros_(module.bias)
    with pytest.raises(SoftgateError, match="log=True"):
        sg.paths.kernel(deep, torch.ones(1, 9))
    _, log = sg.paths.kernel(deep, torch.ones(1, 9), log=True)
    assert math.isclose(log.item(), 401 * math.log(9), rel_tol=1e-12)


def test_cka_alignment_and_accuracy_have_the_values_known_for_simple_kernels():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    k = features @ features.T
    assert math.isclose(similarity.cka(k, 3 * k + 2), 1.0)
    other = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    other = other @ other.T
    h = torch.eye(30, dtype=torch.float64) - 1 / 30
    a, b = h @ k @ h, h @ other @ h
    assert math.isclose(similarity.cka(k, other), float((a * b).sum() / (a.norm() * b.norm())), rel_tol=1e-12)
    assert math.isclose(similarity.cka(k, 3 * k + 2, debiased=True), 1.0)
    near_identity = [torch.eye(30, dtype=torch.float64) + 1e-6 * m for m in (k, other)]
    assert similarity.cka(*near_identity) > 0.999
    assert abs(similarity.cka(*near_identity, debiased=True)) < 0.3
    labels = torch.arange(30) % 3
    same = (labels[:, None] == labels[None]).double()
    assert math.isclose(similarity.label_alignment(same, labels), 1.0)
    assert similarity.label_alignment(k, labels) < 0.3
    assert similarity.kernel_accuracy(same + 0.1 * torch.eye(30), labels) == 1.0
    assert similarity.kernel_accuracy(torch.eye(30), labels) < 0.7
    with pytest.raises(SoftgateError, match="a class has 3 images"):
        similarity.kernel_accuracy(same[:9, :9], labels[:9])
    sign, log = k.sign(), k.abs().log()
    cosine = similarity.cosine_kernel(sign, log)
    unit = features / features.norm(dim=1, keepdim=True)
    assert torch.allclose(cosine, unit @ unit.T)
