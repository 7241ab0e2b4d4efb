"""Images: one LightningDataModule over several sources, each a function that lists or loads what it has.

`ImageData` is the data module; `SOURCES` and `PUBLISHED` name the data sets; `BAPPS` reads what
people said of triplets. Transforms are torchvision's v2.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
