"""Training: the LightningModule, its callbacks and what a run writes."""

from typing import TYPE_CHECKING

import lazy_loader

from softgate.targets import trust

if TYPE_CHECKING:
    from softgate.training.module import SoftgateModule

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"module": ["SoftgateModule"]})

__all__ = ["SoftgateModule", "trust"]
