"""What a callback may want before training begins: `train` asks each of them, one of your own too."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from softgate.data import ImageData
from softgate.training.module import SoftgateModule


@runtime_checkable
class Checks(Protocol):
    """A callback that can say what is wrong before an image is read."""

    def check(self, module: SoftgateModule, data: ImageData) -> None:
        """Raises `SoftgateError` where training should not begin; reads no image."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A callback that picks its images, or tries what it will do, when the data are read."""

    def prepare(self, data: ImageData, module: SoftgateModule) -> None:
        """Gets ready; what is wrong shows now, and not in the midst of training."""
        ...
