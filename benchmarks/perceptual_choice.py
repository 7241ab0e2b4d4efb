"""Which distance sees what people see? `uv run benchmarks/perceptual_choice.py --data DIR --weights FILE`.

Two-alternative forced choice (arXiv 1801.03924): of two distortions of a photograph the distance must name the milder
one; common corruptions at severities 1 to 5 make them. Pixels, SSIM, deep features and the path kernels K_G and K_Gamma
of one pretrained network. `--data` holds imagenette2-160; `--bapps DIR` measures on people's own judgements instead.
Intervals are 95 % over photographs, those of differences too.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from common import report
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import softgate as sg
from softgate import files, metrics, models
from softgate.correlation import bootstrap_weights
from softgate.data import BAPPS, ImageData
from softgate.metrics import corruptions

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYERS = {"squeezenet1_1": [f"features.{place}" for place in (1, 4, 7, 9, 10, 11, 12)]}
"""Those that LPIPS looks at; of another network `--layers` names them."""


def distances(net: nn.Module, layers: list[str], temperature: float) -> dict[str, metrics.distances.ImageDistance]:
    """All that are compared, of pixels."""
    rule = sg.Surrogate(sg.gates.Sigmoid(temperature), sg.pools.LSE(temperature))
    paths = {"K_G": None, "K_Gamma": rule}
    of_net = {"deep features": metrics.FeatureDistance(net, layers)}
    of_net |= {name: partial(sg.paths.kernel_distance, net, rule=each) for name, each in paths.items()}
    taken = {name: metrics.of_network(each, MEAN, STD) for name, each in of_net.items()}
    return {"pixel MSE": metrics.pixel_distance, "SSIM": metrics.ssim_distance, **taken}


def photographs(given: argparse.Namespace) -> Tensor:
    """As many of each class of Imagenette's validation images, [N, 3, H, W] in [0, 1]."""
    options = {"name": "imagenette", "root": str(given.data), "archive": "160px", "size": given.size, "cache": False}
    data = ImageData({**options, "mean": [0.0] * 3, "std": [1.0] * 3}, splits=("val",))
    return data.sample(given.images, seed=given.seed)[0]


def said(done: int) -> None:
    print(f"... {done}", end="\r", file=sys.stderr)


def of_corruptions(taken: dict, given: argparse.Namespace) -> tuple[dict[str, metrics.PerceptualChoice], dict]:
    """The choices on corrupted photographs: between every two severities, and the ladders themselves."""
    families = given.families or list(corruptions.FAMILIES)
    ladders = metrics.severity_ladder(taken, photographs(given), families, given.severities, given.seed, said)
    found = {}
    for name, ladder in ladders.items():
        found[name] = metrics.PerceptualChoice(families)
        found[name].update(*metrics.milder_or_stronger(ladder, given.neighbours))
    return found, {name: ladder.tolist() for name, ladder in ladders.items()}


def of_people(taken: dict, given: argparse.Namespace) -> tuple[dict[str, metrics.PerceptualChoice], dict]:
    """The choices on BAPPS, a random part of each family."""
    triplets = BAPPS(given.bapps, given.families)
    order = torch.randperm(len(triplets), generator=torch.Generator().manual_seed(given.seed)).tolist()
    found = {name: metrics.PerceptualChoice(triplets.families) for name in taken}
    for done, (ref, p0, p1, judge, family) in enumerate(DataLoader(Subset(triplets, order[: given.images]), 16)):
        for name, distance in taken.items():
            near, far = distance(ref, p0), distance(ref, p1)
            found[name].update(near[:, None], far[:, None], judge[:, None], family[:, None])
        said(16 * (done + 1))
    return found, {}


def interval(value: Tensor, ends: Tensor) -> str:
    """In percent."""
    return f"{100 * float(value):.1f} [{100 * float(ends[0]):.1f}, {100 * float(ends[1]):.1f}]"


def lead(first: metrics.PerceptualChoice, second: metrics.PerceptualChoice) -> str:
    """How much more often the first agrees over all triplets, photograph by photograph."""
    rows = torch.cat(first.rows)[:, -1] - torch.cat(second.rows)[:, -1]
    drawn = bootstrap_weights(len(rows), 1000, 0) @ rows / len(rows)
    return interval(rows.mean(), torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds imagenette2-160")
    options.add_argument("--weights", required=True, help="a file with ImageNet weights, or torchvision's name of them")
    options.add_argument("--model", default="squeezenet1_1")
    options.add_argument("--layers", nargs="*", help="modules whose outputs are the deep features")
    options.add_argument("--bapps", type=Path, help="the folder of BAPPS: people's judgements, not severities")
    options.add_argument("--families", nargs="*", help="of corruptions or of BAPPS; all unless named")
    options.add_argument("--severities", nargs="*", type=int, default=list(corruptions.SEVERITIES))
    options.add_argument("--neighbours", action="store_true", help="only severities next to each other")
    options.add_argument("--images", type=int, default=20, help="photographs, or triplets of BAPPS; 2 at least")
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--temperature", type=float, default=0.3)
    options.add_argument("--seed", type=int, default=0, help="of the photographs and of the corruptions' noise")
    options.add_argument("--out", type=Path, default=Path("perceptual_choice.json"))
    given = options.parse_args()
    try:
        sg.errors.require(given.images >= 2, f"--images {given.images}: intervals need 2 at least.")
        net = models.build(given.model, 1000, "imagenet").eval()
        models.load_weights(net, given.model, given.weights, 1000)
        sg.errors.require(
            bool(given.layers) or given.model in LAYERS, f"--model {given.model}: its --layers are needed."
        )
        taken = distances(net, given.layers or LAYERS[given.model], given.temperature)
        found, ladders = (of_people if given.bapps else of_corruptions)(taken, given)
    except sg.SoftgateError as error:
        raise SystemExit(f"error: {error}") from None
    values, ends = (
        {name: read(one) for name, one in found.items()} for read in (lambda m: m.compute(), lambda m: m.interval())
    )
    names = next(iter(values.values()))
    rows = [
        {"family": family, **{name: interval(values[name][family], ends[name][family]) for name in found}}
        for family in names
    ]
    rows += [
        {
            "family": f"{first} minus",
            **{name: lead(found[first], one) if name != first else "" for name, one in found.items()},
        }
        for first in ("K_G", "K_Gamma")
    ]
    about = f"{given.model}, {given.images} images, {given.size} px, seed {given.seed}"
    title = f"2AFC, percent [95 % over photographs]: {about}"
    report(title, rows, given.out)
    files.write_json({**json.loads(given.out.read_text()), "ladders": ladders}, given.out)
