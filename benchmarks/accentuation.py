"""Feature accentuation beside ascent along excitation pullbacks, at equal numbers of passes.

`uv run benchmarks/accentuation.py --data DATA --weights FILE --judge-weights FILE [--picture differences.png]`

N Imagenette validation images, class after class in turn, each made to look like another of the ten classes: by
accentuation with its defaults, with fewer steps and crops, and by `sg.ascend` along the gradient and along the
excitation pullback with scales of each channel (docs/rules.md), at few passes and at as many. A pass is one image that
the network is run on. Arms of more than a thousand passes see the first images only (--dear). Means over images, with
the half width of the 95 % interval (Student's t):

- gain: the target logit, after minus before; others: the mean of the other 999 logits, likewise.
- L2: distance to the image, pixels in [-1, 1], scaled to 3 x 224 x 224 as the paper's radius is.
- deep: distance to the image in five layers of the judge: features of unit length, squared differences, mean over
  positions and layers (arXiv 1801.03924 without its learnt weights).
- judge: what an independent network gives the target, a probability; top: how often the target is its first choice.

The judge is any network of torchvision or timm for ImageNet's classes; where the names in its file are of another
library, its tensors are taken in their order.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from ascent import images
from common import report
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

import softgate as sg
from softgate import files, models
from softgate.classes import Classes, match
from softgate.explainers.layers import listening, with_weights
from softgate.explainers.pullback import predict, size_factor
from softgate.figures import style
from softgate.grids.reading import IMAGENET_MEAN, IMAGENET_STD
from softgate.metrics import FeatureDistance
from softgate.sites.calibration import calibrate

MANY = 1000
"""Passes from which an arm is dear."""

SHOWN = 3
"""Images whose differences are drawn."""

SEEN = 224
"""Pixels a side of what the judge is given."""


@dataclass
class Arm:
    """A way to change images: from seeds and targets to images, pixels in [-1, 1]."""

    name: str
    passes: int
    make: Callable[[Tensor, Tensor], Tensor]


def other_judge(name: str, file: str) -> nn.Module:
    """A network with weights from a file, by name or else in order."""
    net = models.build(name, 1000).eval()
    own, given = net.state_dict(), torch.load(file, map_location="cpu", weights_only=True)
    if own.keys() != given.keys():
        ours, theirs = ([key for key in state if "num_batches" not in key] for state in (own, given))
        same = [own[a].shape for a in ours] == [given[b].shape for b in theirs]
        sg.errors.require(same, f"--judge-weights={file}: its tensors are not those of {name}.")
        given = own | {a: given[b] for a, b in zip(ours, theirs, strict=True)}
    net.load_state_dict(given)
    return net


class Judge:
    """An independent network, and how far apart it finds two images."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        self.net, self.mean, self.std = net, mean, std
        with listening(net, set()) as outputs:
            self.logits(torch.zeros(1, 3, SEEN, SEEN))
            known = with_weights(net, outputs.order)
        self.apart = FeatureDistance(net, [known[len(known) * k // 6] for k in range(1, 6)])

    def logits(self, pixels: Tensor) -> Tensor:
        """[B, 1000] for pixels in [-1, 1] of any size."""
        with torch.no_grad():
            return self.net(self._seen(pixels))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """[B], the mean over layers of squared differences: twice one minus the cosine."""
        return 2 / len(self.apart.layers) * self.apart(self._seen(a), self._seen(b)).float()

    def _seen(self, pixels: Tensor) -> Tensor:
        shown = F.interpolate((pixels + 1) / 2, (SEEN, SEEN), mode="bilinear", antialias=True)
        return (shown - self.mean) / self.std


def all_arms(net: nn.Module, soft: sg.Surrogate, normalize: Callable[[Tensor], Tensor], factor: float) -> list[Arm]:
    """What is compared."""
    quick = {"steps": 5, "crops": 1}
    middle = {"steps": 25, "crops": 4}

    def accentuation(words: str, rule: sg.Surrogate | None = None, **settings: float) -> Arm:
        how = sg.AccentuationSettings(**settings)

        def make(x: Tensor, targets: Tensor) -> Tensor:
            return sg.accentuate(net, x, targets, rule, how, normalize=normalize).image

        crops = "1 crop" if how.crops == 1 else f"{how.crops} crops"
        return Arm(f"accentuation, {how.steps} steps of {crops}{words}", how.passes, make)

    def climb(words: str, steps: int, rule: sg.Surrogate | None) -> Arm:
        settings = {"steps": steps, "step_size": 20 * factor, "radius": 100 * factor}

        def make(x: Tensor, targets: Tensor) -> Tensor:
            return sg.ascend(net, x, targets, rule, normalize=normalize, **settings).image

        return Arm(f"ascent along the {words}, {steps} steps", steps + 1, make)

    few = accentuation("", **quick)
    some, most = accentuation("", **middle), accentuation("")
    return [
        few,
        accentuation(", rate x 10", learning_rate=0.1, **quick),
        climb("gradient", 10, None),
        climb("pullback", 5, soft),
        climb("pullback", 10, soft),
        some,
        accentuation(", along the pullback", soft, **middle),
        climb("gradient", some.passes - 1, None),
        climb("pullback", some.passes - 1, soft),
        most,
        climb("pullback", most.passes - 1, soft),
    ]


def measured(net: nn.Module, judge: Judge, normalize: Callable, seeds: Tensor, image: Tensor, targets: Tensor) -> dict:
    """Each measure [B] of changed images."""
    columns = targets[:, None]
    change = predict(net, normalize(image)) - predict(net, normalize(seeds))
    gain = change.gather(1, columns)[:, 0]
    seen = judge.logits(image)
    return {
        "gain": gain,
        "others": (change.sum(1) - gain) / (change.shape[1] - 1),
        "L2": (image - seeds).flatten(1).norm(dim=1) / size_factor(image),
        "deep": judge.distance(image, seeds),
        "judge": seen.softmax(1).gather(1, columns)[:, 0],
        "top": (seen.argmax(1) == targets).float(),
    }


def interval(values: Tensor) -> str:
    """Mean and half width of the 95 % interval."""
    if len(values) < 2:
        return f"{float(values.mean()):.3g}"
    half = stats.t.ppf(0.975, len(values) - 1) * float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.3g} ± {float(f'{half:.2g}'):g}"


def draw(differences: dict[str, Tensor], words: list[str], file: Path) -> None:
    """Differences [B, 3, H, W] by arm, a column each, grey where nothing changed; no image that was given.

    Args:
        differences: Each is scaled by itself; an arm may have fewer than there are rows.
        words: What each image was made to look like.
        file: A PNG.
    """
    with style.context():
        figure = style.figure(1.1 * len(differences), 1.1 * len(words) + 0.5)
        axes = figure.subplots(len(words), len(differences), squeeze=False)
        for column, (name, parts) in enumerate(differences.items()):
            axes[0, column].set_title("\n".join(name.split(", ")), fontsize=5)
            for place, part in zip(axes[:, column], parts, strict=False):
                shown = 0.5 + 0.5 * part / part.abs().max()
                place.imshow(shown.permute(1, 2, 0).numpy(), interpolation="antialiased")
        for row, word in zip(axes, words, strict=True):
            row[0].set_ylabel(word, fontsize=6)
        for place in axes.flat:
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
        files.save_picture(style.picture(figure), file)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="the folder that holds imagenette2-160/")
    options.add_argument("--weights", required=True, help="a torchvision weights name or a file with a state dict")
    options.add_argument("--network", default="squeezenet1_1")
    options.add_argument("--judge", default="timm/tf_efficientnet_lite0", help="of torchvision, or timm/NAME")
    options.add_argument("--judge-weights", required=True, help="a file with a state dict")
    options.add_argument("--judge-mean", type=float, default=0.5, help="what the judge has subtracted from [0, 1]")
    options.add_argument("--judge-std", type=float, default=0.5)
    options.add_argument("--images", type=int, default=12)
    options.add_argument("--dear", type=int, default=4, help=f"images for arms of more than {MANY} passes; 0: none")
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--calibrate", type=int, default=100, help="further images, for channel scales")
    options.add_argument("--picture", type=Path, help="differences of the first images, as a PNG")
    options.add_argument("--out", type=Path, default=Path("accentuation.json"))
    given = options.parse_args()
    pixels, data = images(given.data, given.images + given.calibrate, given.size)
    net = models.build(given.network, 1000)
    models.load_weights(net, given.network, given.weights, 1000)
    net.eval()
    judge = Judge(other_judge(given.judge, given.judge_weights), given.judge_mean, given.judge_std)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    soft = sg.Surrogate(scale="channel")
    calibrate(net, [(part - mean) / std for part in pixels[given.images :].split(10)], soft)
    indexes = match(data.identity, Classes.imagenet(), "--data").indexes
    numbers = [(i + 1 + i // 10 % 9) % 10 for i in range(given.images)]  # never the image's own class, i % 10
    targets = torch.tensor([indexes[number] for number in numbers])
    seeds = pixels[: given.images] * 2 - 1

    def normalize(image: Tensor) -> Tensor:
        return ((image + 1) / 2 - mean) / std

    seen = judge.logits(seeds).softmax(1).gather(1, targets[:, None])
    right = judge.logits(seeds).argmax(1) == torch.tensor([indexes[i % 10] for i in range(given.images)])
    print(f"judge before: target {float(seen.mean()):.4f}, right on {float(right.float().mean()):.2f} of the images")
    rows, differences = [], {}
    for arm in all_arms(net, soft, normalize, size_factor(pixels)):
        count = given.dear if arm.passes > MANY else given.images
        if count == 0:
            continue
        started = time.process_time()
        image = arm.make(seeds[:count], targets[:count])
        spent = time.process_time() - started
        found = measured(net, judge, normalize, seeds[:count], image, targets[:count])
        row: dict[str, object] = {"arm": arm.name, "passes": arm.passes, "images": count}
        rows.append(row | {key: interval(part) for key, part in found.items()} | {"CPU s an image": spent / count})
        print(rows[-1], flush=True)
        differences[arm.name] = (image - seeds[:count])[:SHOWN]
        files.save(differences, given.out.with_suffix(".pt"))
    report(f"{given.network}, {given.size} px, target another of ten classes; judge {given.judge}", rows, given.out)
    if given.picture:
        draw(differences, [data.classes[number] for number in numbers[:SHOWN]], given.picture)


if __name__ == "__main__":
    main()
