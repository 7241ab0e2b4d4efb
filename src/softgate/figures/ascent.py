"""A picture of an ascent: images before and after, and what was added to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from softgate.figures import style

MOST = 4
"""Images, and targets of each, that are drawn; a title says how many there are."""

Array = npt.NDArray[np.float32]


@style.context()
def ascent(
    images: Array,
    differences: Array,
    logits: Array,
    predicted: Array,
    bounds: tuple[float, float],
    called: str = "ascent",
) -> Image.Image:
    """Draws the first images of an ascent, a row each: the original, then perturbed image and difference by target.

    Args:
        images: [B, K, C, H, W] perturbed images; C is 1 or 3.
        differences: [B, K, C, H, W] perturbed minus original; grey is zero, black and white the greatest of each.
        logits: [B, K, steps + 1] the target logits along the way, or those before and after.
        predicted: [B, K, 2] the classes predicted before and at the end.
        bounds: Least and greatest pixel value.
        called: What stands above the perturbed images.
    """
    rows, columns = min(MOST, images.shape[0]), min(MOST, images.shape[1])
    left = [f"{size} {name}" for size, name in zip(images.shape, ("images", "targets"), strict=False) if size > MOST]
    title = f"the first of {' and '.join(left)}" if left else ""
    made = style.figure(1.6 * (1 + 2 * columns), 1.9 * rows + 0.3 * bool(left), title)
    axes = made.subplots(rows, 1 + 2 * columns, squeeze=False)
    low, high = bounds
    for row in range(rows):
        shown = [
            (
                (images[row, 0] - differences[row, 0] - low) / (high - low),
                f"image\npredicted: {int(predicted[row, 0, 0])}",
            )
        ]
        for k in range(columns):
            shown.append(((images[row, k] - low) / (high - low), f"{called}\npredicted: {int(predicted[row, k, 1])}"))
            change = differences[row, k]
            ends = f"{logits[row, k, 0]:.3g} \u2192 {logits[row, k, -1]:.3g}"
            shown.append((0.5 + 0.5 * change / max(float(np.abs(change).max()), 1e-30), f"difference\n{ends}"))
        for place, (pixels, words) in zip(axes[row], shown, strict=True):
            place.imshow(pixels.clip(0, 1).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set_title(words, fontsize=8)
            place.set_axis_off()
    return style.picture(made)
