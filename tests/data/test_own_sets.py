"""Data sets of somebody's own: what they may give, what softgate makes of it, and what is refused with its number."""

import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from softgate import SoftgateError, targets
from softgate.data import ImageData, datamodule
from softgate.data.own_sets import known_labels

PIXELS = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = [i % 3 for i in range(12)]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


class Items:
    """Images and labels, with whatever else a data set may have."""

    def __init__(self, images: Any, given: Any = LABELS, **more: Any) -> None:
        self.images, self.given = images, given
        self.__dict__.update(more)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, i: int) -> Any:
        return self.images[i], self.given[i]


@pytest.fixture
def own(monkeypatch):
    """Gives images from a function that returns its argument, as a target of a module that was typed."""
    module: Any = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(targets, "_own", {"mine"})

    def data(made: Any, splits=("train", "val"), **options: Any) -> ImageData:
        module.make = made if callable(made) else lambda: made
        return ImageData({"_target_": "mine.make", "num_workers": 0, **options}, splits=splits)

    return data


def pair(images: Any, **more: Any) -> tuple[Items, Items]:
    return Items(images, **more), Items(images, **more)


def batch(data: ImageData) -> torch.Tensor:
    data.setup()
    return torch.cat([images for images, _ in data.val_dataloader()])


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(PIXELS, id="uint8 tensors"),
        pytest.param(PIXELS / 255, id="floats as ToTensor makes them"),
        pytest.param((PIXELS / 255).double(), id="float64"),
        pytest.param(PIXELS.permute(0, 2, 3, 1).numpy(), id="arrays, channels last"),
        pytest.param([Image.fromarray(x.permute(1, 2, 0).numpy()) for x in PIXELS], id="Pillow"),
    ],
)
def test_images_of_any_kind_are_the_same_pixels(own, images):
    data = own(pair(images), mean=MEAN, std=STD)
    assert (data.size, data.batch_size, data.classes) == (16, 64, ["0", "1", "2"])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(batch(data), (PIXELS / 255 - mean) / std)


def test_normalised_images_are_taken_back_and_normalised_again(own):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    given = (PIXELS / 255 - mean) / std
    data = own(pair(given), mean=MEAN, std=STD, normalized=True)
    torch.testing.assert_close(batch(data), given, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(data.denormalize(batch(data)), PIXELS / 255, atol=1e-5, rtol=0)


def test_grey_images(own):
    data = own(pair(PIXELS[:, :1]), channels=1)
    assert torch.equal(batch(data).mul(255).round().byte(), PIXELS[:, :1])
    assert batch(own(pair(PIXELS[:, 0].numpy()))).shape == (12, 3, 16, 16)


def test_images_are_resized_where_a_size_is_set(own):
    images = [x[:, : 12 + i] for i, x in enumerate(PIXELS[:4])] + list(PIXELS[4:])
    assert batch(own(pair(images), size=8)).shape == (12, 3, 8, 8)


def test_a_target_is_told_size_and_channels_where_it_asks(own):
    seen: dict[str, int] = {}

    def made(size: int, channels: int) -> Any:
        seen.update(size=size, channels=channels)
        return pair(PIXELS)

    own(made, size=32)
    assert seen == {"size": 32, "channels": 3}


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002  # theirs is looked at


class Drawn(Items):
    """Random transforms as people write them, from whichever generator."""

    def __getitem__(self, i: int) -> Any:
        number = (torch.rand(1).item() + np.random.rand() + random.random()) / 3  # noqa: NPY002  # as people write it
        return torch.full((3, 8, 8), number), self.given[i]


def test_what_a_data_set_draws_depends_on_seed_epoch_and_image_alone(own):
    def epochs(seed: int, workers: int = 0) -> list[torch.Tensor]:
        torch.rand(seed + workers)  # the global generators are somewhere
        random.random()
        data = own((Drawn(None), Drawn(None)), num_workers=workers, batch_size=4)
        data.seed = seed
        data.setup()
        loader = data.train_dataloader()
        place = {"epoch": 0}
        loader._position = lambda: (place["epoch"], 0)
        first = torch.cat([images for images, _ in loader])
        place["epoch"] = 1
        return [first, torch.cat([images for images, _ in loader])]

    one = epochs(1)
    assert not torch.equal(one[0], one[1])
    assert len(one[0][:, 0, 0, 0].unique()) == 12
    assert all(torch.equal(a, b) for a, b in zip(one, epochs(1, workers=2), strict=True))
    assert not torch.equal(one[0], epochs(2)[0])
    data = own((Drawn(None), Drawn(None)))
    assert torch.equal(batch(data), batch(data))


def test_reading_leaves_the_generators_as_they_were(own):
    data = own((Drawn(None), Drawn(None)))
    before = states()
    batch(data)
    assert states() == before


def test_labels_are_known_or_read():
    class Unread(Items):
        def __getitem__(self, i: int) -> Any:
            raise AssertionError("an image was read")

    assert known_labels(Unread(PIXELS, targets=LABELS)).tolist() == LABELS
    assert known_labels(Unread(PIXELS, labels=torch.tensor(LABELS))).tolist() == LABELS
    assert known_labels(Subset(Unread(PIXELS, targets=LABELS), [4, 2])).tolist() == [1, 2]
    assert known_labels(Unread(PIXELS, targets=LABELS, target_transform=lambda y: 2 - y)) is None
    assert known_labels(Items(PIXELS)) is None


def test_parts_classes_and_fractions_of_an_own_set(own):
    named = pair(PIXELS, targets=LABELS, classes=["ant", "bee", "cat"])
    data = own(named, classes=["cat", "ant"])
    assert data.classes == ["cat", "ant"]
    assert data.val_listing.labels.tolist() == [1, 0] * 4
    assert torch.equal(batch(data)[0].mul(255).round().byte(), PIXELS[0])
    assert len(own(named, val_split=0.25).val_listing) == 3
    assert len(own(named, fraction=0.5).train_listing) == 6
    third = own((*named, Items(PIXELS[:3], LABELS[:3])), splits=("test",), test="test")
    assert len(third.listings["test"]) == 3
    with pytest.raises(SoftgateError, match=r"mine.make gives no test images, only train, val"):
        own(named, splits=("test",), test="test")


def test_by_name(own):
    assert len(own({"val": Items(PIXELS[:3], LABELS[:3]), "train": Items(PIXELS)}).val_listing) == 3


class Module(pl.LightningDataModule):
    def __init__(self, **loader: Any) -> None:
        super().__init__()
        self.loader, self.asked = loader, []

    def prepare_data(self) -> None:
        self.asked.append("prepare")

    def setup(self, stage: str) -> None:
        self.asked.append(stage)

    def train_dataloader(self) -> Any:
        data = TensorDataset(PIXELS, torch.tensor(LABELS))
        return DataLoader(data, **{"batch_size": 5, "shuffle": True, **self.loader})

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(PIXELS, torch.tensor(LABELS)), batch_size=7)


def test_the_data_sets_of_a_lightning_module(own):
    module = Module()
    data = own(lambda: module)
    assert (data.batch_size, module.asked) == (5, ["prepare", "fit"])
    assert own(lambda: module, batch_size=3).batch_size == 3
    assert torch.equal(batch(data).mul(255).round().byte(), PIXELS)
    assert len(own(lambda: Tested(), splits=("test",), test="test").listings["test"]) == 4


class Tested(Module):
    __test__ = False  # it is no test, whatever it is called

    def test_dataloader(self) -> Any:
        return DataLoader(TensorDataset(PIXELS[:4], torch.tensor(LABELS[:4])))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield PIXELS[0], 0


class Moved(Module):
    def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
        return batch


class Streamed(Module):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream())


class Several(Module):
    def val_dataloader(self) -> Any:
        return [super().val_dataloader()]


class Failing(Module):
    def setup(self, stage: str) -> None:
        raise FileNotFoundError("no images here")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Module(sampler=WeightedRandomSampler([1.0] * 12, 12), shuffle=None), "a sampler of its own"),
        (lambda: Module(collate_fn=list), "a collate_fn of its own"),
        (Moved, "its on_after_batch_transfer would not be called"),
        (Streamed, "an IterableDataset"),
        (Several, "its val loader is list; one torch DataLoader is needed"),
        (Failing, r"FileNotFoundError: no images here \(test_own_sets.py, line \d+\)"),
        (lambda: 3, "it returned int; data sets for training and validation"),
        (lambda: Items(PIXELS), "it returned Items;"),
        (lambda: (Items(PIXELS),), "it returned 1 of them"),
        (lambda: {"train": Items(PIXELS), "valid": Items(PIXELS)}, "a dict of train, valid"),
        (lambda: (Items(PIXELS), 3), "its val part is int; a Dataset with len"),
        (lambda: (Items(PIXELS), Items(PIXELS, [])), "its val part is empty"),
        (lambda: (Items(PIXELS), Stream()), "its val part is Stream; a Dataset with len"),
        (lambda: 1 / 0, r"ZeroDivisionError: division by zero \(test_own_sets.py, line \d+\)"),
    ],
)
def test_what_is_no_data_is_refused_in_a_sentence(own, made, said):
    with pytest.raises(SoftgateError, match=rf"^data._target_=mine.make: .*{said}") as error:
        own(made)
    assert "\n" not in str(error.value)


class Odd(Items):
    """The sixth item is another."""

    def __init__(self, item: Any, **more: Any) -> None:
        super().__init__(PIXELS, **more)
        self.item = item

    def __getitem__(self, i: int) -> Any:
        if i != 5:
            return super().__getitem__(i)
        return self.item() if callable(self.item) else self.item


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (PIXELS[0], "item 5 of val is Tensor (3, 16, 16); an image and its label are needed"),
        ((PIXELS[0], 1, 2), "item 5 of val is tuple; an image and its label"),
        ((PIXELS[0], -1), "item 5 of val has the label -1; a whole number >= 0"),
        ((PIXELS[0], 1.5), "item 5 of val has the label 1.5;"),
        ((PIXELS[0], "cat"), "item 5 of val has the label 'cat';"),
        ((PIXELS[0], 0), "item 5 of val has the label 0 now, 2 before"),
        (("a.jpg", 2), "item 5 of val is str; a Pillow image"),
        ((PIXELS, 2), "item 5 of val is (12, 3, 16, 16);"),
        ((PIXELS[0].long(), 2), "item 5 of val is torch.int64; uint8"),
        ((PIXELS[0] / 255 - 1, 2), "leave normalising to data.mean and data.std"),
        ((PIXELS[0] / 0.0, 2), "item 5 of val has values from"),
        ((PIXELS[0, :, :12], 2), "item 5 of val is 12 x 16 px, the first one is 16 x 16; set data.size"),
        (lambda: open("/no/such"), "item 5 of val: FileNotFoundError"),  # noqa: SIM115, PTH123  # it raises
    ],
)
def test_an_odd_item_is_named(own, item, said):
    with pytest.raises(SoftgateError) as error:
        batch(own((Items(PIXELS), Odd(item, targets=LABELS))))
    assert str(error.value).startswith("data._target_=mine.make: item 5 of val")
    assert said in str(error.value)


def test_an_odd_item_is_named_from_a_worker_too(own, monkeypatch):
    monkeypatch.setattr(datamodule, "VERIFY_LIMIT", 0)  # or it would be found before there are workers
    with pytest.raises(SoftgateError, match=r"item 5 of val: ZeroDivisionError: division by zero \(test_own_sets"):
        batch(own((Items(PIXELS), Odd(lambda: 1 / 0, targets=LABELS)), num_workers=1))


def test_labels_beyond_the_classes_are_named(own):
    few = pair(PIXELS, classes=["ant", "bee"])
    with pytest.raises(SoftgateError, match=r"item 2 of train has the label 2; there are 2 classes, so 0 to 1"):
        own(few)


def test_a_first_image_that_is_not_square_needs_a_size(own):
    with pytest.raises(SoftgateError, match=r"its first image is 16 x 12 px; set data.size"):
        own(pair(PIXELS[..., :12]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"_target_": "mine.Stranger"}, "mine has no 'Stranger'"),
        ({"_target_": "mine.Items"}, "it is a class; a function that returns data sets"),
        ({"_target_": "mine.none", "speed": 3}, r"data\.speed: mine\.none takes no such argument"),
        ({"_target_": "mine.needs"}, r"data\.folder is not set; mine\.needs needs it"),
        ({"_target_": "nothing_here.make"}, "there is no module 'nothing_here'"),
        ({"_target_": "mine.none", "size": 4}, r"data\.size=4"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_before_it_is_called(own, options, said):
    own(pair(PIXELS))
    module: Any = sys.modules["mine"]
    module.Items, module.none, module.needs = Items, lambda: pytest.fail("called"), lambda folder: None
    with pytest.raises(SoftgateError, match=said):
        ImageData(options)


def test_a_target_that_only_stands_in_a_checkpoint_is_not_called(own, monkeypatch):
    own(pair(PIXELS))
    monkeypatch.setattr(targets, "_own", set())
    with pytest.raises(SoftgateError, match=r"data names code to import, mine.make; .*trust=\[mine\]"):
        ImageData({"_target_": "mine.make"})
