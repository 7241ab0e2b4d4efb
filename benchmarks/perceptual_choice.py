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
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import softgate as sg
from softgate import files, metrics, models
from softgate.correlation import bootstrap_weights
from softgate.data import BAPPS, ImageData
from softgate.metrics import corruptions

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYERS = {"squeezenet1_1": [f"features.{place}" for place in (1, 4, 7, 9, 10, 11, 12)]}
"""Those that LPIPS looks at; of another network `--layers` names them."""


def taken(given: argparse.Namespace) -> dict[str, metrics.distances.ImageDistance]:
    """All distances that are compared, of pixels."""
    layers = given.layers or LAYERS.get(given.model)
    sg.errors.require(bool(layers), f"--model {given.model}: its --layers are needed.")
    told = given.untrained != (given.weights is not None)
    sg.errors.require(told, "--weights: a file with ImageNet weights is needed, or --untrained in its place.")
    torch.manual_seed(given.seed)
    net = models.build(given.model, 1000, "imagenet").eval()
    if given.weights is not None:
        models.load_weights(net, given.model, given.weights, 1000)
    rule = sg.Surrogate(sg.gates.Sigmoid(given.temperature), sg.pools.LSE(given.temperature))
    of_net = {"deep features": metrics.FeatureDistance(net, layers)}
    of_net |= {
        name: partial(sg.paths.kernel_distance, net, rule=each) for name, each in {"K_G": None, "K_Gamma": rule}.items()
    }
    of_pixels = {name: metrics.of_network(each, MEAN, STD) for name, each in of_net.items()}
    return {"pixel MSE": metrics.pixel_distance, "SSIM": metrics.ssim_distance, **of_pixels}


def photographs(given: argparse.Namespace) -> Tensor:
    """As many of each class of Imagenette's validation images, [N, 3, H, W] in [0, 1]."""
    options = {"name": "imagenette", "root": str(given.data), "archive": "160px", "size": given.size, "cache": False}
    data = ImageData({**options, "mean": [0.0] * 3, "std": [1.0] * 3}, splits=("val",))
    return data.sample(given.images, seed=given.seed)[0]


def said(done: int) -> None:
    print(f"... {done}", end="\r", file=sys.stderr)


def ladders_of(given: argparse.Namespace) -> tuple[dict[str, Tensor], list[str]]:
    """The distances at every severity, and the families; those of `--again` where it is given."""
    if given.again:
        kept = json.loads(given.again.read_text())
        return {name: torch.tensor(each, dtype=torch.float64) for name, each in kept["ladders"].items()}, kept[
            "families"
        ]
    families = given.families or list(corruptions.FAMILIES)
    return metrics.severity_ladder(
        taken(given), photographs(given), families, given.severities, given.seed, said
    ), families


def of_corruptions(ladders: dict[str, Tensor], families: list[str], choices) -> dict[str, metrics.PerceptualChoice]:
    """The choices on corrupted photographs, of triplets that `choices` makes of a ladder."""
    found = {name: metrics.PerceptualChoice(families) for name in ladders}
    for name, ladder in ladders.items():
        found[name].update(*choices(ladder))
    return found


def of_people(given: argparse.Namespace) -> dict[str, metrics.PerceptualChoice]:
    """The choices on BAPPS, a random part of each family."""
    triplets = BAPPS(given.bapps, given.families)
    compared = taken(given)
    order = torch.randperm(len(triplets), generator=torch.Generator().manual_seed(given.seed)).tolist()
    found = {name: metrics.PerceptualChoice(triplets.families) for name in compared}
    for done, (ref, p0, p1, judge, family) in enumerate(DataLoader(Subset(triplets, order[: given.images]), 16)):
        for name, distance in compared.items():
            near, far = distance(ref, p0), distance(ref, p1)
            found[name].update(near[:, None], far[:, None], judge[:, None], family[:, None])
        said(16 * (done + 1))
    return found


def interval(value: Tensor, ends: Tensor) -> str:
    """In percent."""
    return f"{100 * float(value):.1f} [{100 * float(ends[0]):.1f}, {100 * float(ends[1]):.1f}]"


def lead(first: metrics.PerceptualChoice, second: metrics.PerceptualChoice) -> str:
    """How much more often the first agrees over all triplets, photograph by photograph."""
    rows = torch.cat(first.rows)[:, -1] - torch.cat(second.rows)[:, -1]
    drawn = bootstrap_weights(len(rows), 1000, 0) @ rows / len(rows)
    return interval(rows.mean(), torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)))


def table(found: dict[str, metrics.PerceptualChoice]) -> list[dict[str, object]]:
    """A row for each family, one for all, and how much more often the path kernels agree."""
    values, ends = {name: one.compute() for name, one in found.items()}, {n: one.interval() for n, one in found.items()}
    rows: list[dict[str, object]] = [
        {"family": family, **{name: interval(values[name][family], ends[name][family]) for name in found}}
        for family in next(iter(values.values()))
    ]
    for first in ("K_G", "K_Gamma"):
        leads = {name: "" if name == first else lead(found[first], one) for name, one in found.items()}
        rows.append({"family": f"{first} minus", **leads})
    return rows


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds imagenette2-160")
    options.add_argument("--weights", help="a file with ImageNet weights, or torchvision's name of them")
    options.add_argument("--untrained", action="store_true", help="a control: fresh weights")
    options.add_argument("--model", default="squeezenet1_1")
    options.add_argument("--layers", nargs="*", help="modules whose outputs are the deep features")
    options.add_argument("--bapps", type=Path, help="the folder of BAPPS: people's judgements, not severities")
    options.add_argument("--families", nargs="*", help="of corruptions or of BAPPS; all unless named")
    options.add_argument("--severities", nargs="*", type=int, default=list(corruptions.SEVERITIES))
    options.add_argument("--images", type=int, default=20, help="photographs, or triplets of BAPPS; 2 at least")
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--temperature", type=float, default=0.3)
    options.add_argument("--seed", type=int, default=0, help="of the photographs and of the corruptions' noise")
    options.add_argument("--again", type=Path, help="an earlier --out: its distances, put into tables again")
    options.add_argument("--out", type=Path, default=Path("perceptual_choice.json"))
    given = options.parse_args()
    about = f"{given.model}, {given.images} images, {given.size} px, seed {given.seed}{', untrained' * given.untrained}"
    kept: dict[str, object] = {}
    try:
        sg.errors.require(given.images >= 2, f"--images {given.images}: intervals need 2 at least.")
        if given.bapps:
            tables = {"people": table(of_people(given))}
        else:
            ladders, families = ladders_of(given)
            kept = {"ladders": {name: ladder.tolist() for name, ladder in ladders.items()}, "families": families}
            tables = {
                "severities of one family": table(of_corruptions(ladders, families, metrics.milder_or_stronger)),
                "least severity against another family's greatest, by the mild one": table(
                    of_corruptions(ladders, families, metrics.milder_of_another)
                ),
            }
    except sg.SoftgateError as error:
        raise SystemExit(f"error: {error}") from None
    for title, rows in tables.items():
        report(f"{title}: percent [95 % over photographs]; {about}", rows, given.out)
    files.write_json({**json.loads(given.out.read_text()), "tables": tables, **kept}, given.out)
