"""A comparison of finished runs as `evaluate.py` makes it, and the options that keep it short."""

from configs import composed, container
from softgate.evaluation import evaluate
from softgate.evaluation.config import EvaluationConfig

FEW = (
    *("accelerator=cpu", "grid.rows=1", "grid.targets=1", "compare.corruptions.images=4"),
    *("compare.corruptions.severities=[5]", "compare.attack.steps=1", "compare.attack.images=4"),
    *("compare.sharpness.images=4", "compare.sharpness.iterations=2"),
)
CHEAP = (
    *("compare.corruptions.families=[]", "compare.attack.linf=null", "compare.attack.l2=null"),
    *("compare.sharpness.images=0", "compare.grids=false"),
)


def evaluated(directory, *words):
    return evaluate.evaluate(composed(*words, name="evaluate", directory=directory))


def asked(*words):
    """The options of an evaluation, read."""
    return EvaluationConfig.read(container(*words, name="evaluate"))
