"""Images: sources, what they refuse, decoding, probe images. Small data sets are made here; real ones if present."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softgate import SoftgateError
from softgate.data import ImageData, images, published, sources

SHARED = Path(__file__).parents[3] / "shared" / "data"
PLAIN = {
    "size": 16,
    "batch_size": 4,
    "augment": {"crop_scale": [1.0, 1.0], "flip": False},
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}


def write(path: Path, value: int = 0, size: tuple[int, int] = (20, 20), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("val", 3)):
        for k, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png", 40 * k + i)
    return tmp_path


def folder(root: Path, **options: object) -> ImageData:
    return ImageData({**PLAIN, "name": "folder", "root": str(root), **options})


def test_digits_are_the_1797_real_ones_split_the_same_way_every_time():
    data = ImageData({**PLAIN, "name": "digits"})
    assert len(data.train_listing) + len(data.val_listing) == 1797
    assert isinstance(data.train_listing.items, Tensor)
    seen = {bytes(image.numpy().tobytes()) for image in data.train_listing.items}
    assert not any(bytes(image.numpy().tobytes()) in seen for image in data.val_listing.items)
    share = (
        data.val_listing.labels.bincount() / torch.cat([data.train_listing.labels, data.val_listing.labels]).bincount()
    )
    assert share.min() > 0.19
    assert share.max() < 0.21
    again = ImageData({**PLAIN, "name": "digits"})
    assert torch.equal(again.val_listing.labels, data.val_listing.labels)


def test_digits_keep_their_grey_values():
    from sklearn.datasets import load_digits

    raw = load_digits().images
    data = ImageData({**PLAIN, "name": "digits"})
    assert isinstance(data.train_listing.items, Tensor)
    mine = {bytes(image[0].numpy().tobytes()) for image in data.train_listing.items}
    theirs = {np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in raw}
    assert mine <= theirs


def test_folder_gives_normalized_pixels_and_class_names(root):
    data = folder(root)
    data.setup("fit")
    assert data.classes == ["ant", "bee", "cat"]
    batches = list(data.val_dataloader())
    x, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert x.shape == (9, 3, 16, 16)
    expected = (torch.tensor([40 * 1 + 2, 0, 255 - 42]) / 255 - torch.tensor(PLAIN["mean"])) / torch.tensor(
        PLAIN["std"]
    )
    assert torch.allclose(x[5, :, 3, 3], expected)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.allclose(data.denormalize(x)[5, :, 0, 0], torch.tensor([42, 0, 213]) / 255, atol=1e-6)


def test_cached_and_uncached_images_are_the_same(root):
    kept, read = folder(root, cache=True), folder(root, cache=False)
    kept.setup()
    read.setup()
    for a, b in zip(kept.val_dataloader(), read.val_dataloader(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_grayscale_and_palette_files_become_rgb(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split / "a" / "grey.png", 100, mode="L")
        Image.new("RGB", (20, 20), (9, 8, 7)).convert("P").save(tmp_path / split / "a" / "palette.png")
        Image.new("RGBA", (20, 20), (9, 8, 7, 255)).save(tmp_path / split / "a" / "rgba.png")
        write(tmp_path / split / "b" / "0.png")
    data = folder(tmp_path)
    data.setup("fit")
    x = data.denormalize(next(iter(data.val_dataloader()))[0])
    assert torch.allclose(x[0, :, 0, 0], torch.full((3,), 100 / 255), atol=1e-6)
    assert torch.allclose(x[2, :, 0, 0], torch.tensor([9, 8, 7]) / 255, atol=1e-6)


def test_validation_resizes_the_short_side_and_crops_the_centre(tmp_path):
    for split in ("train", "val"):
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, 20:40] = 255
        path = tmp_path / split / "a" / "wide.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(wide).save(path)
        write(tmp_path / split / "b" / "0.png")
    data = folder(tmp_path, size=20, batch_size=1)
    data.setup("fit")
    assert data.denormalize(next(iter(data.val_dataloader()))[0]).min() > 0.99


def test_random_crops_vary_and_stay_in_range(root):
    data = folder(root, augment={"crop_scale": [0.3, 0.9], "flip": True})
    data.setup("fit")
    assert data._datasets["train"].images.shape[-1] == 20
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (4, 3, 16, 16)
    assert data.denormalize(x).max() <= 1


def test_fraction_keeps_the_same_share_of_every_class_and_leaves_validation_whole(root):
    data = folder(root, fraction=0.5)
    assert data.train_listing.labels.bincount().tolist() == [3, 3, 3]
    assert len(data.val_listing) == 9
    again = folder(root, fraction=0.5)
    assert data.train_listing.items == again.train_listing.items
    others = [folder(root, fraction=0.5, fraction_seed=seed).train_listing for seed in range(1, 5)]
    assert any(other.items != again.train_listing.items for other in others)
    assert all(other.labels.bincount().tolist() == [3, 3, 3] for other in others)


def test_training_images_are_shown_still_as_validation_shows_them(root):
    data = folder(root, augment={"crop_scale": [0.3, 0.9], "flip": True})
    data.setup("validate")
    x, labels = (torch.cat(parts) for parts in zip(*data.still(data.val_listing, 99, seed=0), strict=True))
    expected, named = data.sample(99, seed=0)
    assert torch.equal(labels, named)
    torch.testing.assert_close(x, expected)
    shown = [torch.cat([x for x, _ in data.still(data.train_listing, 6, seed=0)]) for _ in range(2)]
    assert len(shown[0]) == 6
    assert torch.equal(*shown)


def test_probe_images_are_one_of_each_class_and_always_the_same():
    data = ImageData({**PLAIN, "name": "digits"})
    x, labels = data.probe(5, seed=314)
    assert labels.tolist() == [0, 2, 4, 6, 8]
    state = torch.get_rng_state()
    again, _ = data.probe(5, seed=314)
    assert torch.equal(x, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(x, data.probe(5, seed=1)[0])
    with pytest.raises(SoftgateError, match=r"callbacks\.grids\.classes=11: the data has 10"):
        data.probe(11, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digitz"}, r"data\.name=digitz.*Did you mean 'digits'"),
        ({"size": 0}, r"data\.size=0"),
        ({"size": 16.5}, r"data\.size=16\.5"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"num_workers": -1}, r"data\.num_workers=-1"),
        ({"fraction": 0}, r"data\.fraction=0"),
        ({"fraction": 1.5}, r"data\.fraction=1\.5"),
        ({"fraction_seed": -1}, r"data\.fraction_seed=-1"),
        ({"augment": None}, r"data\.augment=None"),
        ({"augment": {"crop_scale": 0.5}}, r"data\.augment\.crop_scale=0\.5"),
        ({"mean": None}, r"data\.mean=None: three numbers"),
        ({"mean": [0.5]}, r"data\.mean=\[0\.5\]"),
        ({"std": [0, 1, 1]}, r"data\.std=\[0, 1, 1\]: three numbers > 0"),
        ({"cache": "maybe"}, r"data\.cache=maybe"),
        ({"augment": {"crop_scale": [0.9, 0.1]}}, r"data\.augment\.crop_scale=\[0\.9, 0\.1\]"),
    ],
)
def test_options_out_of_range_are_named_with_their_value(options, message):
    with pytest.raises(SoftgateError, match=message):
        ImageData({**PLAIN, "name": "digits", **options})


def test_a_root_that_does_not_exist_is_named(tmp_path):
    for name in ("folder", "imagenet", "imagenette", "imagewoof", "cifar10"):
        with pytest.raises(SoftgateError, match=r"data\.root=.*nowhere"):
            ImageData({**PLAIN, "name": name, "root": str(tmp_path / "nowhere")})


def test_an_empty_class_folder_is_named(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(SoftgateError, match=r"data\.root=.*dog"):
        folder(root)


def test_different_classes_in_train_and_val_are_named(root):
    write(root / "train" / "dog" / "0.png")
    with pytest.raises(SoftgateError, match="different classes, such as 'dog'"):
        folder(root)


@pytest.mark.parametrize("cache", [True, False])
def test_a_truncated_image_is_named(root, cache):
    path = root / "val" / "bee" / "1.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path.with_suffix(".jpg"))
    whole = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 2])

    def read_all() -> None:
        data = folder(root, cache=cache)
        data.setup("fit")
        list(data.val_dataloader())

    with pytest.raises(SoftgateError, match=r"data\.root: the image .*1\.jpg cannot be read"):
        read_all()


def test_a_file_that_is_no_image_is_named(root):
    (root / "val" / "bee" / "1.png").write_text("hello")
    with pytest.raises(SoftgateError, match=r"the image .*1\.png cannot be read"):
        folder(root).setup("fit")


def test_a_partial_extraction_is_caught_by_the_file_count(tmp_path):
    for split in ("train", "val"):
        for wnid in sources.IMAGENETTE:
            write(tmp_path / "imagenette2-160" / split / wnid / "0.JPEG")
    with pytest.raises(SoftgateError, match="has 10 images in 10 classes where imagenette has 9469"):
        ImageData({**PLAIN, "name": "imagenette", "root": str(tmp_path)})


def test_a_download_with_a_wrong_checksum_is_refused_and_leaves_no_data(tmp_path, monkeypatch):
    def fetch(url: str, folder: str, name: str) -> None:
        assert url.endswith("/imagewoof2-160.tgz")
        (Path(folder) / name).write_bytes(b"not an archive")

    monkeypatch.setattr(sources, "download_url", fetch)
    with pytest.raises(SoftgateError, match=r"imagewoof2-160\.tgz is damaged"):
        ImageData({**PLAIN, "name": "imagewoof", "root": str(tmp_path / "new"), "download": True})
    assert not (tmp_path / "new" / "imagewoof2-160").exists()


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fetch(*args: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sources, "download_url", fetch)
    with pytest.raises(SoftgateError, match=r"data\.download=true: .*imagenette2-160\.tgz could not be fetched"):
        ImageData({**PLAIN, "name": "imagenette", "root": str(tmp_path), "download": True})


def test_a_good_download_is_extracted_and_read(tmp_path, monkeypatch):
    import hashlib
    import tarfile

    made = tmp_path / "made"
    for split in ("train", "val"):
        for wnid in sources.IMAGENETTE:
            write(made / "imagenette2-160" / split / wnid / "0.JPEG")
    archive = tmp_path / "a.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(made / "imagenette2-160", "imagenette2-160")
    blob = archive.read_bytes()
    monkeypatch.setitem(sources.SHA256, "imagenette2-160", hashlib.sha256(blob).hexdigest())
    monkeypatch.setitem(sources.COUNTS, "imagenette", {"train": 10, "val": 10})
    monkeypatch.setattr(sources, "download_url", lambda url, root, name: (Path(root) / name).write_bytes(blob))
    data = ImageData({**PLAIN, "name": "imagenette", "root": str(tmp_path / "new"), "download": True})
    assert data.classes[0] == "tench"
    assert len(data.train_listing) == 10


@pytest.mark.parametrize("path", ["train", "val"])
def test_a_broken_image_shows_before_training_also_where_images_are_not_kept(root, path):
    (root / path / "bee" / "1.png").write_text("hello")
    with pytest.raises(SoftgateError, match=r"the image .*1\.png cannot be read"):
        folder(root, cache=False, num_workers=1).setup("fit")


def test_one_class_is_too_few(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split / "a" / "0.png")
    with pytest.raises(SoftgateError, match="only the class 'a'; at least 2"):
        folder(tmp_path)


def test_evaluation_needs_no_training_images(root):
    for path in sorted((root / "train").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    data = ImageData({**PLAIN, "name": "folder", "root": str(root)}, splits=("val",))
    data.setup("validate")
    assert len(next(iter(data.val_dataloader()))[1]) == 4


def test_cifar10_is_read_from_its_official_files(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            rows = 20 if train else 10
            self.data = np.zeros((rows, 32, 32, 3), np.uint8)
            self.data[..., 1] = 255
            self.targets = [i % 10 for i in range(rows)]
            self.classes = [f"class {i}" for i in range(10)]

    monkeypatch.setattr(published.torchvision.datasets, "CIFAR10", Fake)
    data = ImageData({**PLAIN, "name": "cifar10", "root": str(tmp_path)})
    data.setup("fit")
    x = data.denormalize(next(iter(data.val_dataloader()))[0])
    assert torch.allclose(x[0, :, 5, 5], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_workers_give_the_same_validation_batches(root):
    alone, helped = folder(root, cache=False, num_workers=0), folder(root, cache=False, num_workers=2)
    alone.setup("validate")
    helped.setup("validate")
    for a, b in zip(alone.val_dataloader(), helped.val_dataloader(), strict=True):
        assert torch.equal(a[0], b[0])


def test_a_listing_can_be_read_at_any_size(root):
    listing = sources.folder(sources.Where(root), "val")
    assert images.decode(listing, 12)[0].shape == (9, 3, 12, 12)


@pytest.mark.skipif(not (SHARED / "imagenette2-160").is_dir(), reason="the real Imagenette is not at hand")
def test_real_imagenette_is_complete_and_named():
    data = ImageData({**PLAIN, "name": "imagenette", "root": str(SHARED), "cache": False})
    assert (len(data.train_listing), len(data.val_listing)) == (9469, 3925)
    assert data.classes[6] == "garbage truck"
    x, _ = data.probe(5, seed=314)
    assert x.std() > 0.5
