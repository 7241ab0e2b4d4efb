"""How far ascent raises a target's logit, and how specific pullbacks are, for the gradient and for a rule.

`uv run benchmarks/ascent.py --root DATA --weights FILE [--network squeezenet1_1] [--rule '{"scale": "global"}']`

N Imagenette validation images, class after class in turn, times the ten targets, as ImageNet counts them. Gain: the
target logit after ten steps (paper 5.1) minus before. Specificity: the mean absolute cosine between the pullbacks of
two targets on one image; lower is more specific. A rule with scale=channel is calibrated on further images.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from common import report
from torch.nn import functional as F

import softgate as sg
from softgate import models
from softgate.classes import Classes, match
from softgate.data import ImageData
from softgate.explainers.folding import fold
from softgate.explainers.pullback import size_factor
from softgate.grids.reading import IMAGENET_MEAN, IMAGENET_STD
from softgate.sites.calibration import calibrate


def images(root: str, count: int, size: int) -> tuple[torch.Tensor, ImageData]:
    """[count, 3, size, size] pixels in [0, 1], class after class in turn."""
    from torchvision.transforms.v2 import functional as TF

    from softgate.data.reading import read

    options = {"name": "imagenette", "root": root, "size": size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    data = ImageData(options, splits=("val",))
    members = [(data.val_listing.labels == c).nonzero().flatten().tolist() for c in range(len(data.classes))]
    picks = [members[i % len(members)][i // len(members)] for i in range(count)]
    pixels = [TF.center_crop(TF.resize(read(data.val_listing.items[i]).image, [size]), [size]) for i in picks]
    return torch.stack([TF.pil_to_tensor(p).float() / 255 for p in pixels]), data


def absolute_cosine(v: torch.Tensor) -> float:
    """The mean of abs(cos(v_c, v_c')) over pairs of targets and images, v [B, K, 3, H, W]."""
    unit = F.normalize(v.flatten(2), dim=2)
    cosines = (unit @ unit.mT).abs()
    pairs = ~torch.eye(v.shape[1], dtype=torch.bool, device=v.device)
    return float(cosines[:, pairs].mean())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", required=True, help="the folder that holds imagenette2-160/")
    options.add_argument("--weights", required=True, help="a torchvision weights name or a file with a state dict")
    options.add_argument("--network", default="squeezenet1_1")
    options.add_argument("--rule", type=json.loads, default={}, help="plain data of a Surrogate")
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--calibrate", type=int, default=100, help="images that channel scales are measured on")
    options.add_argument("--batch", type=int, default=2, help="images at once, each with ten targets")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--out", type=Path, default=Path("ascent.json"))
    given = options.parse_args()
    soft = sg.Surrogate.from_dict(given.rule)
    further = given.calibrate if soft.scale == "channel" else 0
    every, data = images(given.root, given.images + further, given.size)
    pixels, rest = every[: given.images], every[given.images :]
    net = models.build(given.network, 1000)
    models.load_weights(net, given.network, given.weights, 1000)
    mean, std = (torch.tensor(v, device=given.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    targets = match(data.identity, Classes.imagenet(), "--root").indexes
    x = (pixels.to(given.device) - mean) / std
    net = net.to(given.device).eval()
    folded = fold(net, x[:1])
    if further:
        calibrate(folded, [(part.to(given.device) - mean) / std for part in rest.split(10)], soft)
    factor = size_factor(pixels)
    rules = {"hard": None, "soft": soft}
    rows = []
    for name, rule in rules.items():
        gains, cosines, started = [], [], time.perf_counter()
        for part in range(0, given.images, given.batch):
            image = pixels[part : part + given.batch].to(given.device) * 2 - 1
            settings = {"steps": given.steps, "step_size": 20 * factor, "radius": 100 * factor}
            climbed = sg.ascend(
                folded, image, targets, rule, normalize=lambda p: ((p + 1) / 2 - mean) / std, **settings
            )
            gains.append((climbed.logits[..., -1] - climbed.logits[..., 0]).flatten())
            cosines.append(absolute_cosine(sg.pullback(folded, x[part : part + given.batch], targets, rule)))
        gain = torch.cat(gains)
        row = {"rule": name, "gain": float(gain.mean()), "standard error": float(gain.std() / len(gain) ** 0.5)}
        row |= {"specificity": sum(cosines) / len(cosines), "seconds": time.perf_counter() - started}
        rows.append(row)
    ratio = rows[1]["gain"] / rows[0]["gain"]
    print(f"soft: {rules['soft']}; gain soft / hard {ratio:.3f}")
    title = (
        f"{given.steps}-step ascent, {given.network}, {given.images} images x {len(targets)} targets, {given.size} px"
    )
    report(title, rows, given.out)
