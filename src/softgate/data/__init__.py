"""Images: one LightningDataModule over several sources, each a function that lists or loads what it has.

`ImageData` is the data module; `SOURCES` and `PUBLISHED` name the data sets. Transforms are torchvision's v2.
"""

from softgate.data.datamodule import ImageData
from softgate.data.published import PUBLISHED
from softgate.data.sources import SOURCES

__all__ = ["PUBLISHED", "SOURCES", "ImageData"]
