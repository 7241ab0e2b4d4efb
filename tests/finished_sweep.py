"""A sweep as training leaves it, made in a second: networks with weights by chance, with all files of their runs."""

import json
from pathlib import Path

import torch
import yaml
from PIL import Image

from softgate.training import SoftgateModule

MODEL = {"name": "squeezenet1_1", "stem": "imagenet"}
CLASSES = ["a", "b", "c", "d"]
RULES = {
    "none": {"gate": {"name": "hard"}, "pool": {"name": "hard"}},
    "excitation": {"gate": {"name": "sigmoid", "temperature": 0.3}, "pool": {"name": "lse", "temperature": 0.3}},
    "sugar": {"gate": {"name": "bsilu", "alpha": 1.67}, "pool": {"name": "hard"}},
}
ENVIRONMENT = {
    "python": "3.11", "platform": "Linux", "packages": {"softgate": "0.1.0", "torch": "2.15"}, "commit": "abc",
    "hardware": "a processor", "devices": 1, "cores": 2, "threads": 2,
}  # fmt: skip


def images(root: Path, splits=("train", "val"), classes=CLASSES, count=3) -> Path:
    """Photographs of noise, of another strength for each class."""
    generator = torch.Generator().manual_seed(0)
    for split in splits:
        for k, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (torch.rand(32, 32, 3, generator=generator) * (100 + 40 * k)).to(torch.uint8).numpy()
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def options(root: Path, **changed) -> dict:
    """Of the data, as a config has them."""
    about = {"name": "folder", "root": str(root), "size": 32, "batch_size": 8, "num_workers": 0, "fraction": 1.0}
    return about | {"mean": [0.5] * 3, "std": [0.5] * 3} | changed


def run(directory: Path, data: dict, rule: str, seed: int, classes=CLASSES, lr=0.1, acc=0.5, **summary) -> Path:
    """A finished run."""
    torch.manual_seed(1000 * sorted(RULES).index(rule) + seed)
    module = SoftgateModule(MODEL, RULES[rule], classes)
    (directory / "checkpoints").mkdir(parents=True)
    (directory / ".hydra").mkdir()
    settings = {"model": MODEL, "surrogate": RULES[rule], "classes": list(classes)}
    content = {"hyper_parameters": settings, "datamodule_hyper_parameters": {"options": data}}
    for name in ("best", "last"):
        torch.save(content | {"state_dict": module.state_dict()}, directory / "checkpoints" / f"{name}.ckpt")
    config = {"seed": seed, "name": "x", "data": data, "model": MODEL, "surrogate": RULES[rule], "optim": {"lr": lr}}
    config |= {"trainer": {"max_epochs": 2}, "callbacks": {"seed": seed}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    chosen = {"hydra": {"runtime": {"choices": {"surrogate": rule, "model": "squeezenet1_1"}}}}
    (directory / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(chosen))
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"surrogate={rule}", f"seed={seed}"]))
    lines = ["epoch,step,val/acc,val/loss,train/loss,align/soft/noise_cosine,align/hard/noise_cosine"]
    for epoch in range(3):
        values = acc + epoch / 20, 1 - epoch / 9, 1 - epoch / 5, 0.8 + seed / 50, 0.5 + seed / 60
        lines.append(",".join(map(str, (epoch, epoch, *values))))
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    found = {"val/acc": acc, "best/val/acc": acc, "best/epoch": 2, "seconds": 60.0, "status": "finished"}
    found |= {"started": f"2026-11-24T00:00:0{seed}+00:00", "environment": ENVIRONMENT} | summary
    (directory / "summary.json").write_text(json.dumps(found))
    return directory


def sweep(root: Path, data: dict, arms=("none", "excitation", "sugar"), seeds=(0, 1, 2)) -> Path:
    """One run for each arm and seed, in one directory."""
    for rule in arms:
        for seed in seeds:
            run(root / f"{rule}-{seed}", data, rule, seed)
    words = ["surrogate=none,excitation,sugar", "seed=0,1,2"]
    (root / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": words}}}))
    return root
