"""Uploads: decoded in memory, bounded, and refused in one sentence."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from softgate import SoftgateError
from softgate.app.images import Images, decode
from softgate.data import ImageData


def file(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_an_upload_becomes_what_the_data_set_makes_of_the_same_image(library):
    network = library.network("none", "last")
    images: Images = network.images
    data: ImageData = images.data
    x = data.nth(3, 1)
    pixels = (data.denormalize(x)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    again = images.uploaded(file(Image.fromarray(pixels)), 1e6, 10**6)
    assert torch.equal(again, x)


NOISE = file(Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"hello", "the file is no image"),
        (b"<?xml version='1.0'?><SVG/>", "an SVG drawing"),
        (NOISE[:9000], "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "the file is no image"),
        (file(Image.new("RGB", (101, 100))), "101 x 100 pixels; at most 10,000 are read"),
        (NOISE, "at most 0.02 MB"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(content, said):
    with pytest.raises(SoftgateError, match=said) as error:
        decode(content, 3, 20_000, 10_000)
    assert str(error.value).startswith("upload: ")
    assert "\n" not in str(error.value)


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    huge = b"P6 9000 9000 255\n"
    with pytest.raises(SoftgateError, match="9000 x 9000 pixels"):
        decode(huge, 3, 1e6, 10**6)
