"""The metrics again, slowly: loops over images, draws and pixels, in float64, from METRICS' formulas.

Nothing here imports softgate's metrics. Each function gets what the metric gets and returns the value over the images.
"""

import math

import numpy as np
import torch
from scipy import stats


def vector(x):
    return x.detach().double().reshape(-1).numpy()


def cos(a, b):
    a, b = vector(a), vector(b)
    return float(np.dot(a, b) / math.sqrt(np.dot(a, a)) / math.sqrt(np.dot(b, b)))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def representation(f, g):
    return mean(abs(float(a) - float(b)) / abs(float(a)) for a, b in zip(f, g, strict=True))


def within(values, labels):
    """Values minus the mean of their class."""
    values = np.array(vector(values))
    for c in set(labels.tolist()):
        mine = labels.numpy() == c
        values[mine] -= values[mine].mean()
    return values


def noise_cosine(explain, x, noise):
    return mean(mean(cos(explain(x)[i], explain(x + one)[i]) for one in noise) for i in range(len(x)))


def max_sensitivity(explain, x, steps):
    clean = explain(x)
    return mean(
        max(float((explain(x + one)[i] - clean[i]).norm() / clean[i].norm()) for one in steps) for i in range(len(x))
    )


def total_variation(maps):
    def one(v):
        total = 0.0
        channels, height, width = v.shape
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    total += abs(float(v[c, i, j] - v[c, i - 1, j])) if i else 0.0
                    total += abs(float(v[c, i, j] - v[c, i, j - 1])) if j else 0.0
        return total / float(v.abs().sum())

    return mean(one(v) for v in maps)


def fourier_power(v):
    """Power |F(k, l)|^2 summed over channels, by the transform's definition, and the signed frequencies k, l."""
    channels, height, width = v.shape
    ys, xs = np.arange(height), np.arange(width)
    found = {}
    for k in range(-(height // 2), height - height // 2):
        for m in range(-(width // 2), width - width // 2):
            wave = np.exp(-2j * math.pi * (k * ys[:, None] / height + m * xs[None, :] / width))
            found[k, m] = sum(abs((v[c].numpy() * wave).sum()) ** 2 for c in range(channels))
    return found, height, width


def high_frequency(maps):
    def one(v):
        power, height, width = fourier_power(v)
        high = sum(p for (k, m), p in power.items() if math.hypot(k / height, m / width) > 0.25)
        return high / sum(power.values())

    return mean(one(v) for v in maps)


def slope(v):
    power, height, width = fourier_power(v)
    side = min(height, width)
    rings = {}
    for (k, m), p in power.items():
        rings.setdefault(round(side * math.hypot(k / height, m / width)), []).append(p)
    x = [math.log(r) for r in range(1, side // 2 + 1)]
    y = [math.log(np.mean(rings[r])) for r in range(1, side // 2 + 1)]
    return stats.linregress(x, y).slope


def spectral_slope(maps, x):
    return mean(slope(v) - slope(i) for v, i in zip(maps, x, strict=True))


def data_alignment(maps, x):
    return mean(float((v * i).sum() / v.norm()) for v, i in zip(maps, x, strict=True))


def mean_alignment(maps, x, target, means):
    return mean(cos(v, means[c] - i) for v, i, c in zip(maps, x, target.tolist(), strict=True))


def target_specificity(maps):
    def one(vs):
        pairs = [(a, b) for a in range(len(vs)) for b in range(len(vs)) if a != b]
        return mean(abs(cos(vs[a], vs[b])) for a, b in pairs)

    return mean(one(vs) for vs in maps)


def input_specificity(maps, labels):
    labels = labels.tolist()
    pairs = [(i, j) for i in range(len(maps)) for j in range(i) if labels[i] == labels[j]]
    return mean(abs(cos(maps[i], maps[j])) for i, j in pairs)


def pullback_accuracy(maps, x, outputs):
    hits = []
    for vs, i, f in zip(maps, x, outputs, strict=True):
        products = [float((v * i).sum()) for v in vs]
        hits.append(products.index(max(products)) == f.tolist().index(max(f.tolist())))
    return mean(map(float, hits))


def spearman(a, b):
    return mean(stats.spearmanr(np.abs(vector(v)), np.abs(vector(w))).statistic for v, w in zip(a, b, strict=True))


def counterfactual(explain, x, target, steps, step, radius):
    """For pixels in [-1, 1] that the model takes as they are; one image at a time."""
    made = []
    for i in range(len(x)):
        image = x[i]
        for _ in range(steps):
            v = explain(image[None], target[i : i + 1])[0]
            image = image + step * v / v.norm()
            offset = image - x[i]
            if offset.norm() > radius:
                offset = offset * radius / offset.norm()
            image = (x[i] + offset).clamp(-1, 1)
        made.append(image)
    return torch.stack(made)


def grid_pointing(explain, x, targets, side):
    rows = []
    height, width = x.shape[-2] // side, x.shape[-1] // side
    for i in range(len(x)):
        shares = []
        for cell, c in enumerate(targets[i].tolist()):
            part = (explain(x[i : i + 1], torch.tensor([c]))[0] * x[i]).sum(0).clamp_min(0)
            top, left = cell // side * height, cell % side * width
            shares.append(float(part[top : top + height, left : left + width].sum() / part.sum()))
        rows.append(mean(shares))
    return mean(rows)


def removal_area(probability, x, baseline, order, steps):
    """Area under the target's probability while the pixels of `order` go to the baseline, for one image."""
    points = []
    for step in range(steps + 1):
        image = x.clone()
        for number in order[: round(len(order) * step / steps)]:
            i, j = divmod(int(number), x.shape[-1])
            image[:, i, j] = baseline[:, i, j]
        points.append(probability(image))
    return float(np.trapezoid(points, dx=1 / steps))


def blurred(x, sigma):
    """A Gaussian blur of one image [C, H, W], its edges continued, pixel by pixel."""
    _, height, width = x.shape
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    out = np.zeros(x.shape)
    for i in range(height):
        for j in range(width):
            for a, p in zip(range(i - reach, i + reach + 1), weights, strict=True):
                for b, q in zip(range(j - reach, j + reach + 1), weights, strict=True):
                    out[:, i, j] += p * q * x[:, min(max(a, 0), height - 1), min(max(b, 0), width - 1)].numpy()
    return torch.from_numpy(out)
