"""Images: one LightningDataModule over several sources, each a function that lists or loads what it has.

`ImageData` is the data module; `SOURCES` names the data sets. Transforms are torchvision's v2.
"""

from softgate.data.datamodule import ImageData
from softgate.data.sources import SOURCES

__all__ = ["SOURCES", "ImageData"]
