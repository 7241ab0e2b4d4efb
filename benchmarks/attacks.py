"""Robust accuracy by our PGD and by other libraries': `benchmarks/attacks.py RUN [--libraries torchattacks foolbox]`.

The same network, images, radius, step size and number of steps; random starts are each library's own. The libraries are
no dependencies of softgate, and torchattacks pins others: install them into an environment of their own, as in
`uv run --no-project --with torchattacks --with foolbox --with . benchmarks/attacks.py RUN`.
"""

import argparse
import time
from pathlib import Path

import torch
from common import report
from torch import Tensor, nn

from softgate.data import ImageData
from softgate.evaluation.checkpoints import find_checkpoint
from softgate.evaluation.generalization.attacks import PGD
from softgate.explainers.adversarial import RELATIVE_STEP, in_pixels, scaled_l2
from softgate.sites.inference import reading_out
from softgate.training.checkpoints import restore


class FromPixels(nn.Module):
    """The network as a function of pixels in [0, 1]."""

    def __init__(self, net: nn.Module, normalize) -> None:
        super().__init__()
        self.net, self.normalize = net, normalize

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, x.shape[1:])  # or a gradient is channels last, which torchattacks cannot take
        return self.net(self.normalize(x))


def by_torchattacks(net: nn.Module, x: Tensor, labels: Tensor, norm: str, radius: float, steps: int) -> Tensor:
    import torchattacks

    step = RELATIVE_STEP * radius / steps
    attack = (torchattacks.PGD if norm == "linf" else torchattacks.PGDL2)(net, radius, step, steps)
    return attack(x, labels)


def by_foolbox(net: nn.Module, x: Tensor, labels: Tensor, norm: str, radius: float, steps: int) -> Tensor:
    import foolbox

    attacks = foolbox.attacks
    attack = attacks.LinfPGD if norm == "linf" else attacks.L2PGD
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    _, found, _ = attack(rel_stepsize=RELATIVE_STEP / steps, steps=steps)(model, x, labels, epsilons=radius)
    return found


LIBRARIES = {"torchattacks": by_torchattacks, "foolbox": by_foolbox}

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", help="a run's directory or checkpoint")
    options.add_argument("--libraries", nargs="*", default=list(LIBRARIES), choices=list(LIBRARIES))
    options.add_argument("--images", type=int, default=400)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--linf", type=float, nargs="*", default=[2 / 255, 8 / 255])
    options.add_argument("--l2", type=float, nargs="*", default=[0.25, 1.0], help="for images of 32 x 32")
    options.add_argument("--batch", type=int, default=100)
    options.add_argument("--out", type=Path, default=Path("attacks.json"))
    given = options.parse_args()
    module, about = restore(find_checkpoint(given.run, "last"))
    data = ImageData(about, splits=("val",))
    x, labels = data.sample(given.images, seed=314)
    rows = []
    module.eval()
    with reading_out(module.net, None):
        for norm, sizes in (("linf", given.linf), ("l2", given.l2)):
            for size in sizes:
                radius = size if norm == "linf" else scaled_l2(size, data.size)
                standing: dict[str, list[Tensor]] = {"softgate": [], **{name: [] for name in given.libraries}}
                seconds = dict.fromkeys(standing, 0.0)
                for part, wanted in zip(x.split(given.batch), labels.split(given.batch), strict=True):
                    pixels, normalize = in_pixels(part, data.mean, data.std)
                    net = FromPixels(module.net, normalize).eval()
                    right = net(pixels).argmax(1) == wanted
                    for name in standing:
                        started = time.perf_counter()
                        if name == "softgate":
                            attack = PGD(norm, radius, given.steps)
                            kept = attack(module.net, part, wanted, data.mean, data.std)[0]
                        else:
                            found = LIBRARIES[name](net, pixels, wanted, norm, radius, given.steps)
                            kept = right & (net(found).argmax(1) == wanted)
                        seconds[name] += time.perf_counter() - started
                        standing[name].append(kept.detach())
                shares = {name: float(torch.cat(parts).double().mean()) for name, parts in standing.items()}
                rows.append({"norm": norm, "radius": radius, **shares, **{f"{k} s": v for k, v in seconds.items()}})
    report(f"robust accuracy, {given.images} images, {given.steps} steps", rows, given.out)
