"""A comparison's statistics beside a mixed model's, on the images of real runs: `benchmarks/mixed_model.py RUNS`.

The model is d = mean + seed + image + rest with crossed random effects, fitted by REML in statsmodels, which shares
nothing with softgate's mean squares. Its p is Wald's: it takes the variance between a handful of seeds for known.
"""

import argparse
import math
import warnings
from pathlib import Path

import numpy as np
import pandas
import statsmodels.api as sm
import torch
from common import report

from softgate.data import ImageData
from softgate.data.config import DataConfig
from softgate.evaluation import runs as collection
from softgate.evaluation.checkpoints import directories
from softgate.evaluation.generalization import scores
from softgate.evaluation.generalization.statistics import Difference, estimate
from softgate.explainers.pullback import predict
from softgate.training.checkpoints import restore


def right(run: collection.Run) -> np.ndarray:
    """Whether the last network of a run is right, for each image that an evaluation measures."""
    module, options = restore(run.directory / "checkpoints" / "last.ckpt")
    module.sites.detach()
    data = ImageData(DataConfig.read(options), splits=("val",), measured=True)
    data.setup("validate")
    net = module.net.eval()
    parts = [scores.correct(predict(net, x), labels) for x, labels in data.val_dataloader()]
    return torch.cat(parts).numpy()


def mixed(d: np.ndarray) -> dict[str, float]:
    """Mean, standard error, p and variances of a mixed model of differences [seeds, images]."""
    seeds, images = d.shape
    table = pandas.DataFrame({"d": d.ravel(), "seed": np.repeat(np.arange(seeds), images)})
    table["image"] = np.tile(np.arange(images), seeds)
    effects = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance at the boundary, 0
        model = sm.MixedLM.from_formula("d ~ 1", groups=np.ones(d.size), vc_formula=effects, data=table)
        fitted = model.fit(reml=True, method=["nm"])  # by gradients it ends elsewhere, at a lower likelihood
    parts = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
    about = {"mean": fitted.fe_params.iloc[0], "error": fitted.bse_fe.iloc[0], "p": fitted.pvalues.iloc[0]}
    return {key: float(value) for key, value in {**about, **parts, "rest": fitted.scale}.items()}


def ours(found: Difference) -> dict[str, float]:
    """The same of a comparison's difference."""
    spread = found.variance
    parts = {"seed": spread.seed - spread.noise, "image": spread.example * spread.examples}
    about = {"mean": found.mean, "error": math.sqrt(spread.of_mean()), "p": found.p}
    return {**about, **parts, "rest": spread.noise * spread.examples}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", help="directories of runs, or globs")
    options.add_argument("--baseline", default="none", help="an arm")
    options.add_argument("--out", type=Path, default=Path("mixed_model.json"))
    given = options.parse_args()
    found, left = collection.read(directories(*given.runs), "last")
    print(*left, sep="\n")
    arms: dict[str, dict[int, np.ndarray]] = {}
    for run in collection.sort(found, [], []):
        arms.setdefault(run.arm, {})[run.seed] = right(run)
    base, rows = arms.pop(given.baseline), []
    for arm, by_seed in arms.items():
        both = sorted(set(by_seed) & set(base))
        d = np.stack([by_seed[seed] - base[seed] for seed in both])
        for name, numbers in (("softgate", ours(estimate(d))), ("statsmodels", mixed(d))):
            scaled = {key: value if key == "p" else 100 * value for key, value in numbers.items()}
            rows.append({"arm": arm, "seeds": len(both), "by": name, **scaled})
    report("differences in points, variances of one answer times 100", rows, given.out)
