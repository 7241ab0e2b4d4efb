"""A small network, its images and a call of every metric on them, for the tests of the metrics."""

import os
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import metrics
from softgate.explainers.representation import read

RULE = sg.Surrogate(sg.gates.Sigmoid(0.3), sg.pools.LSE(0.3))
CLASSES = 5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


def network(seed=0):
    torch.manual_seed(seed)
    net = Net().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    nn.init.normal_(net.head.weight)
    return net.eval()


def probe(count=9, size=8):
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64) / 3).clamp(-1, 1)
    return x, torch.arange(count) % CLASSES


def explain(model, x, target):
    return sg.pullback(model, x, target, RULE)


def cases(net, x, labels):
    """Metric name to a fresh metric and the arguments of one update on the images x [B, ...] with labels [B]."""
    whole, _ = probe()  # what every process has, whichever images are its own
    target = (labels + 1) % CLASSES
    out = read(net, x, labels, RULE, centred=True) if len(x) else None
    empty = torch.empty(0, dtype=torch.float64)
    logit, represented = (out.logit, out.represented) if out else (empty, empty)
    maps = explain(net, x, labels) if len(x) else x
    every = sg.pullback(net, x, list(range(CLASSES)), RULE) if len(x) else x[:, None].expand(-1, CLASSES, -1, -1, -1)
    outputs = net(x).detach()
    tiles, named = metrics.mosaics(x, labels, 2, 4, seed=0)
    means = torch.linspace(-0.9, 1.03, CLASSES, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, *x.shape[1:])
    return {
        "representation": (metrics.RepresentationError(), (logit, represented)),
        "kernel_agreement": (metrics.KernelAgreement(), (logit, represented, labels)),
        "kernel_agreement_within": (metrics.KernelAgreement(within_class=True), (logit, represented, labels)),
        "noise_cosine": (metrics.NoiseCosine(explain, count=3), (net, x, labels)),
        "max_sensitivity": (metrics.MaxSensitivity(explain, count=3), (net, x, labels)),
        "total_variation": (metrics.TotalVariation(), (maps,)),
        "high_frequency": (metrics.HighFrequency(), (maps,)),
        "spectral_slope": (metrics.SpectralSlope(), (maps, x)),
        "data_alignment": (metrics.DataAlignment(), (maps, x)),
        "mean_alignment": (metrics.MeanAlignment(means), (maps, x, labels)),
        "target_specificity": (metrics.TargetSpecificity(), (every,)),
        "input_specificity": (metrics.InputSpecificity(), (maps, labels)),
        "randomization": (metrics.Randomization(explain, whole, "top"), (net, x, labels)),
        "pullback_accuracy": (metrics.PullbackAccuracy(), (every, x, outputs)),
        "counterfactual": (
            metrics.Counterfactual(explain, network(1), steps=3, step_size=10.0, radius=20.0),
            (net, x, target),
        ),
        "grid_pointing": (metrics.GridPointing(explain, 2), (net, tiles, named)),
        "insertion_deletion": (metrics.InsertionDeletion(explain, steps=4), (net, x, labels)),
        "random_logit": (metrics.RandomLogit(explain), (net, x, labels)),
        "infidelity": (metrics.Infidelity(explain, count=5), (net, x, labels)),
        "lpips_alignment": (metrics.LpipsAlignment(lambda a, b: (a - b).square().flatten(1).mean(1)), (maps, x)),
    }


SPLITS = {"uneven": [slice(0, 4), slice(4, 9)], "one has none": [slice(0, 9), slice(9, 9)]}


def work(rank, port, results):
    """One process of two: its share of the images through every metric, for every split."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net, (x, labels) = network(), probe()
    for split, parts in SPLITS.items():
        for name, (metric, arguments) in cases(net, x[parts[rank]], labels[parts[rank]]).items():
            if name == "grid_pointing":  # its mosaics are drawn from all images, then shared out
                model, tiles, cells = cases(net, x, labels)[name][1]
                share = [slice(0, 1), slice(1, 4)][rank] if split == "uneven" else [slice(0, 4), slice(4, 4)][rank]
                arguments = model, tiles[share], cells[share]
            if len(arguments[-1]):
                metric.update(*arguments)
            found = metric.compute()
            results[split, name, rank] = (
                {k: float(found[k]) for k in metric.outputs} if metric.outputs else float(found)
            )
            ends = metric.interval(resamples=200)
            ends = torch.stack([ends[k] for k in metric.outputs]) if metric.outputs else ends[None]
            results[split, f"{name}, interval", rank] = ends.tolist()
            own = metric.rows  # synchronised for `compute` only: afterwards the process has its own rows again
            assert sum(map(len, own)) <= len(x)
    dist.destroy_process_group()


def value(metric, arguments):
    metric.update(*arguments)
    return metric.compute()


def close(found, expected):
    assert float(found) == pytest.approx(expected, rel=1e-8, abs=1e-10)
