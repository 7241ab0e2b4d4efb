r"""Swap: the network of epoch t, run with the gates of epoch s.

If the paths have settled at s, then f^(t) run with epoch s's gates is f^(t) up to its scale: over images they
correlate at nearly 1. This tests a rank-one sufficient form of the paper's Hypothesis 1, with pi(x) = G^(s)(x); that it
fails does not refute the hypothesis, whose pi need not be of rank one and cannot be observed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from softgate.correlation import bootstrap_weights, memberships, pearson, pearson_within
from softgate.display import Brief
from softgate.errors import require
from softgate.explainers.gated import check_affine, record, run_attached
from softgate.explainers.gates import Gates
from softgate.explainers.pullback import predict, target_logits
from softgate.paths.agreement import path_cosine
from softgate.paths.recording import Point, Recording
from softgate.sites.calibration import calibrate
from softgate.sites.inference import inner, reading_out
from softgate.sites.scales import scales_of
from softgate.surrogate.rule import Surrogate

MADE = ("shuffled", "same class", "mean", "class mean", "ones")
"""Controls that run the last network with what is made of the gates of s: those of another image, of another one of the
same class, their mean over all images and over those of the image's class, and all ones."""

CONTROLS = (*MADE, "f(s)", "epoch 0")
"""What the swaps into the last network stand beside. f(s) is no swap: the network of epoch s itself; the last one is
the swap from the initial network."""

CLASSES = 16
"""Mean gates of so many classes are in memory at once."""

LEVELS = 256
"""Steps of a soft gate that are told apart in predicting a hard one."""


@dataclass(repr=False)
class Swaps(Brief):
    """Values of f for every pair of moments; S moments, N images. f is the logit of the image's class, centred.

    Attributes:
        points: The moments.
        labels: [N] classes.
        own: [S, N], f^(t) of every network with its own hard gates.
        swapped: Kind of gates to [S, S, N]: at [s, t] the network t with the gates of s.
        controls: (kind of gates, control) to [S, N]: at s the last network with what the control makes of s's gates,
            one of `MADE`; NaN for gates of the same class where there is no other image of it.
        log_cosine: Kind of gates to [S, N]: the path cosine of the gates of s with the hard gates of the last network.
        counts: Kind of gates to [S, sites, 2, levels]: how often a level at s met a shut and an open gate at the end.
        correct: [S], share of images that each network classifies rightly.
    """

    points: list[Point]
    labels: Tensor
    own: Tensor
    swapped: dict[str, Tensor]
    controls: dict[tuple[str, str], Tensor]
    log_cosine: dict[str, Tensor]
    counts: dict[str, Tensor]
    correct: Tensor

    def correlation(self, kind: str, s: int, t: int, within: bool) -> float:
        """Pearson over the images of f^(t) and f^(t) with the gates of s, pooled or within classes."""
        return float(self._pearson(self.swapped[kind][s, t], t, within, None)[0])

    def matrix(self, kind: str, within: bool) -> Tensor:
        """[S, S] of `correlation`."""
        size = range(len(self.points))
        return torch.tensor([[self.correlation(kind, s, t, within) for t in size] for s in size], dtype=torch.float64)

    def control(self, kind: str, name: str, within: bool) -> list[float]:
        """The correlations of a control with the last network, one for each s."""
        return self._controlled(kind, name, within, None)[0].tolist()

    def margin(self, kind: str, within: bool, resamples: int = 1000, seed: int = 0) -> tuple[list[float], ...]:
        """The swap into the last network minus the greatest of its controls, one for each s; low and high ends.

        The 95 % bootstrap draws the same images for all of them, and the greatest control anew in each draw. With the
        swap from the initial network left out at s = 0, where it is the swap itself.
        """
        last = len(self.points) - 1
        swaps = torch.tensor([[self.correlation(kind, s, last, within) for s in range(last + 1)]])
        weights = bootstrap_weights(len(self.labels), resamples, seed)
        found = []
        for drawn, each in ((swaps.double(), None), (self._drawn(kind, within, resamples, seed), weights)):
            every = torch.stack([self._controlled(kind, name, within, each) for name in CONTROLS])
            every[-1, :, 0] = -torch.inf
            found.append(drawn - every.nan_to_num(-torch.inf).amax(0))
        low, high = torch.nanquantile(found[1], torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
        return found[0][0].tolist(), low.tolist(), high.tolist()

    def curve(
        self, kind: str, within: bool, resamples: int = 1000, seed: int = 0
    ) -> tuple[list[float], list[float], list[float]]:
        """The swaps into the last network, one for each s, and the ends of their 95 % bootstrap intervals."""
        last = len(self.points) - 1
        values = [self.correlation(kind, s, last, within) for s in range(len(self.points))]
        drawn = self._drawn(kind, within, resamples, seed)
        low, high = torch.nanquantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
        return values, low.tolist(), high.tolist()

    def settled(
        self, kind: str, threshold: float = 0.9, within: bool = True, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float, float]:
        """The epoch from which on the swap into the last network stays above a threshold.

        The first recorded moment of which that holds for itself and every later one; so it is an upper bound, as fine
        as the moments are. The last network's own moment always passes with hard gates.

        Returns:
            The epoch, and the ends of its 95 % bootstrap interval over images; infinity where it never passes.
        """
        last = len(self.points) - 1
        values = torch.tensor([[self.correlation(kind, s, last, within) for s in range(last + 1)]])
        drawn = self._settling(self._drawn(kind, within, resamples, seed), threshold)
        low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), interpolation="nearest")
        return float(self._settling(values, threshold)[0]), float(low), float(high)

    def difference(self, within: bool, resamples: int = 1000, seed: int = 0) -> tuple[list[float], ...]:
        """Swap with soft minus swap with hard gates into the last network, one for each s; low and high ends.

        The 95 % bootstrap draws the same images for both.
        """
        soft, hard = (self.curve(kind, within, 1)[0] for kind in ("soft", "hard"))
        drawn = self._drawn("soft", within, resamples, seed) - self._drawn("hard", within, resamples, seed)
        low, high = torch.nanquantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
        return [a - b for a, b in zip(soft, hard, strict=True)], low.tolist(), high.tolist()

    def gate_auc(self, kind: str) -> list[float]:
        """How well the gates of each s predict which ReLU gates are open at the end: area under the ROC curve.

        Of an open and a shut gate of the last network, drawn at random from one call site, the share of pairs of which
        the open one had the larger gate at s; ties count half. Averaged over the call sites.
        """
        shut, opened = self.counts[kind].unbind(2)
        below = shut.cumsum(-1) - shut
        wins = (opened * (below + shut / 2)).sum(-1)
        return (wins / (shut.sum(-1) * opened.sum(-1))).nanmean(-1).tolist()

    def _settling(self, values: Tensor, threshold: float) -> Tensor:
        """[R] epochs for correlations [R, S]."""
        stays = (values > threshold).flip(1).cumprod(1).sum(1)  # how many of the last moments pass
        epochs = torch.tensor([*[point.epoch for point in self.points], torch.inf], dtype=torch.float64)
        return epochs[values.shape[1] - stays]

    def _drawn(self, kind: str, within: bool, resamples: int, seed: int) -> Tensor:
        weights = bootstrap_weights(len(self.labels), resamples, seed)
        return torch.stack([self._pearson(row[-1], -1, within, weights) for row in self.swapped[kind]], 1)

    def _controlled(self, kind: str, name: str, within: bool, weights: Tensor | None) -> Tensor:
        """[R, S], the correlations of a control with the last network."""
        if name == "epoch 0":
            values = self.swapped[kind][:1, -1].expand(len(self.points), -1)
        else:
            values = self.own if name == "f(s)" else self.controls[kind, name]
        return torch.stack([self._pearson(row, -1, within, weights) for row in values], 1)

    def _pearson(self, values: Tensor, t: int, within: bool, weights: Tensor | None) -> Tensor:
        each = torch.ones(1, len(values), dtype=torch.float64) if weights is None else weights
        there = ~values.isnan()  # an image that is the only one of its class has no other one of it
        if bool(there.any()) and not bool(there.all()):
            values, each = values.nan_to_num(), each * there
        a, b = self.own[t], values
        return pearson_within(a, b, memberships(self.labels), each) if within else pearson(a, b, each)


def swap(
    model: nn.Module,
    recording: Recording,
    rules: Mapping[str, Surrogate | None],
    *,
    points: Sequence[Point] | None = None,
    images: int | None = None,
    later: bool = False,
    chunk: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Swaps:
    """Runs the network of every moment with the gates of every other one, and with the controls' gates.

    The gates are recorded anew from the weights, so that any rule can be asked for. Costs S * S passes over the images
    for each kind of gates.

    Args:
        model: A network of the recording's architecture; what is run is a copy of it.
        recording: With the weights of its moments.
        rules: Kind of gates to the rule that they are recorded with; None is hard.
        points: Some of its moments; None is all.
        images: How many of its probe images; None is all.
        later: Leave out the pairs with t before s; they are NaN.
        chunk: Images that run at once.
        seed: Shuffles the samples for the control.
        progress: Called with the number of passes done and to do, one for each moment and chunk.

    Raises:
        SoftgateError: If the recording is of another architecture or has no weights, and as `run`.
    """
    model = copy.deepcopy(inner(model))
    recording.check_model(model)
    moments = list(recording.points if points is None else points)
    require(len(moments) >= 2, f"swap: {recording.directory} has {len(moments)} moment(s); at least 2 are needed.")
    weights = [recording.weights(point) for point in moments]
    like = next(model.parameters())
    x = recording.images[:images].to(like.device, like.dtype)
    labels = recording.labels[: len(x)]
    loader = _Loader(model, weights, x[:64], rules)
    work = _Work(model, loader, x, labels, rules, seed, later)
    with reading_out(model, None) as sites:
        check_affine(sites.model, sites, x, record(model, x[:1]))
    with torch.no_grad():
        work.average()
        parts = torch.split(torch.arange(len(x)), chunk)
        for turn, part in enumerate(parts):
            for s in range(len(moments)):
                work.from_moment(s, part)
                if progress is not None:
                    progress(turn * len(moments) + s + 1, len(parts) * len(moments))
    return work.found(moments)


class _Loader:
    """Puts the weights of a moment into the model."""

    def __init__(
        self, model: nn.Module, weights: list[dict[str, object]], x: Tensor, rules: Mapping[str, Surrogate | None]
    ) -> None:
        self.model, self.weights, self.x = model, weights, x
        self.channel = next((rule for rule in rules.values() if rule is not None and rule.scale == "channel"), None)

    def __len__(self) -> int:
        return len(self.weights)

    def __call__(self, moment: int) -> None:
        kept = self.weights[moment]
        self.model.load_state_dict(kept["net"])  # type: ignore[arg-type]  # plain data
        if self.channel is not None:
            scales_of(self.model).load_state_dict(kept["scales"])  # type: ignore[arg-type]  # plain data
            if not scales_of(self.model):  # trained without: found on the probe images
                calibrate(self.model, [self.x], self.channel)


class _Work:
    """The passes of `swap`, chunk by chunk."""

    def __init__(
        self,
        model: nn.Module,
        load: _Loader,
        x: Tensor,
        labels: Tensor,
        rules: Mapping[str, Surrogate | None],
        seed: int,
        later: bool,
    ) -> None:
        count, size = len(load), len(x)
        self.model, self.load, self.x, self.labels = model, load, x, labels
        self.rules, self.later = dict(rules), later
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        self.other = cycled(order)
        self.fellow = torch.empty_like(order)
        for label in torch.unique(labels):
            members = order[labels[order] == label]
            self.fellow[members] = members.roll(1)
        self.means: dict[tuple[str, int], Gates] = {}
        self.own = torch.full((count, size), torch.nan, dtype=torch.float64)
        self.right = torch.zeros(count, dtype=torch.float64)
        self.swapped = {kind: torch.full((count, count, size), torch.nan, dtype=torch.float64) for kind in rules}
        self.controls = {
            (kind, name): torch.full((count, size), torch.nan, dtype=torch.float64) for kind in rules for name in MADE
        }
        self.cosines = {kind: torch.full((count, size), torch.nan, dtype=torch.float64) for kind in rules}
        self.counts: dict[str, Tensor] = {}

    def average(self) -> None:
        """The mean gates of every moment over all images, and the networks' own values."""
        for s in range(len(self.load)):
            self.load(s)
            outputs = predict(self.model, self.x, chunk=64)
            self.own[s] = self._logits(outputs, self.labels)
            self.right[s] = (outputs.argmax(1).cpu() == self.labels).double().mean()
            for kind, rule in self.rules.items():
                total: Gates | None = None
                for part in torch.split(self.x, 64):
                    mean, share = record(self.model, part, rule).mean(), len(part) / len(self.x)
                    total = _weighted(mean, share, total)
                assert total is not None
                self.means[kind, s] = total
                for part in torch.split(torch.unique(self.labels), CLASSES):
                    self._class_means(kind, s, part.tolist())

    def _class_means(self, kind: str, s: int, classes: list[int]) -> None:
        """Runs the last network on the images of some classes with the mean gates that each class has at s."""
        self.load(s)
        means = {}
        for label in classes:
            total: Gates | None = None
            members = self.x[(self.labels == label).to(self.x.device)]
            for part in torch.split(members, 64):
                mean = record(self.model, part, self.rules[kind]).mean()
                total = _weighted(mean, len(part) / len(members), total)
            assert total is not None
            means[label] = total
        self.load(len(self.load) - 1)
        for label, mean in means.items():
            for part in torch.split(torch.nonzero(self.labels == label)[:, 0], 64):
                self.controls[kind, "class mean"][s, part] = self._run(part, mean)
        self.load(s)

    def from_moment(self, s: int, part: Tensor) -> None:
        """Runs every network on some images with the gates of moment s."""
        last = len(self.load) - 1
        self.load(last)
        final = record(self.model, self.x[part])
        self.load(s)
        gates = {kind: record(self.model, self.x[part], rule) for kind, rule in self.rules.items()}
        fellows = self.fellow[part]
        others = {kind: record(self.model, self.x[self.other[part]], rule) for kind, rule in self.rules.items()}
        alike = {kind: record(self.model, self.x[fellows], rule) for kind, rule in self.rules.items()}
        for kind in self.rules:
            self.cosines[kind][s, part] = path_cosine(gates[kind], final)
            self._count(kind, s, gates[kind], final)
        for t in range(last + 1):
            if self.later and t < s:
                continue
            self.load(t)
            for kind in self.rules:
                self.swapped[kind][s, t, part] = self._run(part, gates[kind])
        for kind in self.rules:  # the last network is loaded
            mean = self.means[kind, s]
            made = {"shuffled": others[kind], "same class": alike[kind], "mean": mean, "ones": mean.ones()}
            for name, control in made.items():
                self.controls[kind, name][s, part] = self._run(part, control)
            self.controls[kind, "same class"][s, part[fellows == part]] = torch.nan

    def found(self, points: list[Point]) -> Swaps:
        """All that was found."""
        return Swaps(points, self.labels, self.own, self.swapped, self.controls, self.cosines, self.counts, self.right)

    def _run(self, part: Tensor, gates: Gates) -> Tensor:
        with reading_out(self.model, None) as sites, torch.no_grad():
            return self._logits(run_attached(sites.model, sites, self.x[part], gates), self.labels[part])

    def _logits(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return target_logits(outputs.detach().double(), labels.to(outputs.device)[:, None], centred=True)[:, 0].cpu()

    def _count(self, kind: str, s: int, gates: Gates, final: Gates) -> None:
        rows = []
        for name, site in gates.sites.items():
            if site.window is not None:
                continue
            level = (site.weights() * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()
            at = level + LEVELS * final.sites[name].values.long()
            rows.append(torch.bincount(at.flatten(), minlength=2 * LEVELS).view(2, LEVELS).cpu())
        if kind not in self.counts:
            self.counts[kind] = torch.zeros(len(self.load), len(rows), 2, LEVELS, dtype=torch.float64)
        if rows:
            self.counts[kind][s] += torch.stack(rows)


def cycled(order: Tensor) -> Tensor:
    """Another image for each one: one cycle through all of them in an order [N]."""
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def _weighted(mean: Gates, share: float, total: Gates | None) -> Gates:
    if total is None:
        return mean.map(lambda site: replace(site, values=share * site.values))
    return total.map(lambda site: replace(site, values=site.values + share * mean.sites[site.name].values))
