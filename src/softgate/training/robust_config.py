"""The options of `train.` as types: what a step does to its images and its loss."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from softgate.errors import require
from softgate.options import Count, Number, Options, Says

Amount = Annotated[Annotated[Number, Field(ge=0)], Says("a number >= 0 is needed, 0 is off")]


class AdversarialConfig(Options):
    """The options under `train.adversarial.`."""

    at: ClassVar[str] = "train.adversarial"

    radius: Amount = Field(0.0, description="of the ball around each image, in pixels of [0, 1]; 0 is off")
    norm: Literal["l2", "linf"] = Field("l2", description="of the ball; l2 radii are for 3 x 32 x 32 and scaled")
    steps: Count = Field(7, description="of projected gradient ascent, each of 2.5 radius / steps")
    rule: Literal["true_gradient", "training"] = Field(
        "true_gradient", description="what it follows: the true gradient, or training, that of surrogate="
    )


class RobustConfig(Options):
    """The options under `train.`: what is done to the images and the loss of a training step."""

    at: ClassVar[str] = "train"

    noise: Amount = Field(0.0, description="standard deviation of Gaussian noise, in pixels of [0, 1]; 0 is off")
    adversarial: AdversarialConfig = Field(AdversarialConfig(), description="images moved to a higher loss")
    gradient_penalty: Amount = Field(0.0, description="weight of the squared norm of the loss's input gradient")

    @property
    def on(self) -> bool:
        """Whether any of it is."""
        return bool(self.noise or self.adversarial.radius or self.gradient_penalty)

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.adversarial.radius:
            return self
        for key, field in AdversarialConfig.model_fields.items():
            value = getattr(self.adversarial, key)
            require(
                value == field.default,
                f"train.adversarial.{key}={value}: it is for adversarial training; set train.adversarial.radius too.",
            )
        return self

    def sentence(self) -> str:
        """What is done, for a first screen; empty where nothing is."""
        attack = self.adversarial
        ball = f"adversarial images ({attack.norm} {attack.radius:g}, {attack.steps} steps"
        whose = ", along the surrogate gradient" if attack.rule == "training" else ""
        said = {
            f"noise {self.noise:g}": self.noise,
            f"{ball}{whose})": attack.radius,
            f"gradient penalty {self.gradient_penalty:g}": self.gradient_penalty,
        }
        return ", ".join(words for words, on in said.items() if on)
