"""Pullback grids: what a network shows of some images for some targets, read out by several rules (paper 5.1).

`read` computes; the `Grid` it returns draws itself, lists itself as a table, and is plain tensors. Three kinds:
"raw", the pullbacks (Figure 2); "ascent", the images after projected gradient ascent along them and what the
ascent added (Figures 1, 3 and 4); "accentuation", the same of feature accentuation along them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from softgate.display import Brief, png
from softgate.errors import require, unknown
from softgate.explainers.accentuation import AccentuationSettings, accentuate
from softgate.explainers.folding import folding
from softgate.explainers.pullback import ascend, predict, pullback, size_factor
from softgate.grids.drawing import Block, pullback_grid
from softgate.rounding import rounded
from softgate.sites.inference import inner
from softgate.surrogate.inputs import check_rule, checked
from softgate.surrogate.rule import Surrogate

KINDS = ("raw", "ascent", "accentuation")

WIDEST = 18
"""Cells side by side in a raw grid; further read-outs stand below."""

RESERVED = ("kind", "images", "labels", "targets", "names", "predicted", "settings", "rules")
"""Keys of a grid's tensors, which no read-out may be called by."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Explainer = Callable[[nn.Module, Tensor, Any], Tensor]
"""(model, x [B, C, H, W], target) -> [B, C, H, W]."""


@dataclass(frozen=True, repr=False)
class Reading(Brief):
    """What one rule shows: B images, K targets.

    Attributes:
        values: [B, K, C, H, W] pullbacks in the model's input units ("raw"), or perturbed minus original pixels in
            [-1, 1] (other kinds).
        pixels: [B, K, C, H, W] the images after the step, the ascent or the accentuation, pixels in [0, 1].
        before: [B, K] the target logits of the images.
        after: [B, K] the target logits after it.
        predicted: [B, K] the class predicted after it.
    """

    values: Tensor
    pixels: Tensor
    before: Tensor
    after: Tensor
    predicted: Tensor


@dataclass(frozen=True, repr=False)
class Grid(Brief):
    """A grid that was read out; all tensors on the CPU.

    Attributes:
        kind: "raw", "ascent" or "accentuation".
        images: [B, C, H, W] pixels in [0, 1].
        labels: The images' classes.
        targets: The K classes read out.
        predicted: What the network predicts for each image.
        names: Class index to name.
        readings: Read-out name to what it shows.
        rules: Read-out name to its rule as plain data, None for the gradient; other explainers are left out.
        settings: `steps`, `step_size` and `radius` as used, scaled to the images' size; of an accentuation its own
            numbers, and `passes` of the network for a cell.
    """

    kind: str
    images: Tensor
    labels: list[int]
    targets: list[int]
    predicted: list[int]
    names: Sequence[str]
    readings: dict[str, Reading]
    rules: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    def picture(
        self,
        title: str = "",
        scale: str = "cell",
        tops: Mapping[str, float] | None = None,
        rows: Sequence[str] | None = None,
        across: int | None = None,
    ) -> Image.Image:
        """Draws the grid, read-outs side by side, or below each other where there are images beside differences.

        Args:
            title: A line above it.
            scale: "cell", "shared" or "seismic", see `softgate.figures.pullback_grid`.
            tops: Read-out name to the value that is black or white where scale is "shared", to compare grids.
            rows: What stands beside each image; None is the name of its class.
            across: Read-outs side by side; None is as many as are legible.
        """
        blocks: dict[str, Block] = {}
        limits: dict[str, float] = {}
        for name, reading in self.readings.items():
            captions, flips = self._captions(reading), self._flips(reading).tolist()
            if self.kind != "raw":
                blocks[f"{name}, image"] = Block(reading.pixels, True, captions, flips)
                name = f"{name}, difference"
            blocks[name] = Block(reading.values, False, captions, flips)
            if tops and name.removesuffix(", difference") in tops:
                limits[name] = tops[name.removesuffix(", difference")]
        return pullback_grid(
            self.images,
            blocks,
            [self.names[c] for c in self.labels] if rows is None else rows,
            [self.names[c] for c in self.targets],
            self.labels,
            self.targets,
            title,
            scale=scale,
            tops=limits,
            across=across or (2 if self.kind != "raw" else max(1, WIDEST // len(self.targets))),
            image_captions=[[self.names[c]] for c in self.predicted],
            footer=self._footer(),
        )

    def _repr_png_(self) -> bytes:
        return png(self.picture())

    def table(self) -> list[dict[str, Any]]:
        """One row for each cell: read-out, image, its class, target, target logit before and after, flip.

        `flip` says that the target was not predicted before and is after.
        """
        rows = []
        for name, reading in self.readings.items():
            flips = self._flips(reading)
            for b, label in enumerate(self.labels):
                for k, target in enumerate(self.targets):
                    rows.append(
                        {
                            "read-out": name,
                            "image": b,
                            "class": self.names[label],
                            "target": self.names[target],
                            "logit before": float(reading.before[b, k]),
                            "logit after": float(reading.after[b, k]),
                            "predicted before": self.names[self.predicted[b]],
                            "predicted after": self.names[int(reading.predicted[b, k])],
                            "flip": bool(flips[b, k]),
                        }
                    )
        return rows

    def flip_rates(self) -> dict[str, float]:
        """For each read-out, by its key in `tensors`, the share of cells that flipped of those that could."""
        could = torch.tensor(self.predicted)[:, None] != torch.tensor(self.targets)
        total = max(1, int(could.sum()))
        keys = self._keys()
        return {keys[name]: int(self._flips(reading).sum()) / total for name, reading in self.readings.items()}

    def tensors(self) -> dict[str, Any]:
        """The grid as plain data for `torch.save`.

        A read-out's tensors stand under its name up to a colon, where no other read-out's do, else under all of it.
        """
        keys = self._keys()
        found: dict[str, Any] = {"kind": self.kind, "images": self.images, "labels": self.labels}
        found |= {"targets": self.targets, "names": [self.names[c] for c in self.targets], "predicted": self.predicted}
        found |= {"settings": dict(self.settings), "rules": {keys[name]: rule for name, rule in self.rules.items()}}
        for name, reading in self.readings.items():
            found[keys[name]] = reading.values
            for part in ("before", "after", "predicted"):
                found[f"{keys[name]}/{part}"] = getattr(reading, part)
        return found

    def _keys(self) -> dict[str, str]:
        short = {name: name.partition(":")[0] for name in self.readings}
        taken = [*RESERVED, *short.values()]
        return {name: key if taken.count(key) == 1 else name for name, key in short.items()}

    def _flips(self, reading: Reading) -> Tensor:
        targets, before = torch.tensor(self.targets), torch.tensor(self.predicted)
        return (reading.predicted == targets) & (before[:, None] != targets)

    def _captions(self, reading: Reading) -> list[list[list[str]]]:
        return [
            [
                [self.names[int(reading.predicted[b, k])], _arrow(reading.before[b, k], reading.after[b, k])]
                for k in range(len(self.targets))
            ]
            for b in range(len(self.labels))
        ]

    def _footer(self) -> str:
        if self.kind == "accentuation":
            how = self.settings
            done = f"{how['steps']:.0f} steps of Adam with {how['crops']:.0f} crops each, weight {how['weight']:.3g}"
        else:
            steps = "one step" if self.kind == "raw" else f"{self.settings['steps']:.0f} steps"
            done = f"{steps} of L2 norm {self.settings['step_size']:.3g}, pixels in [-1, 1]"
        if self.kind == "ascent":
            done += f", within {self.settings['radius']:.3g} of the image"
        along = "along what the cell shows" if self.kind == "raw" else "along the read-out"
        return (
            f"Under each image: the predicted class. Under each cell: the class predicted after {done}, {along}, and "
            f"the target's logit before \u2192 after. Green: the target became the predicted class. Red frame: the "
            f"image's own class."
        )


@checked
def read(
    model: nn.Module,
    x: Tensor,
    labels: Sequence[int],
    targets: Sequence[int],
    rules: Mapping[str, Surrogate | Explainer | None],
    *,
    names: Sequence[str] | None = None,
    kind: str = "raw",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    steps: int = 10,
    step_size: float = 20.0,
    radius: float = 100.0,
    accentuation: AccentuationSettings | None = None,
    chunk: int | None = None,
) -> Grid:
    """Reads a network out for K targets on B images, by several rules.

    The pass is batched: targets share the forward pass, BatchNorm is folded and the weights are frozen (in a copy).

    Args:
        model: A classifier, attached or not; it is left as it was.
        x: [B, C, H, W] images, C 1 or 3, as the model takes them.
        labels: B classes of the images, as the model counts them.
        targets: K classes to read out.
        rules: Read-out name to its rule; None is the gradient. For kind "raw" also any explainer.
        names: Class index to name; None numbers the classes.
        kind: "raw", "ascent" or "accentuation".
        mean: What was subtracted from pixels in [0, 1].
        std: What they were then divided by.
        steps: Steps of the ascent.
        step_size: L2 norm of a step at 3 x 224 x 224, in pixels in [-1, 1]; scaled by sqrt(d / 150528). The logit
            "after" of a raw grid is that after one such step.
        radius: Of the ball around the image, scaled likewise.
        accentuation: How images are accentuated; None is 100 steps of 16 crops, 3202 passes a cell.
        chunk: At most so many images at once, see `pullback`.

    Returns:
        The grid.

    Raises:
        SoftgateError: For shapes that do not fit, a class the model does not have, or an unknown kind.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if torch.is_inference_mode_enabled():
        more: dict[str, Any] = {"names": names, "kind": kind, "mean": mean, "std": std, "steps": steps}
        more |= {"step_size": step_size, "radius": radius, "accentuation": accentuation, "chunk": chunk}
        with torch.inference_mode(False):  # in it, no gradient can be had
            return read(model, x.clone(), labels, targets, rules, **more)
    fits = x.dim() == 4 and x.shape[1] in (1, 3) and len(x) > 0
    require(fits, f"x of shape {tuple(x.shape)}: images [B, 3, H, W], or [B, 1, H, W], are needed, at least one.")
    for key, numbers in (("mean", mean), ("std", std)):
        fits = len(numbers) == x.shape[1]
        require(fits, f"{key}={list(numbers)}: one number for each of the {x.shape[1]} channels is needed.")
    for name in rules:
        require(name not in RESERVED, f"rules: '{name}': a read-out cannot be called that; allowed is any other name.")
    count = len(x)
    require(len(labels) == count, f"labels: {len(labels)} for {count} images; one for each is needed.")
    require(len(targets) > 0 and len(rules) > 0, "targets and rules: at least one of each is needed.")
    for name, rule in rules.items():
        require(_is_rule(rule) or kind == "raw", f"kind={kind}: the read-out '{name}' is no rule; kind=raw is needed.")
        if not callable(rule):
            check_rule(rule)
    model = inner(model)
    with folding(model, x) as folded:
        logits = predict(folded, x, chunk=chunk)
        classes = logits.shape[1]
        wrong = [c for c in (*targets, *labels) if not 0 <= c < classes]
        require(not wrong, f"target={(wrong or [0])[0]}: the model has the classes 0 to {classes - 1}.")
        if names is None:
            names = [str(c) for c in range(classes)]
        require(len(names) >= classes, f"names: {len(names)} for a model of {classes} classes.")
        centre, spread = (x.new_tensor(list(v)).view(-1, 1, 1) for v in (mean, std))
        factor = size_factor(x)
        how = accentuation or AccentuationSettings()
        settings = {"steps": steps, "step_size": step_size * factor, "radius": radius * factor}
        if kind == "accentuation":
            settings = _numbers(how)
        pixels = ((x.detach() * spread + centre) * 2 - 1).clamp(-1, 1)
        columns = torch.as_tensor(list(targets), device=x.device)
        before = logits[:, columns]

        def normalize(image: Tensor) -> Tensor:
            return ((image + 1) / 2 - centre) / spread

        readings = {}
        for name, rule in rules.items():
            if kind == "ascent":
                assert rule is None or isinstance(rule, Surrogate)
                way = {"normalize": normalize, "chunk": chunk, **_ascent(settings)}
                risen = ascend(folded, pixels, list(targets), rule, **way)
                values, images, after = risen.difference, risen.image, risen.logits[..., -1]
                predicted = risen.predicted[..., 1]
            elif kind == "accentuation":
                assert rule is None or isinstance(rule, Surrogate)
                made = accentuate(model, pixels, list(targets), rule, how, normalize=normalize, chunk=chunk)
                values, images, after = made.difference, made.image, made.logits[..., 1]
                predicted = made.predicted[..., 1]
            else:
                if rule is None or isinstance(rule, Surrogate):
                    values = pullback(folded, x, list(targets), rule, chunk=chunk)
                else:
                    values = torch.stack([rule(model, x, int(c)).to(x) for c in targets], 1)
                images = _one_step(pixels, values / spread, settings["step_size"])
                final = predict(folded, normalize(images).flatten(0, 1), chunk=chunk).view(count, len(columns), -1)
                after, predicted = final[:, range(len(columns)), columns], final.argmax(2)
            parts = (values, (images + 1) / 2, before, after, predicted)
            readings[name] = Reading(*(part.detach().cpu() for part in parts))
    return Grid(
        kind,
        ((pixels + 1) / 2).cpu(),
        [int(c) for c in labels],
        [int(c) for c in targets],
        logits.argmax(1).tolist(),
        names,
        readings,
        {n: r.to_dict() if isinstance(r, Surrogate) else None for n, r in rules.items() if _is_rule(r)},
        settings,
    )


def _is_rule(rule: object) -> bool:
    return rule is None or isinstance(rule, Surrogate)


def _ascent(settings: Mapping[str, float]) -> dict[str, Any]:
    return {"steps": int(settings["steps"]), "step_size": settings["step_size"], "radius": settings["radius"]}


def _numbers(how: AccentuationSettings) -> dict[str, float]:
    numbers = {key: getattr(how, key) for key in ("steps", "crops", "noise", "learning_rate", "weight", "seed")}
    return {**numbers, "passes": how.passes}


def _one_step(pixels: Tensor, direction: Tensor, size: float) -> Tensor:
    """[B, K, C, H, W]: each image after a step of L2 norm `size` along each of its K directions."""
    norm = direction.flatten(2).norm(dim=2)[..., None, None, None]
    unit = torch.where(norm > 0, direction / norm, torch.zeros_like(direction))
    return (pixels[:, None] + size * unit).clamp(-1, 1)


def _arrow(before: Tensor, after: Tensor) -> str:
    return f"{rounded(float(before))} \u2192 {rounded(float(after))}"
