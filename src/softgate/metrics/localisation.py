"""Does the map of a class point to where it is? Its share in the right cell of a mosaic of several classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import require
from softgate.explainers.base import Explainer
from softgate.metrics.base import ProbeMetric, finite, logits
from softgate.surrogate.inputs import checked


@checked
def mosaics(images: Tensor, labels: Tensor, side: int = 2, count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Square mosaics of images of distinct classes, drawn at random.

    Args:
        images: [N, C, H, W].
        labels: [N] their classes; at least side^2 of them must differ.
        side: Images along each side.
        count: Number of mosaics.
        seed: Of the draws.

    Returns:
        Mosaics [count, C, side * H, side * W] and the classes of their cells [count, side^2], row by row; none at all
        ([0, ...]) where there are fewer classes than cells.
    """
    require(side >= 2 and count >= 1, f"grid_pointing: side={side}, count={count}: >= 2 and >= 1 are needed.")
    classes = torch.unique(labels).tolist()
    cells = side * side
    height, width = images.shape[-2:]
    if len(classes) < cells:
        return images.new_empty(0, images.shape[1], side * height, side * width), labels.new_empty(0, cells)
    generator = torch.Generator().manual_seed(seed)
    made, named = [], []
    for _ in range(count):
        chosen = [classes[i] for i in torch.randperm(len(classes), generator=generator)[:cells].tolist()]
        members = [(labels == c).nonzero().flatten() for c in chosen]
        picks = [int(m[torch.randint(len(m), (1,), generator=generator)]) for m in members]
        rows = [torch.cat([images[i] for i in picks[r * side : (r + 1) * side]], 2) for r in range(side)]
        made.append(torch.cat(rows, 1))
        named.append(chosen)
    return torch.stack(made), torch.tensor(named, device=labels.device)


@checked
def grid_pointing(maps: Tensor, x: Tensor, side: int) -> Tensor:
    r"""Share of :math:`(v \cdot x)^+` in each target's own cell.

    Args:
        maps: [B, side^2, C, H, W] the maps of the cells' classes, row by row.
        x: [B, C, H, W] the mosaics.
        side: Cells along each side.

    Returns:
        [B, side^2] in [0, 1], 1/side^2 by chance; NaN where nothing is positive. The product is summed over channels
        before its positive part is taken, so that a pixel speaks once. A pixel that the border between two cells cuts,
        as in mosaics resized to a size that `side` does not divide, counts for each by its share.
    """
    cells = side * side
    require(
        maps.dim() == 5 and maps.shape[1] == cells, f"grid_pointing: maps {tuple(maps.shape)}: [B, {cells}, C, H, W]."
    )
    parts = (maps.detach().double() * x.detach().double()[:, None]).sum(2).clamp_min(0)
    rows, columns = (_shares(size, side).to(parts) for size in parts.shape[-2:])
    blocks = torch.einsum("bkhw,ih,jw->bkij", parts, rows, columns).flatten(2)
    own = blocks.diagonal(dim1=1, dim2=2)
    return own / blocks.sum(2)


def _shares(pixels: int, side: int) -> Tensor:
    """How much of each pixel lies in each cell along an axis, [side, pixels]: 0 or 1, but where a border cuts one."""
    edges = torch.arange(pixels, dtype=torch.float64)
    ends = torch.arange(side + 1, dtype=torch.float64)[:, None] * pixels / side
    return (torch.minimum(edges + 1, ends[1:]) - torch.maximum(edges, ends[:-1])).clamp_min(0)


class GridPointing(ProbeMetric):
    r"""Mean share of :math:`(v \cdot x)^+` that a class's map has in its own cell; chance is 1/cells.

    Only for networks that take images of any size, or with mosaics resized to the one they take.

    Source: the grid pointing game, Boehle, Fritz and Schiele, arXiv 2104.00032.

    Args:
        explainer: Gives the maps.
        side: Cells along each side of the mosaics.
        kwargs: Of `torchmetrics.Metric`.

    >>> import torch
    >>> x = torch.cat([torch.cat([torch.full((1, 1, 2, 2), float(c)) for c in row], 3) for row in [(1, 2), (3, 4)]], 2)
    >>> metric = GridPointing(lambda model, x, target: (x == target.view(-1, 1, 1, 1) + 1).float(), side=2)
    >>> metric.update(torch.nn.Flatten(), x, torch.tensor([[0, 1, 2, 3]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    absent = "there is no mosaic: the probe set has fewer classes than a mosaic has cells"
    reason = "no product of map and image is positive"

    def __init__(self, explainer: Explainer, side: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.explainer, self.side = explainer, side

    def update(self, model: nn.Module, x: Tensor, targets: Tensor) -> None:
        """Takes mosaics [B, C, H, W] and the classes of their cells [B, side^2], as `mosaics` makes them."""
        maps = torch.stack([self.explainer(model, x, column) for column in targets.unbind(1)], 1)
        self.add(grid_pointing(maps, x, self.side).nanmean(1), finite(maps, logits(model, x)))
