"""Images as people have them: every odd kind of file is made here, and must be read right, counted or named."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from softgate import SoftgateError, SoftgateWarning
from softgate.data import ImageData, index, reading, store

SIZE = 16
OPTIONS = {"name": "folder", "size": SIZE, "batch_size": 4, "num_workers": 0, "mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture
def root(tmp_path) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20), (9, 8, 7)).save(tmp_path / split / name / "0.png")
    return tmp_path


def data(root: Path, **options) -> ImageData:
    return ImageData({**OPTIONS, "root": str(root), **options})


def shown(root: Path, **options) -> torch.Tensor:
    """The validation images [N, C, H, W], 0 to 255; they are the same kept in memory or not."""
    found = []
    for cache in (True, False):
        images = data(root, cache=cache, **options)
        images.setup("validate")
        found.append(torch.cat([x for x, _ in images.val_dataloader()]))
    assert torch.equal(*found)
    return (found[0] * 255).round()


def ramp(dtype: type, top: float) -> np.ndarray:
    """Grey from black to white, left to right."""
    return np.rint(np.tile(np.linspace(0, 255, SIZE), (SIZE, 1))).astype(np.float64).__mul__(top / 255).astype(dtype)


EXPECTED = torch.tensor(np.rint(np.linspace(0, 255, SIZE)), dtype=torch.float32).expand(SIZE, SIZE)


@pytest.mark.parametrize(
    ("name", "dtype", "top"),
    [
        ("16 bits.png", np.uint16, 65535),
        ("16 bits.tif", np.uint16, 65535),
        ("16 bits.pgm", np.uint16, 65535),
        ("32 bits.tif", np.int32, 65535),
        ("small numbers.tif", np.int32, 255),
        ("floats.tif", np.float32, 1.0),
        ("floats to 255.tif", np.float32, 255.0),
        ("8 bits.tif", np.uint8, 255),
    ],
)
def test_numbers_of_any_depth_are_scaled_by_their_range(root, name, dtype, top):
    Image.fromarray(ramp(dtype, top)).save(root / "val" / "ant" / name)
    x = shown(root)[1]
    torch.testing.assert_close(x, EXPECTED.expand(3, -1, -1), atol=0.51, rtol=0)


@pytest.mark.filterwarnings("ignore::softgate.SoftgateWarning")
@pytest.mark.parametrize(("low", "high"), [(-3.0, 12.0), (0.0, 1.05), (100.0, 100000.0)])
def test_floats_of_no_known_range_are_scaled_by_their_own_and_said(root, low, high):
    values = (low + ramp(np.float32, 1.0) * (high - low)).astype(np.float32)
    Image.fromarray(values).save(root / "val" / "ant" / "range.tif")
    torch.testing.assert_close(shown(root)[1, 0], EXPECTED, atol=0.51, rtol=0)
    with pytest.warns(
        SoftgateWarning, match=r"images whose numbers have no known range are scaled .*\(1\): .*range\.tif"
    ):
        data(root, cache=True).setup("validate")  # from the store: it is said again


def test_a_float_that_is_no_number_makes_an_image_unreadable(root):
    values = ramp(np.float32, 1.0)
    values[0, 0] = np.nan
    Image.fromarray(values).save(root / "val" / "ant" / "nan.tif")
    with pytest.raises(SoftgateError, match=r"nan\.tif cannot be read \(it has numbers that are not finite\)"):
        shown(root)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "I;16"])
def test_what_is_transparent_lies_on_white(root, mode):
    path = root / "val" / "ant" / "clear.png"
    clear = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    clear.paste((40, 40, 40, 255), (0, 0, SIZE, SIZE // 2))
    if mode in ("RGBA", "LA"):
        clear.convert(mode).save(path)
    elif mode == "P":
        flat = Image.new("P", (SIZE, SIZE), 1)
        flat.putpalette([40, 40, 40, 0, 0, 0])
        flat.paste(0, (0, 0, SIZE, SIZE // 2))
        flat.save(path, transparency=1)
    elif mode == "RGB":
        clear.convert("RGB").save(path, transparency=(0, 0, 0))
    else:
        deep = np.full((SIZE, SIZE), 40 * 257, np.uint16)
        deep[SIZE // 2 :] = 0
        Image.fromarray(deep).save(path, transparency=0)
    for channels in (3, 1):
        x = shown(root, channels=channels, mean=[0.0] * channels, std=[1.0] * channels)[1]
        assert x[:, : SIZE // 2].unique().tolist() == [40], mode
        assert x[:, SIZE // 2 :].unique().tolist() == [255], mode


def test_half_transparent_is_half_white(root):
    Image.new("RGBA", (SIZE, SIZE), (0, 0, 200, 128)).save(root / "val" / "ant" / "half.webp", lossless=True)
    assert shown(root)[1, :, 3, 3].tolist() == pytest.approx([127, 127, 227], abs=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 2])
def test_exif_turns_the_image(root, suffix, orientation):
    upright = Image.fromarray(np.kron(np.array([[250, 180], [90, 10]], np.uint8), np.ones((8, 8), np.uint8)))
    turned = {1: None, 2: 0, 3: 3, 6: 2, 8: 4}[orientation]  # the turn that the orientation undoes
    stored = upright if turned is None else upright.transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert("RGB").save(root / "val" / "ant" / f"turned.{suffix}", exif=exif, quality=100)
    assert np.array_equal(
        np.asarray(ImageOps.exif_transpose(Image.open(root / f"val/ant/turned.{suffix}"))).shape[:2], (16, 16)
    )
    x = shown(root)[1, 0]
    corners = [float(part.mean()) for part in (x[:8, :8], x[:8, 8:], x[8:, :8], x[8:, 8:])]
    assert corners == pytest.approx([250, 180, 90, 10], abs=4)


def test_damaged_exif_data_cost_nothing(root):
    Image.new("RGB", (SIZE, SIZE), (200, 0, 0)).save(
        root / "val" / "ant" / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageOps, "exif_transpose", lambda image: 1 / 0)
        assert shown(root)[1, 0, 3, 3] == pytest.approx(200, abs=3)
    assert shown(root)[1, 0, 3, 3] == pytest.approx(200, abs=3)


@pytest.mark.filterwarnings("ignore::softgate.SoftgateWarning")
@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.avif"])
def test_of_animated_files_the_first_frame_is_read_and_said_also_from_the_store(root, name):
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    frames[0].save(root / "val" / "ant" / name, save_all=True, append_images=frames[1:])
    assert shown(root)[1, :, 3, 3].tolist() == pytest.approx([200, 0, 0], abs=6)
    for cache in (True, False):
        with pytest.warns(SoftgateWarning, match=rf"of images with several frames .* \(1\): .*{name}"):
            data(root, cache=cache).setup("validate")


def test_a_phones_picture_with_previews_is_no_animation(root):
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(root / "val" / "ant" / "phone.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert shown(root)[1, 0, 3, 3] == pytest.approx(200, abs=3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((".jfif", "JPEG"), (".JPE", "JPEG"), (".gif", "GIF"), (".avif", "AVIF"), (".apng", "PNG")),
        *((".jp2", "JPEG2000"), (".png", "JPEG"), (".jpg", "WEBP"), (".dib", "BMP"), (".pnm", "PPM")),
    ],
)
def test_files_of_every_usual_kind_are_images_whatever_they_are_called(root, name, kind):
    Image.new("RGB", (SIZE, SIZE), (200, 0, 0)).save(root / "val" / "ant" / f"1{name}", kind)
    assert shown(root)[1, :, 3, 3].tolist() == pytest.approx([200, 0, 0], abs=6)


def test_cmyk_and_bilevel_images_are_read(root):
    Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)).save(root / "val" / "ant" / "1.jpg")
    Image.new("1", (SIZE, SIZE), 1).save(root / "val" / "ant" / "2.png")
    x = shown(root)
    assert x[1, :, 3, 3].tolist() == pytest.approx([255, 0, 0], abs=3)
    assert x[2, :, 3, 3].tolist() == [255] * 3


# -- what is no image ---------------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_left_out_and_counted_in_one_line(root):
    for split in ("train", "val"):
        (root / split / ".ipynb_checkpoints").mkdir()
        (root / split / "ant" / ".ipynb_checkpoints").mkdir()
        (root / split / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"x")
        for name in (".DS_Store", "ant/.DS_Store", "ant/._0.jpg", "ant/Thumbs.db"):
            (root / split / name).write_bytes(b"x")
        (root / split / "__MACOSX").mkdir()
    (root / "val" / "ant" / "notes.txt").write_text("x")
    (root / "val" / "loose.png").write_bytes(b"x")
    said = (
        r"data\.root=.*: left out: files that are no images \(1\), hidden files \(8\), hidden folders \(6\), "
        r"images outside of a class's folder \(1\)\.$"
    )
    for _ in range(2):  # from the index too
        with pytest.warns(SoftgateWarning, match=said) as caught:
            found = data(root, cache_dir=str(root / "cache"))
        assert len(caught) == 1
        assert found.classes == ["ant", "bee"]
        assert len(found.train_listing) == len(found.val_listing) == 2
        for split in ("train", "val"):
            age(root / split)


def age(where: Path) -> None:
    for folder, _, _ in os.walk(where):
        before = Path(folder).stat().st_mtime - 3600
        os.utime(folder, (before, before))


def test_a_file_is_counted_once_however_links_lead_to_it(root):
    (root / "train" / "ant" / "loop").symlink_to(root / "train" / "ant")
    (root / "train" / "ant" / "above").symlink_to(root / "train")
    (root / "train" / "all").symlink_to(root / "train")
    (root / "train" / "ant" / "itself.png").symlink_to("itself.png")
    (root / "elsewhere").mkdir()
    Image.new("RGB", (20, 20)).save(root / "elsewhere" / "1.png")
    for name in ("ant/link", "ant/other", "bee/link"):
        (root / "train" / name).symlink_to(root / "elsewhere")
    found = index.index(root / "train", None)
    below = [os.path.relpath(path, root / "train") for path in found.paths]
    assert below == ["ant/0.png", "ant/itself.png", "ant/link/1.png", "bee/0.png", "bee/link/1.png"]
    assert found.left_out == {index.LOOPS: 4}
    assert found.classes == ["ant", "bee"]


def test_classes_without_an_image_are_named_all_at_once(root):
    for k in range(12):
        (root / "train" / f"empty{k:02}").mkdir()
    with pytest.raises(SoftgateError, match=r"no image in empty00, .*empty09 and 2 more; expected"):
        data(root)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="everything can be listed here")
def test_a_folder_that_cannot_be_listed_is_named(root):
    (root / "train" / "ant" / "secret").mkdir(mode=0)
    with pytest.raises(SoftgateError, match=r"secret cannot be listed \(Permission denied\)"):
        data(root)


def test_a_folder_that_cannot_be_listed_is_one_sentence(root, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(SoftgateError, match=r"train cannot be listed \(Permission denied\)"):
        data(root)


# -- what cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
def test_all_unreadable_images_are_named_at_once_ten_and_a_count(root, cache):
    for split, count in (("train", 9), ("val", 4)):
        for i in range(count):
            (root / split / "bee" / f"broken{i}.jpg").write_text("hello")
    with pytest.raises(SoftgateError, match="13 images cannot be read; delete or replace them: ") as caught:
        data(root, cache=cache).setup("fit")
    said = str(caught.value)
    assert said.count("hello") == 0
    assert said.count(".jpg (it is none of JPEG, PNG") == reading.NAMED
    assert said.endswith("; and 3 more.")
    assert "\n" not in said


@pytest.mark.parametrize("cache", [True, False])
def test_every_kind_of_unreadable_file_is_a_reason_in_one_sentence(root, cache):
    place = root / "val" / "bee"
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "gif", "webp", "tif", "avif", "jp2"):
        whole.save(place / f"cut.{suffix}")
        content = (place / f"cut.{suffix}").read_bytes()
        (place / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (place / "empty.png").touch()
    (place / "gone.png").symlink_to(root / "nowhere.png")
    (place / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would start ghostscript
    with pytest.raises(SoftgateError, match="10 images cannot be read") as caught:
        data(root, cache=cache).setup("validate")
    said = str(caught.value)
    for name, reason in (("empty.png", "it is empty"), ("gone.png", "No such file"), ("drawing.png", "it is none of")):
        assert f"{name} ({reason}" in said


def test_an_image_that_is_too_large_is_named(root):
    small = Image.new("1", (8, 8))
    small.save(root / "val" / "ant" / "large.png")
    content = bytearray((root / "val" / "ant" / "large.png").read_bytes())
    import struct
    import zlib

    content[16:24] = struct.pack(">II", 14_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (root / "val" / "ant" / "large.png").write_bytes(content)
    with pytest.raises(SoftgateError, match=r"large\.png cannot be read \(Image size \(182000000 pixels\) exceeds"):
        data(root).setup("validate")


# -- grey ---------------------------------------------------------------------------------------------------


def test_grey_images_have_one_channel_as_pillow_makes_it(root):
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "val" / "ant" / "noise.png")
    x = shown(root, channels=1, mean=[0.0], std=[1.0])
    assert x.shape == (3, 1, SIZE, SIZE)
    grey = np.asarray(Image.fromarray(noise).convert("L"))
    assert np.array_equal(x[1, 0].numpy(), grey)
    from softgate.data.images import in_channels

    mine = in_channels(torch.from_numpy(noise).permute(2, 0, 1)[None], 1)
    assert np.array_equal(mine[0, 0].numpy(), grey)


def test_digits_are_the_same_grey_in_one_channel_or_three():
    options = {**OPTIONS, "name": "digits", "mean": [0.3] * 3, "std": [0.2] * 3}
    one, three = (ImageData({**options, "channels": channels}) for channels in (1, 3))
    for images in (one, three):
        images.setup("validate")
    a, b = next(iter(one.val_dataloader()))[0], next(iter(three.val_dataloader()))[0]
    assert a.shape[1] == 1
    assert torch.equal(a.expand_as(b), b)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": 2}, r"data\.channels=2: 3 for colours or 1 for grey is needed"),
        ({"channels": 1, "mean": [0.1, 0.2, 0.3]}, r"data\.mean=\[0\.1, 0\.2, 0\.3\]: data\.channels is 1; one number"),
        ({"channels": 3, "std": [0.1]}, r"data\.std=\[0\.1\]: data\.channels is 3; three are needed"),
    ],
)
def test_mean_and_std_have_a_number_for_each_channel(options, said):
    with pytest.raises(SoftgateError, match=said):
        ImageData({**OPTIONS, "name": "digits", **options})


# -- the store ----------------------------------------------------------------------------------------------


def test_images_decoded_in_another_way_are_never_taken_from_the_store(root, monkeypatch):
    names = set()
    listing = data(root).val_listing

    def name(shape=(2, 3, 8, 8)) -> str:
        return store._digest(listing, shape)

    names.add(name())
    names.add(name((2, 1, 8, 8)))
    names.add(name((2, 3, 9, 9)))
    monkeypatch.setattr(store, "VERSION", 1)  # that of softgate 0.1.0
    names.add(name())
    monkeypatch.setattr(store.PIL, "__version__", "0")
    names.add(name())
    assert len(names) == 5
