"""Training: the LightningModule, its callbacks and what a run writes."""

from softgate.training.module import SoftgateModule
from softgate.training.targets import trust

__all__ = ["SoftgateModule", "trust"]
