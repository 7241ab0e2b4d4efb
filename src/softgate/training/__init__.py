"""Training: the LightningModule, its optimiser and schedule, and the callbacks."""

from softgate.training.module import SoftgateModule

__all__ = ["SoftgateModule"]
