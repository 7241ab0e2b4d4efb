"""The images that the page shows: of a data set by class and number, or uploaded, decoded in memory."""

from __future__ import annotations

import threading
from io import BytesIO

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from softgate.data import ImageData
from softgate.data.config import DataConfig
from softgate.data.images import shrink
from softgate.data.loader import Finish
from softgate.data.reading import FORMATS, upright_on_white
from softgate.errors import SoftgateError, require

UPLOAD = "upload"
"""What errors call an uploaded file."""


class Images:
    """The images of one data set, listed when the first is asked for.

    Args:
        config: The options of `data=`.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self._data: ImageData | None = None
        self._lock = threading.Lock()

    @property
    def data(self) -> ImageData:
        """The validation images, or those that `data.test` names.

        Raises:
            SoftgateError: If they are not there.
        """
        with self._lock:
            if self._data is None:
                found = ImageData(self.config, splits=("val",), measured=True)
                found.setup("validate")
                self._data = found
            return self._data

    @property
    def channels(self) -> int:
        """3 for colours, 1 for grey."""
        return int(self.config.channels)

    @property
    def mean(self) -> list[float]:
        """What is subtracted from pixels in [0, 1], per channel."""
        return list(self.config.per_channel(self.config.mean))

    @property
    def std(self) -> list[float]:
        """What pixels are then divided by, per channel."""
        return list(self.config.per_channel(self.config.std))

    def of_class(self, label: int, number: int) -> Tensor:
        """[1, C, S, S] an image of the data set as the network takes it; see `ImageData.nth`."""
        return self.data.nth(label, number)

    def of_probe(self, classes: int, seed: int, number: int) -> tuple[Tensor, int]:
        """[1, C, S, S] one of the probe images of a run's grids, from 0, and its class; see `ImageData.probe`."""
        images, labels = self.data.probe(min(classes, len(self.data.classes)), seed)
        require(0 <= number < len(images), f"probe image={number}: there are {len(images)}, counted from 0.")
        return images[number : number + 1], int(labels[number])

    def uploaded(self, content: bytes, most_bytes: float, most_pixels: int) -> Tensor:
        """[1, C, S, S] an uploaded image as the network takes it: shorter side resized, centre cropped.

        Args:
            content: The file.
            most_bytes: Larger files are refused.
            most_pixels: Larger images are refused, before they are decoded.

        Raises:
            SoftgateError: If the file is too large, cut short or no image of a kind that is read.
        """
        image = decode(content, self.channels, most_bytes, most_pixels)
        size = int(getattr(self.config, "size", None) or self.data.size)
        pixels = TF.pil_to_tensor(shrink(size)(image))[None]
        return Finish(size, self.mean, self.std)(pixels)


def decode(content: bytes, channels: int, most_bytes: float, most_pixels: int) -> Image.Image:
    """An uploaded file as an image of mode RGB or L, upright, without transparency; see `Images.uploaded`."""
    bounded(len(content), most_bytes)
    Image.init()
    kinds = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(BytesIO(content), formats=kinds) as file:
            pixels = file.width * file.height
            said = f"{UPLOAD}: the image has {file.width} x {file.height} pixels; at most {most_pixels:,} are read."
            require(pixels <= most_pixels, said)
            file.load()
            return upright_on_white(file)[0].convert("L" if channels == 1 else "RGB")
    except SoftgateError:
        raise
    except UnidentifiedImageError:
        vector = b"<svg" in content[:4096].lower()
        what = "an SVG drawing, which has no pixels" if vector else "no image"
        raise SoftgateError(f"{UPLOAD}: the file is {what}; allowed: {', '.join(kinds)}.") from None
    except Image.DecompressionBombError:  # Pillow's own limit, which it looks at first
        raise SoftgateError(f"{UPLOAD}: the image has far too many pixels; at most {most_pixels:,} are read.") from None
    except MemoryError:
        raise SoftgateError(f"{UPLOAD}: there is too little memory for this image; upload a smaller one.") from None
    except Exception as error:  # whatever Pillow's readers raise on a damaged file
        why = str(error).splitlines()[0].partition(",")[0] if str(error) else type(error).__name__
        raise SoftgateError(f"{UPLOAD}: the image cannot be read ({why}).") from None


def bounded(size: int, most: float) -> None:
    """Raises `SoftgateError` for a file that has nothing in it, or more bytes than are read."""
    require(size > 0, f"{UPLOAD}: the file is empty.")
    require(size <= most, f"{UPLOAD}: the file has {size / 1e6:.1f} MB; at most {most / 1e6:g} MB are read.")


def as_pixels(x: Tensor, images: Images) -> Tensor:
    """Images [B, C, H, W] as the network takes them, as pixels in [-1, 1]."""
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (images.mean, images.std))
    return ((x * std + mean) * 2 - 1).clamp(-1, 1)
