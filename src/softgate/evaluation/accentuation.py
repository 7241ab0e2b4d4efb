"""The options of `grid.accentuation`: how the images of a grid of kind accentuation are made."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, Strict, model_validator

from softgate.errors import require
from softgate.options import Count, Number, Options, Says, Whole

Side = Annotated[Number, Field(gt=0, le=1)]


class AccentuationConfig(Options):
    """`grid.accentuation`: the fields of `softgate.AccentuationSettings`."""

    at: ClassVar[str] = "grid.accentuation"

    steps: Count = Field(description="of Adam")
    crops: Count = Field(description="random crops of each image that a step is the mean over")
    crop: Annotated[
        tuple[Side, Side],
        Strict(False),
        Says("two numbers above 0 and up to 1 are needed, the least first"),
    ] = Field(description="least and greatest side of a crop, as a share of the image's")
    noise: Annotated[Number, Field(ge=0)] = Field(
        description="standard deviation of the noise on a crop, as a share of the range of pixels"
    )
    learning_rate: Annotated[Number, Field(gt=0)] = Field(
        description="of Adam, in Fourier coefficients in units of 1 / frequency"
    )
    weight: Annotated[Number, Field(ge=0)] = Field(
        description="of the distance to the image in an early layer; 0 is none"
    )
    layer: Annotated[str | None, Says("the name of a layer is needed, or null")] = Field(
        description="where the distance is measured; null is the layer a quarter of the way"
    )
    seed: Annotated[Whole, Field(lt=2**32)] = Field(description="of crops and noise")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least, greatest = self.crop
        words = "the least side comes first"
        require(least <= greatest, f"grid.accentuation.crop={[least, greatest]}: {words}.")
        words = "with weight=0 no distance is measured; null is needed"
        require(self.weight > 0 or self.layer is None, f"grid.accentuation.layer={self.layer}: {words}.")
        return self
