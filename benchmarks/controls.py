"""The control table: every alignment metric of every explainer on one network.

`uv run benchmarks/controls.py` trains a small network on digits for it (about a minute); `--run DIR` takes a trained
one. `--model squeezenet1_1 --weights FILE --images FOLDER` takes a pretrained torchvision network and the validation
images of a folder in ImageNet's layout, whose class folders are WordNet ids or class numbers.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from common import report
from torch import Tensor, nn

import softgate as sg
from softgate import files, models
from softgate.data import ImageData
from softgate.metrics.control_table import Probe, control_table, failures
from softgate.metrics.controls import standard

COLUMNS = {
    "high_frequency": "high_freq -",
    "total_variation": "TV -",
    "max_sensitivity": "max_sens -",
    "noise_cosine": "noise_cos +",
    "deletion": "del +",
    "insertion": "ins +",
    "infidelity": "infid -",
    "mean_alignment": "mean_al +",
    "grid_pointing": "grid +",
    "counterfactual_transfer": "transfer +",
    "randomization_head": "MPRT head -",
    "randomization_all": "MPRT all -",
    "target_specificity": "spec -",
    "input_specificity": "spec in -",
}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
DIGITS = {"name": "digits", "size": 32, "mean": [0.306] * 3, "std": [0.34] * 3}


def small(seed: int) -> nn.Module:
    """Four convolutions with BatchNorm and max pooling: 0.1 million parameters."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(((3, 24), (24, 32), (32, 48), (48, 64))):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i < 3 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(data: ImageData, seed: int, epochs: int) -> nn.Module:
    net = small(seed)
    steps = epochs * len(data.train_dataloader())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(epochs):
        for x, labels in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def val_images(data: ImageData) -> tuple[Tensor, Tensor]:
    pairs = list(data.val_dataloader())
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def balanced(labels: Tensor, count: int) -> Tensor:
    """`count` indexes that take the classes in turn, the first images of each first."""
    rank = torch.zeros_like(labels)
    for c in labels.unique():
        rank[labels == c] = torch.arange(int((labels == c).sum()))
    return (rank * (int(labels.max()) + 1) + labels).argsort()[:count]


def accuracy(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((torch.cat([net(part) for part in x.split(64)]).argmax(1) == labels).float().mean())


def on_digits(given: argparse.Namespace) -> tuple[nn.Module, nn.Module | None, Probe, str]:
    options = DIGITS
    if given.run:
        from softgate.evaluation.checkpoints import find_checkpoint
        from softgate.training.checkpoints import restore

        module, options = restore(find_checkpoint(str(given.run), "best"))
    data = ImageData({**options, "augment": {"crop_scale": [0.8, 1.0], "flip": False}})
    data.setup("fit")
    net = module.net.eval() if given.run else trained(data, 0, given.epochs)
    evaluator = None if given.run else trained(data, 1, given.epochs)
    x, labels = val_images(data)
    means = torch.stack([x[labels == c].mean(0) for c in range(len(data.classes))])
    pick = balanced(labels, given.count)
    probe = Probe(x[pick], labels[pick], means, None, data.mean, data.std)
    return net, evaluator, probe, f"{options['name']}, accuracy {accuracy(net, x, labels):.3f}"


def pretrained(given: argparse.Namespace) -> tuple[nn.Module, nn.Module | None, Probe, str]:
    net = models.build(given.model, 1000, "imagenet").eval()
    models.load_weights(net, given.model, str(given.weights), 1000)
    root = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": given.size, "cache": False}
    data = ImageData({"name": "imagenette", "root": str(given.images), "archive": "160px", **root}, splits=("val",))
    pick = balanced(data.val_listing.labels, max(given.count, 200))
    data.listings["val"] = data.val_listing.subset(pick)
    data.setup("validate")
    x, labels = val_images(data)
    numbers = torch.tensor(IMAGENETTE)
    means = torch.zeros(1000, *x.shape[1:])
    for c, number in enumerate(IMAGENETTE):
        means[number] = x[labels == c].mean(0)
    named = numbers[labels]
    probe = Probe(x[: given.count], named[: given.count], means, IMAGENETTE, data.mean, data.std)
    return net, None, probe, f"{given.model}, ImageNet weights, accuracy on 200 images {accuracy(net, x, named):.3f}"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, help="a run's directory; its network is measured on its own data")
    options.add_argument("--epochs", type=int, default=8, help="of training on digits")
    options.add_argument("--model", default="squeezenet1_1")
    options.add_argument("--weights", type=Path, help="a file of ImageNet weights; takes the pretrained network")
    options.add_argument("--images", type=Path, default=Path("data"), help="the folder that holds imagenette2-160")
    options.add_argument("--size", type=int, default=160)
    options.add_argument("--count", type=int, default=100, help="probe images")
    options.add_argument("--dear", type=int, default=None, help="of them, for metrics of many passes")
    options.add_argument("--temperature", type=float, default=0.3)
    options.add_argument("--out", type=Path, default=Path("controls.json"))
    given = options.parse_args()
    warnings.simplefilter("ignore", sg.SoftgateWarning)  # an undefined value stands in the table as nan
    net, evaluator, probe, about = (pretrained if given.weights else on_digits)(given)
    rule = sg.Surrogate(sg.gates.Sigmoid(given.temperature), sg.pools.LSE(given.temperature))
    explainers = standard(rule, probe.images)
    table = control_table(net, explainers, probe, evaluator, dear=given.dear, told=lambda name: print(f"... {name}"))
    failed = failures(table)
    rows: list[dict[str, object]] = []
    for name, scores in table.items():
        row: dict[str, object] = {"explainer": name}
        row |= {title: scores[key].value for key, title in COLUMNS.items() if key in scores}
        rows.append(row | {"sane": "no" if failed[name] else "yes"})
    title = f"control table: {about}, {len(probe.images)} images, T = {given.temperature}"
    report(title, rows, given.out)
    content = json.loads(given.out.read_text())
    content["scores"] = {name: {key: list(score) for key, score in scores.items()} for name, scores in table.items()}
    content["failures"] = failed
    files.write_json(content, given.out)
