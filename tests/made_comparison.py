"""A comparison as measuring leaves it, made of numbers by chance."""

from pathlib import Path

import numpy as np
import torch

from configs import container
from softgate.evaluation import compare
from softgate.evaluation.config import CompareConfig
from softgate.evaluation.generalization.measures import Measured
from softgate.evaluation.runs import Run


def comparison(name: str, directory: Path | None = None) -> compare.Comparison:
    """Two arms with three seeds each; every name that a user gives is `name`, and runs lie in `directory`."""
    environment = {
        **{"packages": {name: "1"}, "python": "3", "platform": name, "devices": 1, "hardware": name},
        **{"cores": 1, "threads": 1, "commit": name},
    }
    options = CompareConfig.read(container("runs=x", name="evaluate")["compare"])
    generator, runs, measured = np.random.default_rng(0), [], []
    for arm in ("none", f"soft {name}"):
        for seed in (0, 1, 2):
            summary = {"seconds": 1.0, "environment": environment, "started": name, "best/epoch": 1}
            points = {"val/acc": [(0, 0.1), (1, 0.5)]}
            config = {"seed": seed, "name": name, name: 1, "data": {"fraction": 1.0}}
            words = [f"name={name}", f"seed={seed}"]
            place = directory and directory / f"{arm}-{seed}"
            run = Run(place, f"{arm}-{seed} {name}", config, summary, points, {}, words, [*words, "x=1,2"], arm=arm)
            runs.append(run)
            each = Measured()
            each.add("acc", torch.tensor((generator.random(200) < 0.5).astype(float)))
            each.confusion = torch.tensor([[60, 40, 0], [10, 90, 0]])
            measured.append(each)
    made = compare.Comparison(runs, "none", options, left=[f"{name}: left"], notes=[name], tuned=[f"tuned {name}"])
    made.measured, made.environment = measured, environment
    made.data = {"name": name, "images": 200, "called": "test images", "classes": [name, "cat"]}
    made.rows = compare.differences(made)
    return made
