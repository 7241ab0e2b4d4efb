"""The options of a deep gated network: what its gates are of, which weights learn, what its values begin with."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from softgate.errors import require
from softgate.options import Number, Options, Says

BETA = 4.0
"""The slope of the soft gates of arXiv 2006.10529."""


class Gating(Options):
    """How a `softgate.models.GatedNetwork` is gated and trained (arXiv 2006.10529, section 5; 2110.03403)."""

    at: ClassVar[str] = "model"

    gating: Literal["relu", "linear"] = Field(
        "relu", description="the feature network: relu, an ordinary one (DGN), or linear, without activations (DLGN)"
    )
    gates: Literal["auto", "soft", "hard"] = Field(
        "auto", description="soft, 1.1 sigmoid(beta u), or hard, 1[u > 0]; auto is soft where the features learn"
    )
    beta: Annotated[Annotated[Number, Field(gt=0)], Says("a number > 0 is needed")] = Field(
        BETA, description="slope of soft gates, in units of 1 / pre-activation"
    )
    regime: Literal["decoupled", "fixed_learnt", "fixed_random"] = Field(
        "decoupled",
        description="decoupled: both networks learn; fixed_learnt: the features of a trained network, frozen; "
        "fixed_random: features frozen at their initial weights",
    )
    value_weights: Literal["independent", "dependent"] = Field(
        "independent", description="initial weights of the value network: its own, or equal to the feature network's"
    )
    value_input: Literal["image", "ones"] = Field(
        "image", description="what the value network is fed: the image, or ones in its shape"
    )

    @property
    def frozen(self) -> bool:
        """Whether the feature network does not learn."""
        return self.regime != "decoupled"

    @property
    def hard(self) -> bool:
        """Whether gates are steps."""
        return self.frozen if self.gates == "auto" else self.gates == "hard"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        require(
            self.frozen or not self.hard,
            "model.gates=hard: a step has no gradient, so with model.regime=decoupled the feature network would learn "
            "nothing; model.gates=soft, or model.regime=fixed_learnt or fixed_random is needed.",
        )
        sloped = self.beta == BETA or not self.hard
        require(
            sloped, f"model.beta={self.beta}: it is the slope of soft gates, and these are hard; set model.gates=soft."
        )
        require(
            self.value_input == "image" or not self.hard,
            "model.value_input=ones: with hard gates the network is constant in the image wherever no gate flips, and "
            "has no gradient to it; model.gates=soft is needed.",
        )
        fits = self.value_weights == "independent" or self.regime == "fixed_random"
        require(
            fits,
            f"model.value_weights={self.value_weights}: it is for model.regime=fixed_random; independent is needed.",
        )
        return self
