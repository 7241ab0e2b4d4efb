"""Time of the paper's grids against the published way: `uv run benchmarks/grids.py [--network resnet18] [--rounds 3]`.

The published way takes one target at a time, each with a forward pass of its own, and one copy of the model for each
rule. Both arms compute a hard and a soft grid of 5 images x 6 targets; times are of both together.
"""

import argparse
import copy
from pathlib import Path

import torch
import torchvision
from common import alternate, published, ratio, report
from torch import Tensor, nn

import softgate as sg
from softgate.explainers.folding import fold
from softgate.explainers.pullback import size_factor
from softgate.grids import reading

RULES = {"hard": None, "soft": sg.Surrogate()}
IMAGES, TARGETS = 5, [0, 1, 2, 3, 4, 5]


def network(name: str) -> nn.Module:
    """A network in eval mode whose running statistics are those of a pass over noise."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10)
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def gradient(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """The input gradient of one logit, of a fresh forward pass."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, target].sum(), x)[0]


def climb(model: nn.Module, origin: Tensor, target: int, steps: int, size: float, radius: float) -> Tensor:
    """Projected gradient ascent of all images towards one target, as the paper's 5.1 describes it.

    The network looks at the last images once more: a grid's captions have their logits, and ours reads them too.
    """
    image = origin
    for _ in range(steps):
        direction = gradient(model, image, target)
        image = image + size * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        offset = image - origin
        norm = offset.flatten(1).norm(dim=1).clamp_min(radius).view(-1, 1, 1, 1)
        image = (origin + offset * radius / norm).clamp(-1, 1)
    with torch.no_grad():
        model(image)
    return image


def published_way(model: nn.Module, cell) -> list[Tensor]:
    """Both rules, each on its own copy, target after target."""
    hard = copy.deepcopy(model)
    found = [torch.stack([cell(hard, target) for target in TARGETS], 1)]
    soft = copy.deepcopy(model)
    with published():
        found.append(torch.stack([cell(soft, target) for target in TARGETS], 1))
    return found


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--network", default="resnet18")
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--kinds", nargs="+", default=list(reading.KINDS))
    options.add_argument("--chunk", type=int, default=None)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--out", type=Path, default=Path("grids.json"))
    given = options.parse_args()
    model = network(given.network).to(given.device)
    x = torch.rand(IMAGES, 3, given.size, given.size, device=given.device) * 2 - 1
    factor = size_factor(x)
    ascent = {"steps": given.steps, "step_size": 20 * factor, "radius": 100 * factor}
    synchronize = torch.cuda.synchronize if given.device == "cuda" else lambda: None

    def raw_ours() -> list[Tensor]:
        folded = fold(model, x)
        found = [sg.pullback(folded, x, TARGETS, rule, chunk=given.chunk) for rule in RULES.values()]
        synchronize()
        return found

    def raw_published() -> list[Tensor]:
        found = published_way(model, lambda net, target: gradient(net, x, target))
        synchronize()
        return found

    def ascent_ours() -> list[Tensor]:
        folded = fold(model, x)
        climbs = [sg.ascend(folded, x, TARGETS, rule, chunk=given.chunk, **ascent) for rule in RULES.values()]
        synchronize()
        return [climb.difference for climb in climbs]

    def ascent_published() -> list[Tensor]:
        settings = ascent["steps"], ascent["step_size"], ascent["radius"]
        found = published_way(model, lambda net, target: climb(net, x, target, *settings) - x)
        synchronize()
        return found

    plain = [sg.pullback(model, x, TARGETS, rule) for rule in RULES.values()]
    rows = []
    for name, ours, theirs, wanted in (
        ("raw", raw_ours, raw_published, 0.6),
        ("ascent", ascent_ours, ascent_published, 0.7),
    ):
        if name not in given.kinds:
            continue
        times = alternate({"ours": ours, "published": theirs}, given.rounds)
        median = {arm: sorted(values)[len(values) // 2] for arm, values in times.items()}
        print(name, {arm: [round(value, 2) for value in values] for arm, values in times.items()}, flush=True)
        rows.append({"grid": name} | median | {"ratio": ratio(times, "ours", "published"), "wanted": wanted})
    # A hard gate at a pre-activation of about zero flips by rounding alone, in plain fp32 as much as here (a few per
    # cent of the largest value against float64); soft pullbacks agree to 1e-5.
    for name, found, expected in zip(RULES, raw_ours(), plain, strict=True):
        print(f"{name}: relative difference from the plain pullback {difference([found], [expected]):.1e}")
    kind = f"{given.network}, {given.size} px, {IMAGES} x {len(TARGETS)} cells, hard and soft, seconds"
    report(f"{kind}, {given.steps} steps, median of {given.rounds}", rows, given.out)
