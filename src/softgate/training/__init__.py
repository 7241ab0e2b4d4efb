"""Training: the LightningModule, its callbacks and what a run writes."""

from softgate.targets import trust
from softgate.training.module import SoftgateModule

__all__ = ["SoftgateModule", "trust"]
