"""Images of a data set that somebody else's code reads: any `Dataset` of (image, label), as eight bits a channel."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from softgate import targets
from softgate.data import reading
from softgate.errors import SoftgateError, require

SLACK = 1e-3
"""By how much pixels may lie outside [0, 1]: a mean subtracted and added again leaves as much in float32."""


@dataclass(frozen=True)
class OwnImages:
    """Some items of a data set of (image, label).

    Attributes:
        dataset: What has them: `len()` and `[index]`.
        labels: The label of each of its items.
        indexes: Which of its items these are.
        option: What named the data set, for errors.
        split: Which part of the data it is, for errors.
        size: Height and width that every image must have; None takes any, to be resized.
        shift: What is added to images that come normalised, per channel, after `factor`; None where they do not.
        factor: What they are multiplied by.
    """

    dataset: Any
    labels: Tensor
    indexes: Tensor
    option: str
    split: str
    size: tuple[int, int] | None = None
    shift: Sequence[float] | None = None
    factor: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.indexes)

    def subset(self, index: Tensor) -> OwnImages:
        """Some of them."""
        return replace(self, indexes=self.indexes[index])

    def image(self, index: int, channels: int, u: Any = None) -> Image.Image:
        """An image, of mode RGB or L.

        Args:
            index: Among these.
            channels: 3 for RGB, 1 for grey.
            u: Its uniform numbers (an array) where it is augmented: what the data set draws depends on them alone,
                and without them on the index.

        Raises:
            SoftgateError: If the data set raises, or gives something else, or another label than it said, with the
                number of the item.
        """
        number = int(self.indexes[index])
        given, label = self.item(number, u)
        known = int(self.labels[number])
        require(label == known, f"{self._of(number)} has the label {label} now, {known} before.")
        image = self._picture(given, number).convert("L" if channels == 1 else "RGB")
        if self.size is not None and (image.height, image.width) != self.size:
            raise SoftgateError(
                f"{self._of(number)} is {image.height} x {image.width} px, the first one is {self.size[0]} x "
                f"{self.size[1]}; set data.size, to which all are resized."
            )
        return image

    def item(self, number: int, u: Any = None) -> tuple[Any, int]:
        """What the data set gives for the item of a number: its image as it is, and its label."""
        try:
            with _drawing_from(number, u):
                item = self.dataset[number]
        except (SoftgateError, MemoryError):
            raise
        except Exception as error:
            raise SoftgateError(f"{self._of(number)}: {targets.reason(error)}.") from error
        pair = isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2
        require(pair, f"{self._of(number)} is {_what(item)}; an image and its label are needed.")
        given, label = item
        try:
            whole = int(label)
            fits = whole == label and not isinstance(label, (str, bool)) and whole >= 0
        except (TypeError, ValueError):
            fits = False
        require(fits, f"{self._of(number)} has the label {label!r}; a whole number >= 0 is needed.")
        return given, whole

    def _of(self, number: int) -> str:
        return f"{self.option}: item {number} of {self.split}"

    def _picture(self, given: Any, number: int) -> Image.Image:
        """An image as Pillow has it, from Pillow's own, [C, H, W] tensors or [H, W] and [H, W, C] arrays."""
        if isinstance(given, Image.Image):
            return reading.upright_on_white(given)[0]
        require(isinstance(given, (Tensor, np.ndarray)), f"{self._of(number)} is {_what(given)}; {IMAGE} is needed.")
        pixels = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
        if isinstance(given, np.ndarray) and pixels.dim() == 3 and pixels.shape[2] in (1, 3):
            pixels = pixels.permute(2, 0, 1)
        pixels = pixels[None] if pixels.dim() == 2 else pixels
        fits = pixels.dim() == 3 and pixels.shape[0] in (1, 3) and pixels.numel() > 0
        require(fits, f"{self._of(number)} is {tuple(given.shape)}; {IMAGE} is needed.")
        if pixels.dtype != torch.uint8:
            pixels = self._bytes(pixels, number)
        planes = pixels.permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)

    def _bytes(self, pixels: Tensor, number: int) -> Tensor:
        require(
            pixels.is_floating_point(),
            f"{self._of(number)} is {pixels.dtype}; uint8 from 0 to 255, or floats from 0 to 1, are needed.",
        )
        x = pixels.float()
        if self.shift is not None:
            shift, factor = (torch.tensor(v).float().view(-1, 1, 1) for v in (self.shift, self.factor))
            fits = len(shift) == len(x)
            require(fits, f"{self._of(number)} has {len(x)} channels, data.mean has {len(shift)} numbers.")
            x = x * factor + shift
        low, high = float(x.min()), float(x.max())
        if not (low >= -SLACK and high <= 1 + SLACK):  # NaN too
            done = self.shift is not None
            said = "with the mean and std of data.normalized=true undone" if done else "as pixels"
            hint = "" if done else "; leave normalising to data.mean and data.std, or add data.normalized=true"
            needed = "0 to 1 is needed"
            raise SoftgateError(f"{self._of(number)} has values from {low:.3g} to {high:.3g} {said}; {needed}{hint}.")
        return x.clamp(0, 1).mul(255).round().byte()


IMAGE = "a Pillow image, a tensor [1 or 3, H, W] or an array [H, W(, 3)]"


def _what(given: Any) -> str:
    shape = f" {tuple(given.shape)}" if hasattr(given, "shape") else ""
    return f"{type(given).__name__}{shape}"


@contextmanager
def _drawing_from(number: int, u: Any) -> Iterator[None]:
    """Seeds what a data set may draw from, and puts it back: reading an image changes nothing else."""
    source = number.to_bytes(8, "big") if u is None else np.ascontiguousarray(u).tobytes()
    seed = int.from_bytes(hashlib.blake2b(source, digest_size=8).digest(), "big")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what data sets draw from is this one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # as above
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002  # as above
