"""What all alignment metrics share: one row of numbers per image, NaN with one reason, intervals by bootstrap.

A metric keeps a row for every image it has seen and nothing else. So it comes out the same however the images are
split over batches and processes, and its sampling error over images can be had by resampling rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from softgate.correlation import bootstrap_weights
from softgate.errors import SoftgateWarning, require
from softgate.explainers.pullback import require_logits
from softgate.sites.inference import reading_out
from softgate.surrogate.inputs import checked


class ProbeMetric(Metric):
    """A metric over probe images; its state is one row of float64 numbers per image.

    `compute` gives NaN, with one `SoftgateWarning` that says why, where the value is not defined: no image, a NaN or an
    infinity among the maps or logits of any image, or nothing to divide by in all of them. Images for which alone the
    value is undefined are left out, and the warning says how many.

    Attributes:
        outputs: Names of the values; a single unnamed one is returned as a scalar, several as a dict.
        absent: What it means that there is no row.
        reason: What it means when a row is undefined.
        degenerate: What it means when rows are fine and the value is not.
    """

    full_state_update = False
    is_differentiable = False
    outputs: tuple[str, ...] = ()
    absent: ClassVar[str] = "no image was given"
    reason: ClassVar[str] = "the map is zero"
    degenerate: ClassVar[str] = "there is nothing to average"
    rows: list[Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update" in vars(cls):
            cls.update = checked(_of_images(cls.update))  # type: ignore[method-assign]  # each subclass has its own arguments

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rows", default=[], dist_reduce_fx=None)

    @property
    def width(self) -> int:
        """Numbers kept per image, besides the mark of a broken one."""
        return max(1, len(self.outputs))

    def take(self, rows: Tensor, finite: Tensor) -> None:
        """As `add`, for numbers that were computed elsewhere; counts as an update."""
        self._update_count += 1
        self._computed = None
        self.add(rows, finite)

    def add(self, rows: Tensor, finite: Tensor | None = None) -> None:
        """Takes rows [B] or [B, width] in; `finite` [B] is False for images whose maps or logits are not."""
        rows = rows.detach().double().reshape(len(rows), -1)
        broken = torch.zeros(len(rows), device=rows.device) if finite is None else ~finite
        self.rows.append(torch.cat([broken.double()[:, None], rows], 1))

    def statistic(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The values [R, outputs] of rows [N, width] that count `weights` [R, N] times each.

        Here: the mean over the images for which each value is defined.
        """
        defined = ~rows.isnan()
        return (weights @ rows.nan_to_num()) / (weights @ defined.double())

    def compute(self) -> Any:
        """The value: a scalar tensor, or a dict of them for metrics with several `outputs`."""
        rows, trouble = self._sound_rows()
        size = max(1, len(self.outputs))
        if rows is None:
            values = torch.full((size,), torch.nan, dtype=torch.float64, device=self.device)
        else:
            values = self.statistic(rows, torch.ones(1, len(rows), dtype=rows.dtype, device=rows.device))[0]
            if not trouble and bool(values.isnan().any()):
                trouble = self.degenerate
        if trouble:
            warnings.warn(f"{type(self).__name__}: {trouble}.", SoftgateWarning, stacklevel=2)
        return self._named(values)

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Any:
        """A percentile bootstrap interval over images; says nothing about other probe sets' choice of classes.

        Args:
            level: Coverage, in (0, 1).
            resamples: How often the images are drawn anew.
            seed: Of the draws; the same rows give the same interval.

        Returns:
            [2], the ends; a dict of them for metrics with several `outputs`. NaN where the value is, and where there
            are fewer than two images to draw from.
        """
        require(0 < level < 1, f"interval: level={level}: a number between 0 and 1 is needed.")
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=True):
            rows, _ = self._sound_rows()
        size = max(1, len(self.outputs))
        if rows is None or int((~rows.isnan()).any(1).sum()) < 2:
            return self._named(torch.full((size, 2), torch.nan, dtype=torch.float64, device=self.device))
        weights = bootstrap_weights(len(rows), resamples, seed)
        found = self.statistic(rows, weights.to(rows.device))
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found.dtype, device=found.device)
        return self._named(torch.nanquantile(found, ends, dim=0).T)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the rows of all processes; one that has seen no image takes part with none."""
        self.rows = [self._all_rows()]  # processes must gather the same number of tensors
        super().sync(*args, **kwargs)

    def _named(self, values: Tensor) -> Any:
        return dict(zip(self.outputs, values, strict=True)) if self.outputs else values[0]

    def _all_rows(self) -> Tensor:
        held = [rows for rows in self.rows if len(rows)]
        return torch.cat(held) if held else torch.empty(0, 1 + self.width, dtype=torch.float64, device=self.device)

    def _sound_rows(self) -> tuple[Tensor | None, str]:
        """The rows [N, width], or None where no value can be had of them; and what is wrong with them, if anything."""
        found = self._all_rows()
        total = len(found)
        if total == 0:
            return None, self.absent
        broken = int((found[:, 0] > 0).sum())
        if broken:
            return None, f"NaN or infinite values in the maps or logits of {broken} of {total} images"
        rows = found[:, 1:]
        undefined = int(rows.isnan().all(1).sum())
        if undefined == total:
            return None, f"not defined for any of the {total} images: {self.reason}"
        return rows, f"{undefined} of {total} images are left out: {self.reason}" if undefined else ""


def _of_images(update: Callable[..., None]) -> Callable[..., None]:
    """An `update` that takes nothing in where it is given no image."""

    @wraps(update)
    def taking(self: ProbeMetric, *args: Any, **kwargs: Any) -> None:
        if all(given.numel() for given in (*args, *kwargs.values()) if isinstance(given, Tensor)):
            update(self, *args, **kwargs)

    return taking


def finite(*tensors: Tensor) -> Tensor:
    """[B]: whether all numbers of each image are finite, over tensors [B, ...]."""
    marks = [tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else tensor.isfinite() for tensor in tensors]
    return torch.stack(marks).all(0)


def flat(maps: Tensor) -> Tensor:
    """Maps [B, ...] as [B, d], in float64."""
    return maps.detach().double().flatten(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine over the last dimension; NaN where one of the vectors is zero."""
    norms: Tensor = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(-1) / norms


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits [B, classes], in eval mode, without a gradient; the model is afterwards as it was.

    Raises:
        SoftgateError: If the model returns something else than one row of logits for each image.
    """
    with reading_out(model, None) as sites, torch.no_grad():
        model = sites.model
        out: Any = model(x.clone())  # which may normalise its input in place
    found: Tensor = getattr(out, "logits", out)
    require_logits(found, len(x))
    return found.detach()
