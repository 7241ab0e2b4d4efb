"""Which images of a data set are trained on, validated and tested, which classes are used, and data sets by name."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import finished_sweep as finished
from compared import CHEAP, FEW, evaluated
from configs import TINY, composed
from softgate import SoftgateError
from softgate.data import ImageData, published
from softgate.data.config import DataConfig
from softgate.training.train import train

SHARED = Path(__file__).parents[3] / "shared" / "data"
PLAIN = {"size": 16, "batch_size": 4, "num_workers": 0, "mean": [0.5] * 3, "std": [0.2] * 3}


def photographs(root: Path, classes=("ant", "bee", "cat"), **counts: int) -> Path:
    for split, count in counts.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(root / split / name / f"{split}{i}.png")
    return root


def folder(root: Path, splits=("train", "val"), measured=False, **options) -> ImageData:
    return ImageData({**PLAIN, "name": "folder", "root": str(root), **options}, splits, measured=measured)


def names(data: ImageData, split: str) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in data.listings[split].items]


# -- trained on, chosen by, measured ------------------------------------------------------------------------


def test_a_validation_split_is_cut_off_the_training_images_and_what_was_validated_is_tested(tmp_path):
    root = photographs(tmp_path, train=10, val=4)
    whole, parts = folder(root), folder(root, ("train", "val", "test"), val_split=0.2)
    train, val, test = (names(parts, split) for split in ("train", "val", "test"))
    assert sorted(train + val) == sorted(names(whole, "train"))
    assert not set(train) & set(val)
    assert test == names(whole, "val")
    assert parts.listings["val"].labels.bincount().tolist() == [2, 2, 2]
    assert parts.listings["train"].labels.bincount().tolist() == [8, 8, 8]
    assert names(folder(root, val_split=0.2, fraction=0.5, fraction_seed=7), "val") == val
    assert set(names(folder(root, val_split=0.2, fraction=0.5), "train")) < set(train)
    assert any(names(folder(root, val_split=0.2, val_seed=seed), "val") != val for seed in range(1, 4))
    again = ImageData(parts.options, seed=99)
    assert names(again, "val") == val


@pytest.mark.parametrize(
    ("options", "measured", "words"),
    [
        ({}, "val", "the official validation images"),
        ({"test": "val"}, "val", "the official validation images"),
        ({"val_split": 0.2}, "val", "the official validation images"),
        ({"val_split": 0.2, "test": "test"}, "val", "the official validation images"),
        ({"val_split": 0.2, "test": "val"}, "train", r"0.2 of the training images (data.val_seed=0)"),
        ({"test": "test"}, "test", "the test images"),
    ],
)
def test_an_evaluation_measures_what_data_test_names(tmp_path, options, measured, words):
    data = folder(photographs(tmp_path, train=5, val=3, test=2), ("val",), measured=True, **options)
    assert all(name.partition("/")[2].startswith(measured) for name in names(data, "val"))
    assert data.config.measured_images == words
    trained = folder(tmp_path, **options)
    assert not set(names(trained, "train")) & set(names(data, "val"))
    if options.get("val_split") and options.get("test") != "val":
        assert not set(names(trained, "val")) & set(names(data, "val"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val_split": 0}, r"data\.val_split=0: a number between 0 and 1 is needed, or null"),
        ({"val_split": 1}, r"data\.val_split=1: a number"),
        ({"test": "train"}, r"data\.test=train"),
        ({"test": "test"}, r"data\.root=.*: it has no folder 'test'"),
        ({"val_split": 0.99}, r"data\.val_split=0\.99: it leaves class 'ant' without a training image"),
        (
            {"name": "digits", "test": "test"},
            r"data\.test=test: digits has no test images of its own; with data\.val_s",
        ),
    ],
)
def test_a_split_that_cannot_be_is_one_sentence(tmp_path, options, said):
    photographs(tmp_path, train=4, val=2)
    with pytest.raises(SoftgateError, match=said):
        folder(tmp_path, ("train", "val"), measured=True, **options)


def test_a_class_of_one_image_cannot_be_cut(tmp_path):
    photographs(tmp_path, train=1, val=2)
    with pytest.raises(SoftgateError, match=r"data\.val_split=0\.5: class 'ant' has fewer than two training images"):
        folder(tmp_path, val_split=0.5)


def test_a_run_is_chosen_on_one_part_and_measured_on_another(tmp_path):
    words = (*TINY, "data.val_split=0.1", "trainer.limit_val_batches=1.0", "callbacks.grids.every_n_epochs=0")
    train(composed(*words, directory=tmp_path / "run"))
    (run,) = evaluated(tmp_path / "one", f"runs={tmp_path}/run", *FEW)["runs"]
    official, cut = ImageData({**PLAIN, "name": "digits"}), ImageData({**PLAIN, "name": "digits", "val_split": 0.1})
    assert run["images"] == len(official.val_listing)
    assert run["measured"] == "the official validation images"
    (run,) = evaluated(tmp_path / "other", f"runs={tmp_path}/run", "data.test=val", *FEW)["runs"]
    assert run["images"] == len(cut.val_listing) < len(official.train_listing) / 5


def test_a_comparison_says_which_images_it_is_of_and_whether_they_chose(tmp_path):
    root = finished.images(tmp_path / "images", count=5)
    for arm in ("none", "excitation"):
        finished.run(tmp_path / "runs" / arm, finished.options(root, val_split=0.4), arm, 0)
    asked = (f"runs={tmp_path}/runs/*", *FEW, *CHEAP, "compare.checkpoint=best")
    found = evaluated(tmp_path / "test", *asked)["comparison"]
    assert (found["data"]["images"], found["data"]["measured"]) == (20, "the official validation images")
    assert not any("is what is measured" in note for note in found["notes"])
    found = evaluated(tmp_path / "val", *asked, "data.test=val")["comparison"]
    assert (found["data"]["images"], found["data"]["measured"]) == (8, "0.4 of the training images (data.val_seed=0)")
    said = "What chose the epoch of every run is what is measured: 0.4 of the training images"
    assert any(said in note for note in found["notes"])


# -- labels drawn anew --------------------------------------------------------------------------------------


def test_label_noise_draws_a_share_of_the_training_labels_anew_and_no_others(tmp_path):
    root = photographs(tmp_path, train=200, val=5)
    clean, noisy = folder(root, val_split=0.5), folder(root, val_split=0.5, label_noise=0.3, label_noise_seed=3)
    assert names(noisy, "train") == names(clean, "train")
    assert torch.equal(noisy.listings["val"].labels, clean.listings["val"].labels)
    changed = (noisy.listings["train"].labels != clean.listings["train"].labels).double().mean()
    assert 0.3 * 2 / 3 - 0.08 < float(changed) < 0.3  # a third of those that are drawn anew come out as they were
    everything = folder(root, label_noise=1.0).listings["train"].labels
    assert int(everything.bincount(minlength=3).min()) > 150, "all classes alike"
    measured = folder(root, ("train", "val", "test"), measured=True, val_split=0.5, label_noise=0.3)
    assert torch.equal(measured.listings["val"].labels, folder(root).listings["val"].labels)


def test_label_noise_is_a_function_of_its_seed_and_of_which_images_are_trained_on(tmp_path):
    root = photographs(tmp_path, train=20, val=5)

    def labels(**options) -> Tensor:
        return folder(root, label_noise=0.5, **options).listings["train"].labels

    assert torch.equal(labels(), labels(label_noise_seed=0))
    assert not torch.equal(labels(), labels(label_noise_seed=1))
    assert len(labels(fraction=0.5)) == 30
    restored = ImageData(folder(root, label_noise=0.5).options, seed=99)
    assert torch.equal(restored.listings["train"].labels, labels())


@pytest.mark.parametrize("share", [-0.1, 1.1, "much", True])
def test_a_share_of_labels_that_cannot_be_is_one_sentence(tmp_path, share):
    with pytest.raises(SoftgateError, match=rf"^data\.label_noise={share}: "):
        folder(photographs(tmp_path, train=4, val=2), label_noise=share)


# -- classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["bee", "ant"], ["bee", "ant"]),
        ([2, 0], ["cat", "ant"]),
        (["cat", 1], ["cat", "bee"]),
        (["Cat", "ANT"], ["cat", "ant"]),
    ],
)
def test_classes_are_picked_in_the_order_that_they_are_named_in(tmp_path, wanted, expected):
    data = folder(photographs(tmp_path, train=3, val=2), classes=wanted)
    assert data.classes == expected
    for split, count in (("train", 3), ("val", 2)):
        listing = data.listings[split]
        assert listing.labels.bincount().tolist() == [count] * len(expected)
        for path, label in zip(listing.items, listing.labels.tolist(), strict=True):
            assert path.parent.name == expected[label]


def test_imagenets_classes_are_picked_by_wordnet_id_english_name_and_index(tmp_path):
    wnids = ("n01440764", "n02102040", "n03028079", "n03888257")
    root = photographs(tmp_path, wnids, train=2, val=1)
    for name in ("folder", "imagenet"):
        data = folder(root, name=name, classes=["parachute", "n02102040", 497])
        assert data.listings["val"].folders == ["n03888257", "n02102040", "n03028079"]
        assert [path.parent.name for path in data.val_listing.items] == ["n02102040", "n03028079", "n03888257"]
        assert data.val_listing.labels.tolist() == [1, 2, 0]
    assert data.classes == ["parachute", "English springer", "church"]
    digits = ImageData({**PLAIN, "name": "digits", "classes": [7, "3"]})
    assert digits.classes == ["7", "3"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            ["ant", "dog"],
            r"data\.classes=\['ant', 'dog'\]: 'dog': it is not found in the data set, with 3",
        ),
        (["ant", 0], r"data\.classes=\['ant', 0\]: '0' is ant, which is named already"),
        (["ant"], "there is only the class 'ant'; at least 2"),
        ("ant", r"data\.classes=ant: a list of names or numbers is needed"),
        ([1.5, 2], r"data\.classes=\[1\.5, 2\]: a list of names or numbers"),
    ],
)
def test_classes_that_are_not_there_are_one_sentence(tmp_path, wanted, said):
    photographs(tmp_path, train=2, val=1)
    with pytest.raises(SoftgateError, match=said):
        folder(tmp_path, classes=wanted)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_splits_whose_folders_are_called_otherwise_have_the_same_classes(tmp_path, name):
    wnids, english = ("n01440764", "n02102040", "n03888257"), ("English springer", "parachute", "tench")
    photographs(tmp_path, wnids, train=2)
    photographs(tmp_path, english, val=1)
    data = folder(tmp_path, name=name)
    assert data.train_listing.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.parent.name for path in data.val_listing.items] == list(english)
    assert data.val_listing.labels.tolist() == [1, 2, 0]
    (tmp_path / "val" / "tench").rename(tmp_path / "val" / "tuna")
    with pytest.raises(SoftgateError, match="train and val have different classes, such as"):
        folder(tmp_path, name=name)


def test_what_a_number_means_between_splits_is_not_guessed(tmp_path):
    photographs(tmp_path, ("n01440764", "n02102040"), train=2)
    photographs(tmp_path, ("0", "1"), val=1)
    with pytest.raises(SoftgateError, match="train and val have different classes, such as '0'"):
        folder(tmp_path)


# -- data sets by name --------------------------------------------------------------------------------------


def named(name: str, root: Path, splits=("train", "val"), **options) -> ImageData:
    return ImageData({**PLAIN, "name": name, "root": str(root), **options}, splits)


def test_mnist_from_one_file_with_and_without_its_splits(tmp_path):
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (200, 28, 28), dtype=np.uint8), np.arange(200) % 10
    np.savez(tmp_path / "mnist-some.npz", images=images, labels=labels)
    grey = {"channels": 1, "mean": [0.1], "std": [0.3]}
    for root in (tmp_path, tmp_path / "mnist-some.npz"):
        data = named("mnist", root, size=28, **grey)
        assert data.classes == list("0123456789")
        assert data.val_listing.labels.bincount().tolist() == [4] * 10
        assert data.train_listing.labels.bincount().tolist() == [16] * 10
        both = torch.cat([data.listings[split].items for split in ("train", "val")])
        assert sorted(map(bytes, both.flatten(1).numpy())) == sorted(map(bytes, images.reshape(200, -1)))
        data.setup("validate")
        assert next(iter(data.val_dataloader()))[0].shape == (4, 1, 28, 28)
    keras = {"x_train": images[:150], "y_train": labels[:150], "x_test": images[150:], "y_test": labels[150:]}
    np.savez(tmp_path / "keras.npz", **keras)
    data = named("mnist", tmp_path / "keras.npz", **grey)
    assert (len(data.train_listing), len(data.val_listing)) == (150, 50)
    assert torch.equal(data.val_listing.items[:, 0], torch.from_numpy(images[150:]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"images": np.zeros((3, 28, 28)), "labels": np.zeros(3, int)},
            r"images float64 \(3, 28, 28\) and labels int64",
        ),
        ({"images": np.zeros((3, 28, 28), np.uint8), "labels": np.full(3, 10)}, "whole numbers from 0 to 9"),
        ({"images": np.zeros((3, 28, 28), np.uint8), "labels": np.zeros(2, int)}, "are needed"),
        ({"pictures": np.zeros(3)}, "is no file of images and labels"),
        (None, "is no file of images and labels"),
    ],
)
def test_a_file_that_is_no_mnist_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "m.npz"
    path.write_bytes(b"hello") if content is None else np.savez(path, **content)
    with pytest.raises(SoftgateError, match=rf"data\.root=.*m\.npz: m\.npz .*{said}"):
        named("mnist", path)


@pytest.mark.skipif(not (SHARED / "mnist-10k.npz").is_file(), reason="the real digits are not at hand")
def test_real_mnist_digits():
    data = named("mnist", SHARED / "mnist-10k.npz", size=28, channels=1, mean=[0.1307], std=[0.3081])
    assert len(data.train_listing) + len(data.val_listing) == 10_000
    data.setup("fit")
    pixels = data._datasets["train"].images.float() / 255
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=0.005)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=0.005)


def idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape) + values.tobytes())


@pytest.mark.parametrize(("name", "where"), [("mnist", "MNIST"), ("FashionMNIST", "FashionMNIST")])
def test_torchvisions_own_files_of_grey_images(tmp_path, name, where):
    for part, count in (("train", 20), ("t10k", 10)):
        idx(tmp_path / where / "raw" / f"{part}-images-idx3-ubyte", np.full((count, 28, 28), 7, np.uint8))
        idx(tmp_path / where / "raw" / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    data = named(name, tmp_path)
    assert (len(data.train_listing), len(data.val_listing)) == (20, 10)
    assert data.train_listing.items.shape == (20, 1, 28, 28)
    assert data.classes[9] == ("9" if name == "mnist" else "Ankle boot")
    assert data.val_listing.labels.tolist() == list(range(10))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), (1, 2, 3)).save(path)


def test_a_data_set_of_torchvision_without_splits_has_a_fixed_fifth_for_validation(tmp_path):
    for name in ("River", "Forest"):
        for i in range(10):
            picture(tmp_path / "eurosat" / "2750" / name / f"{i}.jpg")
    data = named("EuroSAT", tmp_path)
    assert data.classes == ["Forest", "River"]
    assert data.val_listing.labels.bincount().tolist() == [2, 2]
    assert data.train_listing.labels.bincount().tolist() == [8, 8]
    assert not set(data.train_listing.items) & set(data.val_listing.items)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 16, 16)
    with pytest.raises(SoftgateError, match=r"data\.test=test: EuroSAT has no test images of its own"):
        named("EuroSAT", tmp_path, test="test")


def test_data_sets_of_torchvision_with_lists_of_files(tmp_path):
    pets = tmp_path / "oxford-iiit-pet"
    for split, count in (("trainval", 4), ("test", 2)):
        lines = [f"{breed}_{split}{i} {k} 1 1" for k, breed in ((1, "Abyssinian"), (2, "Bengal")) for i in range(count)]
        for line in lines:
            picture(pets / "images" / f"{line.split()[0]}.jpg")
        (pets / "annotations").mkdir(exist_ok=True)
        (pets / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    data = named("OxfordIIITPet", tmp_path)
    assert data.classes == ["Abyssinian", "Bengal"]
    assert [len(data.listings[split]) for split in ("train", "val")] == [8, 4]
    for path, label in zip(data.val_listing.items, data.val_listing.labels.tolist(), strict=True):
        assert path.name.startswith(data.classes[label])
    textures = tmp_path / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        for name in ("banded", "dotted"):
            picture(textures / "images" / name / f"{name}_{split}.jpg")
        (textures / "labels").mkdir(exist_ok=True)
        text = "".join(f"{name}/{name}_{split}.jpg\n" for name in ("banded", "dotted"))
        (textures / "labels" / f"{split}1.txt").write_text(text)
    data = named("DTD", tmp_path, ("train", "val", "test"), test="test")
    assert [path.name for path in data.listings["test"].items] == ["banded_test.jpg", "dotted_test.jpg"]
    assert data.listings["test"].labels.tolist() == [0, 1]


def test_a_data_set_of_torchvision_that_keeps_images_in_its_own_way_is_read_one_by_one(tmp_path, monkeypatch):
    sizes, labels = [(48, 48)] * 4, [0, 1, 2, 1]

    class Fake:
        def __init__(self, root: Path, split: str) -> None:
            self._samples = [(torch.zeros(size), label) for size, label in zip(sizes, labels, strict=True)]

        def __len__(self) -> int:
            return len(self._samples)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", sizes[index], index), labels[index]

    monkeypatch.setattr(published.torchvision.datasets, "FER2013", Fake)
    data = named("FER2013", tmp_path)
    assert data.train_listing.items[:, 0, 3, 3].tolist() == [0, 1, 2, 3]
    assert data.train_listing.labels.tolist() == labels
    assert data.classes == ["0", "1", "2"]
    labels[3] = None
    with pytest.raises(SoftgateError, match=r"data\.name=FER2013: its train images have no classes"):
        named("FER2013", tmp_path)
    labels[3], sizes[3] = 1, (9, 9)
    with pytest.raises(SoftgateError, match=r"data\.name=FER2013: its images are of many sizes and not in files"):
        named("FER2013", tmp_path)


@pytest.mark.parametrize("name", sorted(published.PUBLISHED))
def test_every_data_set_of_torchvision_that_is_not_there_is_one_sentence(tmp_path, name):
    with pytest.raises(SoftgateError, match=rf"data\.root=.*nowhere: there is no such folder; it should hold {name}\."):
        named(name, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(SoftgateError, match=rf"data\.root=.*: {name} is not there or not complete \(torchvision: "):
        named(name, tmp_path)


def test_cifar100_is_read_from_its_official_files(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            self.data = np.zeros((200 if train else 100, 32, 32, 3), np.uint8)
            self.data[..., 1] = 255
            self.targets = [i % 100 for i in range(len(self.data))]
            self.classes = [f"class {i}" for i in range(100)]

    monkeypatch.setattr(published.torchvision.datasets, "CIFAR100", Fake)
    data = named("cifar100", tmp_path)
    assert len(data.classes) == 100
    assert isinstance(data.val_listing.items, Tensor)
    assert data.val_listing.items[0, :, 5, 5].tolist() == [0, 255, 0]


@pytest.mark.parametrize("name", ["mnist", "cifar100", "torchvision"])
def test_every_data_set_has_a_config_that_is_read(name):
    words = [f"data={name}", *(["data.name=SVHN"] if name == "torchvision" else [])]
    config = DataConfig.read(dict(composed(*words).data))
    assert config.name == ("SVHN" if name == "torchvision" else name)
    assert config.channels == (1 if name == "mnist" else 3)
