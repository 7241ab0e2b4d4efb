"""Each metric against a slow reference in float64, and against captum where it has one."""

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import reference_metrics as slow
import softgate as sg
from metric_cases import CLASSES, RULE, close, explain, network, probe
from softgate import SoftgateError, metrics
from softgate.explainers import Pullback
from softgate.explainers.noise import draws, generators
from softgate.explainers.representation import read
from softgate.metrics.blur import blur
from softgate.metrics.faithfulness import squares
from softgate.metrics.randomization import ranks


def seen(net, labels):
    """The explainer for given targets, as a function of the images alone."""
    return lambda x: explain(net, x, labels[: len(x)])


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(metrics.__path__)])
def test_doctests(module):
    assert doctest.testmod(importlib.import_module(f"softgate.metrics.{module}")).failed == 0


def test_every_metric_says_what_is_better_and_where_it_comes_from():
    for name in metrics.__all__:
        kind = getattr(metrics, name)
        if isinstance(kind, type) and issubclass(kind, metrics.ProbeMetric) and kind is not metrics.ProbeMetric:
            assert kind.higher_is_better is not None or name == "SpectralSlope"
            assert "Source:" in kind.__doc__
            assert ">>>" in kind.__doc__


def test_representation(setting):
    net, x, labels, found = setting
    logit = net(x).detach()
    logit = logit[range(len(x)), labels] - logit.mean(1)
    with sg.attach(net, RULE):
        represented = sg.representation(net, x, labels, RULE, centred=True)
    close(found["representation"], slow.representation(logit, represented))


def test_kernel_agreement(setting):
    net, x, labels, found = setting
    out = read(net, x, labels, RULE, centred=True)
    f, g = slow.vector(out.logit), slow.vector(out.represented)
    close(found["kernel_agreement"], stats.pearsonr(f, g).statistic)
    df, dg = (slow.within(v, labels) for v in (out.logit, out.represented))
    close(found["kernel_agreement_within"], stats.pearsonr(df, dg).statistic)
    close(metrics.kernel_agreement(out.logit, out.represented), stats.pearsonr(f, g).statistic)
    close(metrics.kernel_agreement(out.logit, out.represented, labels), stats.pearsonr(df, dg).statistic)


def test_noise_cosine_and_max_sensitivity(setting):
    net, x, labels, found = setting
    close(found["noise_cosine"], slow.noise_cosine(seen(net, labels), x, 0.02 * draws(x, 3, 0)))
    steps = 0.02 * draws(x, 3, 0, "uniform")
    assert steps.abs().max() <= 0.02
    close(found["max_sensitivity"], slow.max_sensitivity(seen(net, labels), x, steps))


def test_smoothness(setting):
    net, x, labels, found = setting
    maps = explain(net, x, labels)
    close(found["total_variation"], slow.total_variation(maps))
    close(found["high_frequency"], slow.high_frequency(maps))
    close(found["spectral_slope"], slow.spectral_slope(maps, x))


def test_data_alignment(setting):
    net, x, labels, found = setting
    maps = explain(net, x, labels)
    close(found["data_alignment"], slow.data_alignment(maps, x))
    means = torch.linspace(-0.9, 1.03, CLASSES, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, *x.shape[1:])
    close(found["mean_alignment"], slow.mean_alignment(maps, x, labels, means))


def test_specificity_and_pullback_accuracy(setting):
    net, x, labels, found = setting
    every = torch.stack([explain(net, x, torch.full_like(labels, c)) for c in range(CLASSES)], 1)
    close(found["target_specificity"], slow.target_specificity(every))
    close(found["input_specificity"], slow.input_specificity(explain(net, x, labels), labels))
    close(metrics.input_specificity(explain(net, x, labels), labels), float(found["input_specificity"]))
    close(found["pullback_accuracy"], slow.pullback_accuracy(every, x, net(x)))


def test_randomization(setting):
    net, x, labels, found = setting
    other = metrics.randomized(net, "top", x)
    close(found["randomization"], slow.spearman(explain(net, x, labels), explain(other, x, labels)))


def test_ranks_share_the_mean_of_ties():
    values = torch.tensor([[3.0, 1.0, 3.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    assert (ranks(values)[0] + 1).tolist() == stats.rankdata(values[0].numpy()).tolist()


def test_counterfactual(setting):
    net, x, labels, found = setting
    target, scale = (labels + 1) % CLASSES, math.sqrt(x[0].numel() / (3 * 224 * 224))
    changed = slow.counterfactual(lambda i, c: explain(net, i, c), x, target, 3, 10 * scale, 20 * scale)
    other = network(1)
    for key, judge in (("flip", net), ("transfer", other)):
        before, after = judge(x).argmax(1), judge(changed).argmax(1)
        counted = [i for i in range(len(x)) if before[i] != target[i]]
        close(found["counterfactual"][key], slow.mean(float(after[i] == target[i]) for i in counted))
    gains = []
    for i, c in enumerate(target.tolist()):
        f, g = net(x[i : i + 1])[0].detach(), net(changed[i : i + 1])[0].detach()
        gains.append(float((g[c] - g.mean()) - (f[c] - f.mean())))
    close(found["counterfactual"]["gain"], slow.mean(gains))


def test_counterfactuals_are_the_papers_ascent_on_normalised_images():
    net, (x, labels) = network(), probe()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    shift, scale = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    normalize = lambda p: ((p + 1) / 2 - shift) / scale  # noqa: E731  (one line, used twice)
    size = math.sqrt(x[0].numel() / (3 * 224 * 224))
    expected = sg.ascend(net, x, labels, RULE, steps=4, step_size=10 * size, radius=30 * size, normalize=normalize)
    found = metrics.counterfactuals(
        explain, net, normalize(x), labels, steps=4, step_size=10, radius=30, mean=mean, std=std
    )
    assert torch.allclose(found, normalize(expected.image), atol=1e-10)


def test_grid_pointing(setting):
    net, x, labels, found = setting
    tiles, named = metrics.mosaics(x, labels, 2, 4, seed=0)
    assert all(len(set(row)) == 4 for row in named.tolist())
    for tile, row in zip(tiles, named, strict=True):
        for cell, c in enumerate(row.tolist()):
            part = tile[:, cell // 2 * 8 :, cell % 2 * 8 :][:, :8, :8]
            assert any(torch.equal(part, image) for image in x[labels == c])
    close(found["grid_pointing"], slow.grid_pointing(lambda i, c: explain(net, i, c), tiles, named, 2))


def test_insertion_deletion(setting):
    net, x, labels, found = setting
    maps = explain(net, x, labels)
    deletion, insertion = [], []
    for i, c in enumerate(labels.tolist()):
        baseline = slow.blurred(x[i], 0.8)
        relevance = (maps[i] * (x[i] - baseline)).sum(0).flatten()
        order = relevance.argsort(descending=True)
        random = torch.randperm(64, generator=generators(x, 0)[i])
        morf, lerf, chance = (
            slow.removal_area(lambda z, c=c: float(net(z[None]).detach().softmax(1)[0, c]), x[i], baseline, o, 4)
            for o in (order, order.flip(0), random)
        )
        deletion.append(chance - morf)
        insertion.append(lerf - chance)
    close(found["insertion_deletion"]["deletion"], slow.mean(deletion))
    close(found["insertion_deletion"]["insertion"], slow.mean(insertion))


def test_infidelity(setting):
    net, x, labels, found = setting
    maps, parts = explain(net, x, labels), squares(x, 5, 0.25, 0)

    def logit(z, i):
        f = net(z[None])[0].detach()
        return float(f[labels[i]] - f.mean())

    values = []
    for i in range(len(x)):
        products = [float((maps[i] * part[i]).sum()) for part in parts]
        changes = [logit(x[i], i) - logit(x[i] - part[i], i) for part in parts]
        values.append(1 - slow.cos(torch.tensor(products).double(), torch.tensor(changes).double()) ** 2)
    assert float(found["infidelity"]) == pytest.approx(slow.mean(values), abs=1e-6)
    exact = [
        1 - slow.cos(*(torch.tensor(v, dtype=torch.float64) for v in _pairs(net, maps, parts, x, labels, i))) ** 2
        for i in range(len(x))
    ]
    close(found["infidelity"], slow.mean(exact))


def _pairs(net, maps, parts, x, labels, i):
    centred = lambda z: float((net(z[None])[0, labels[i]] - net(z[None])[0].mean()).detach())  # noqa: E731  (used twice)
    products = [float((maps[i] * part[i]).sum()) for part in parts]
    return products, [centred(x[i]) - centred(x[i] - part[i]) for part in parts]


def test_lpips_alignment(setting):
    net, x, labels, found = setting
    maps = explain(net, x, labels)
    values = []
    for v, image in zip(maps, x, strict=True):
        v = np.clip(slow.vector(v) / (3 * np.std(slow.vector(v))), -1, 1)
        values.append(1 - float(np.mean((v - slow.vector(image)) ** 2)))
    close(found["lpips_alignment"], slow.mean(values))


def test_captums_sensitivity_max_is_max_sensitivity():
    captum = pytest.importorskip("captum.metrics", reason="the extra explain is not installed")
    net, (x, labels) = network(), probe(4)
    steps = 0.02 * draws(x, 6, 0, "uniform")

    def perturb(inputs, radius):
        return inputs + steps.transpose(0, 1).reshape(inputs.shape)  # each image is repeated for all draws in a row

    found = captum.sensitivity_max(
        lambda z, target: (explain(net, z[0] if isinstance(z, tuple) else z, target),),  # it hands over both
        x,
        perturb,
        n_perturb_samples=6,
        target=labels,
    )
    ours = metrics.max_sensitivity(explain(net, x, labels), torch.stack([explain(net, x + s, labels) for s in steps]))
    assert torch.allclose(ours, found.double(), atol=1e-8)
    metric = metrics.MaxSensitivity(explain, count=6)
    metric.update(net, x, labels)
    close(metric.compute(), float(found.double().mean()))


def test_captums_normalised_infidelity_is_infidelity_times_the_mean_square_change():
    captum = pytest.importorskip("captum.metrics", reason="the extra explain is not installed")
    net, (x, labels) = network(), probe(4)
    maps, parts = explain(net, x, labels), squares(x, 6, 0.25, 0)

    def perturb(inputs):
        part = parts.transpose(0, 1).reshape(inputs.shape)
        return part, inputs - part

    theirs = captum.infidelity(
        lambda z: net(z), perturb, x, maps, target=labels, n_perturb_samples=6, normalize=True
    ).double()
    pick = lambda z: net(z).detach().gather(1, labels[:, None])[:, 0]  # noqa: E731  (used twice)
    changes = torch.stack([pick(x) - pick(x - part) for part in parts], 1)
    products = torch.stack([(maps * part).flatten(1).sum(1) for part in parts], 1)
    ours = metrics.infidelity(products, changes)
    assert torch.allclose(ours * changes.square().mean(1), theirs, rtol=1e-6, atol=1e-10)


def test_noise_belongs_to_the_image_not_to_its_place_in_a_batch():
    x, _ = probe()
    whole = draws(x, 3, 7)
    assert torch.equal(whole[:, 4:], draws(x[4:], 3, 7))
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert not torch.equal(whole, draws(x, 3, 8))


def test_blur_is_the_pixelwise_one_and_keeps_constants():
    x, _ = probe(1)
    assert torch.allclose(blur(x, 0.8)[0], slow.blurred(x[0], 0.8), atol=1e-12)
    assert torch.allclose(blur(torch.full((1, 3, 5, 9), 2.0), 3.0), torch.tensor(2.0))


def test_randomizing_the_head_changes_nothing_else_and_all_changes_everything():
    net, (x, _) = network(), probe()
    head, every = (metrics.randomized(net, level, x) for level in ("head", "all"))
    assert torch.equal(head.conv1.weight, net.conv1.weight)
    assert not torch.equal(head.head.weight, net.head.weight)
    assert not torch.equal(every.conv1.weight, net.conv1.weight)
    assert torch.equal(net.head.weight, network().head.weight)
    mean = every.conv1(x).mean((0, 2, 3))
    assert torch.allclose(every.norm1.running_mean, mean)  # re-estimated on these images
    assert torch.equal(metrics.randomized(net, "all", x).conv1.weight, every.conv1.weight)
    with sg.attach(net, RULE):
        assert torch.equal(metrics.randomized(net, "all", x)(x), every(x))


def test_one_image_has_no_interval():
    metric = metrics.TotalVariation()
    metric.update(torch.rand(1, 3, 8, 8))
    assert torch.isnan(metric.interval()).all()
    metric.update(torch.rand(1, 3, 8, 8))
    assert metric.interval()[0] < metric.compute() < metric.interval()[1]


def test_the_head_is_the_layer_that_runs_last_wherever_it_is_registered():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.conv, self.norm = nn.Linear(4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    net, (x, _) = HeadFirst().double(), probe()
    head = metrics.randomized(net, "head", x)
    assert torch.equal(head.conv.weight, net.conv.weight)
    assert not torch.equal(head.head.weight, net.head.weight)
    with pytest.raises(SoftgateError, match="at least 2 are needed for BatchNorm's statistics"):
        metrics.randomized(net, "all", x[:1])


def test_counterfactuals_take_any_number_of_channels():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64) * 2 - 1
    changed = metrics.counterfactuals(Pullback(None, centred=True), net, x, torch.tensor([0, 1]))
    assert changed.shape == x.shape
    assert not torch.equal(changed, x)
    with pytest.raises(SoftgateError, match=r"mean=\[0.5, 0.5\]: one number for each of the 1 channels"):
        metrics.counterfactuals(Pullback(None, centred=True), net, x, torch.tensor([0, 1]), mean=(0.5, 0.5))
