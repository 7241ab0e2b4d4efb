"""The few lines of Python that compute what the page shows."""

from __future__ import annotations

from collections.abc import Sequence

from softgate.app.library import CALIBRATED, Network
from softgate.app.request import Request


def of_networks(request: Request, networks: Sequence[Network], own: int) -> str:
    """For read-outs: leaves `hard` and `soft` in `values`, one entry for each run, and the picture in `picture`."""
    lines = ["from pathlib import Path", "", "import torch", "import softgate as sg"]
    body: list[str] = []
    for network in networks:
        for line in network.code:
            if line.startswith("from ") and line not in lines:
                lines.insert(len(lines), line)
            elif line and not line.startswith("from "):
                body.append(line)
        body += _look(request, network, networks[0].probe)
        body.append("")
    rule = [f"rule = sg.Surrogate.from_dict({request.rule.to_dict()!r})", f"targets = {list(request.targets)}"]
    head = [*lines, "", *rule, 'values, images = {"hard": [], "soft": []}, []', ""]
    names = [networks[0].names[target] for target in request.targets]
    rows = [f"trained {'soft' if network.soft else 'hard'}" for network in networks]
    draw = [
        "blocks = {name: torch.cat(parts) for name, parts in values.items()}",
        "picture = sg.grids.pullback_grid(",
        f"    torch.cat(images), blocks, {rows!r}, {names!r},",
        f"    {[own] * len(networks)}, targets, scale={request.scale!r},",
        ")",
        'picture.save("look.png")',
    ]
    return "\n".join([*head, *body, *draw]) + "\n"


def _look(request: Request, network: Network, probe: tuple[int, int]) -> list[str]:
    if request.upload is None and request.probe is not None:
        classes, seed = probe
        lines = [f"x = data.probe(min({classes}, len(data.classes)), {seed})[0][{request.probe}:{request.probe + 1}]"]
    elif request.upload is None:
        lines = [f"x = data.nth(label={request.label}, number={request.number})"]
    else:
        lines = [
            "from softgate.app.images import Images",
            'upload = Path("your-image.png").read_bytes()',
            "x = Images(data.config).uploaded(upload, most_bytes=1e9, most_pixels=10**9)",
        ]
    lines += ["pixels = data.denormalize(x)", "images.append(pixels)"]
    if request.rule.scale == "channel":
        lines += [
            "from softgate.training.probe import spread",
            f"sg.calibrate(net, [spread(data, {CALIBRATED})[0]], rule)  # where the network brings no scales",
        ]
    if request.kind == "raw":
        return [
            *lines,
            'values["hard"].append(sg.pullback(net, x, targets))',
            'values["soft"].append(sg.pullback(net, x, targets, rule))',
        ]
    return [
        *lines,
        "mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))",
        "factor = (x[0].numel() / (3 * 224 * 224)) ** 0.5",
        "way = dict(",
        f"    steps={request.steps}, step_size={request.step_size} * factor, radius={request.radius} * factor,",
        "    normalize=lambda image: ((image + 1) / 2 - mean) / std,",
        ")",
        'for name, each in (("hard", None), ("soft", rule)):',
        "    start = ((x * std + mean) * 2 - 1).clamp(-1, 1)",
        "    values[name].append(sg.ascend(net, start, targets, each, **way).difference)",
    ]


def of_saved(path: str, scale: str) -> str:
    """For a grid that a run saved."""
    return f"""import torch
import softgate as sg

saved = torch.load({path!r}, weights_only=True)
blocks = {{name: saved[name] for name in ("hard", "soft") if name in saved}}
rows = [f"class {{label}}" for label in saved["labels"]]
picture = sg.grids.pullback_grid(
    saved["images"], blocks, rows, saved["names"], saved["labels"], saved["targets"], scale={scale!r}
)
picture.save("look.png")
"""
