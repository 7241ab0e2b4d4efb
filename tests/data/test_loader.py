"""The loader: orders and augmentation that resume and split over processes; what is remembered between starts."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets.folder import find_classes, make_dataset
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from softgate import SoftgateError, SoftgateWarning
from softgate.data import ImageData, augment, index, store
from softgate.data.images import ImageFiles
from softgate.data.loader import Finish, ImageLoader, Process, Share

PLAIN = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
CROP = Finish(6, **PLAIN, scale=(0.3, 0.9), flip=True)


def loader(count: int, size: int = 4, seed: int | None = 0, share: Share | None = None, **options) -> ImageLoader:
    """A loader of images whose first pixel is their index."""
    images = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageLoader(images, torch.arange(count), CROP, size, seed, Process(share or Share()), **options)


# -- which images, and in which order -----------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_over_all_processes_validation_sees_every_image_once_in_equally_many_batches(count, size, world):
    loaders = [loader(count, size, None, Share(rank, world)) for rank in range(world)]
    plans = [each.plan(0) for each in loaders]
    assert sorted(torch.cat([i for plan in plans for i in plan]).tolist()) == list(range(count))
    assert {len(plan) for plan in plans} == {len(each) for each in loaders} == {-(-count // (size * world))}
    assert all(len(i) <= size for plan in plans for i in plan)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_processes_train_on_the_batches_of_one_with_the_same_augmentation(count, size, world, epoch):
    shares = [loader(count, size, 7, Share(rank, world)) for rank in range(world)]
    plans = [each.plan(epoch) for each in shares]
    whole = loader(count, size * world, 7)
    assert len({len(plan) for plan in plans}) == 1
    assert len({len(i) for plan in plans for i in plan}) == 1
    seen = torch.cat([i for plan in plans for i in plan])
    assert len(seen.unique()) == len(seen)
    for number, parts in enumerate(zip(*plans, strict=True)):
        batch = whole.plan(epoch)[number]
        together = torch.stack(parts, 1).flatten()
        assert torch.equal(together, batch[: len(together)])
        drawn = torch.stack([e._draws(epoch, number, len(parts[0])) for e in shares], 1).flatten(0, 1)
        assert torch.equal(drawn, whole._draws(epoch, number, len(together)))


def test_an_iteration_begins_where_the_trainer_is_and_gives_what_a_whole_one_would():
    whole = list(loader(21, position=lambda: (3, 0)))
    rest = list(loader(21, position=lambda: (3, 2)))
    assert len(whole) == 5
    assert len(rest) == 3
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    other = next(iter(loader(21, position=lambda: (4, 0))))
    assert not torch.equal(whole[0][1], other[1])


def test_every_epoch_and_every_batch_crops_and_flips_otherwise():
    one, other = (next(iter(loader(1, 1, position=lambda e=epoch: (e, 0))))[0] for epoch in (0, 1))
    assert not torch.equal(one, other)  # of a single image, which comes first in any order
    draws = [loader(8, 2)._draws(epoch, number, 2) for epoch in (0, 1) for number in (0, 1)]
    assert len({tuple(each.flatten().tolist()) for each in draws}) == 4


def test_where_to_begin_is_asked_when_the_first_batch_is():
    place = [0, 0]
    batches = iter(loader(12, position=lambda: tuple(place)))
    place[:] = 5, 1
    assert torch.equal(next(batches)[1], next(iter(loader(12, position=lambda: (5, 1))))[1])


def test_no_global_random_number_is_drawn_or_matters():
    state = torch.get_rng_state()
    first = list(loader(9))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, loader(9), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_decoded_alike_by_any_number_of_workers_in_every_epoch_and_from_any_batch(tmp_path, workers):
    for i in range(9):
        Image.effect_noise((20 + i, 30), 60).convert("RGB").save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.iterdir())
    place = [0, 0]

    def of(count: int) -> ImageLoader:
        files = ImageFiles(paths, 6, (0.3, 0.9))
        finish = Finish(6, **PLAIN, flip=True)
        return ImageLoader(files, torch.arange(9), finish, 2, 0, Process(workers=count), position=lambda: tuple(place))

    one, other, state = of(0), of(workers), torch.get_rng_state()
    for epoch, first in ((0, 0), (1, 0), (1, 3)):  # the same loader: its workers live on
        place[:] = epoch, first
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
    next(iter(other))  # given up on in the midst
    assert len(list(other)) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_share_without_an_image_in_a_batch_has_an_empty_one(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    files = ImageFiles([tmp_path / "a.png"] * 3, 6)
    batches = list(ImageLoader(files, torch.arange(3), Finish(6, **PLAIN), 1, None, Process(Share(1, 2))))
    assert [len(x) for x, _ in batches] == [1, 0]
    assert batches[1][0].shape == (0, 3, 6, 6)


# -- augmentation -------------------------------------------------------------------------------------------


def test_crops_are_torchvisions_resized_crops():
    images = torch.rand(40, 3, 17, 23, generator=torch.Generator().manual_seed(0)) * 255
    for size in (9, 16, 30):  # antialiased, about the same, and enlarged
        box = augment.boxes(augment.draw(40, 0), 17, 23, (0.1, 1.0))
        mine = augment.crop(images, box, size)
        for image, where, found in zip(images, box.tolist(), mine, strict=True):
            theirs = TF.resized_crop(image, *where, [size, size], antialias=True)
            assert torch.allclose(found, theirs, atol=2e-3)


@pytest.mark.parametrize("shape", [(40, 40), (30, 60), (90, 20)])
def test_boxes_lie_within_the_image_and_are_spread_as_torchvisions(shape):
    height, width = shape
    box = augment.boxes(augment.draw(4000, 1), height, width, (0.2, 1.0))
    top, left, h, w = box.T
    assert bool(((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all())
    torch.manual_seed(0)
    theirs = torch.tensor([list(_params(height, width)) for _ in range(4000)])
    for mine, other in zip(box.T, theirs.T, strict=True):
        spread = max(1.0, float(other.double().std()))
        assert abs(float(mine.double().mean() - other.double().mean())) < 0.1 * spread
        assert abs(float(mine.double().std() - other.double().std())) < 0.1 * spread


def _params(height: int, width: int) -> tuple[int, ...]:
    found = RandomResizedCrop(8, scale=(0.2, 1.0)).make_params([torch.empty(3, height, width)])
    return found["top"], found["left"], found["height"], found["width"]


def test_half_of_the_images_are_mirrored_and_pixels_normalised():
    images = torch.arange(8).repeat(1000, 3, 8, 1).byte() * 30
    finish = Finish(8, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], flip=True)
    u = augment.draw(1000, 3)
    out = finish(images, u)
    mirrored = out[:, 0, 0, 0] > out[:, 0, 0, -1]
    assert torch.equal(mirrored, augment.flips(u))
    assert 450 < int(mirrored.sum()) < 550
    assert torch.allclose(out[~mirrored], (images[~mirrored] / 255 - 0.5) / 0.5, atol=1e-6)
    assert torch.equal(finish(images), finish(images.clone()))


def test_seeds_differ_in_every_part_and_in_their_order():
    seeds = {augment.seed_of(*parts) for parts in ((0,), (1,), (0, 1), (1, 0), (1, 1), (0, 1, 0), (2**32, 5))}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- the index ----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("b/1.png", "b/x/2.JPG", "a/3.jpeg", "a/ä ö.png", "a/no.txt", "c/deep/er/4.webp"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    age(tmp_path / "tree")
    return tmp_path / "tree"


def age(where: Path) -> None:
    """Sets the folders' times back, as if nothing had changed there for an hour."""
    for folder, _, _ in os.walk(where):
        before = Path(folder).stat().st_mtime - 3600
        os.utime(folder, (before, before))


def listed(where: Path, cache: Path | None) -> list[tuple[str, int]]:
    paths, labels, *_ = index.index(where, cache)
    return [(str(path), label) for path, label in zip(paths, labels.tolist(), strict=True)]


def torchvisions(where: Path) -> list[tuple[str, int]]:
    return make_dataset(str(where), find_classes(str(where))[1], extensions=index.SUFFIXES)


def test_an_index_is_torchvisions_and_listed_once(tree, tmp_path, monkeypatch):
    expected = torchvisions(tree)
    assert len(expected) == 5
    assert listed(tree, None) == expected
    assert listed(tree, tmp_path / "cache") == expected
    with monkeypatch.context() as patch:
        patch.setattr(index, "_listed", None)
        assert listed(tree, tmp_path / "cache") == expected
    (kept,) = (file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock")
    kept.write_bytes(kept.read_bytes()[:100])
    assert listed(tree, tmp_path / "cache") == expected


@pytest.mark.parametrize("change", ["add", "add deep", "remove", "rename", "new class", "drop class", "new folder"])
def test_an_index_is_made_anew_after_every_change_of_names(tree, tmp_path, change):
    cache = tmp_path / "cache"
    before = listed(tree, cache)
    if change == "add":
        (tree / "a" / "5.png").touch()
    elif change == "add deep":
        (tree / "c" / "deep" / "er" / "5.png").touch()
    elif change == "remove":
        (tree / "b" / "1.png").unlink()
    elif change == "rename":
        (tree / "b" / "1.png").rename(tree / "b" / "0.png")
    elif change == "new class":
        (tree / "d").mkdir()
        (tree / "d" / "1.png").touch()
    elif change == "drop class":
        shutil.rmtree(tree / "c")
    else:
        (tree / "a" / "more").mkdir()
        (tree / "a" / "more" / "1.png").touch()
    assert listed(tree, cache) == torchvisions(tree) != before


def test_a_folder_that_changed_a_moment_before_it_was_listed_is_not_trusted(tree, tmp_path):
    (tree / "a" / "5.png").touch()
    now = (tree / "a").stat()
    listed(tree, tmp_path / "cache")
    (tree / "a" / "6.png").touch()
    os.utime(tree / "a", ns=(now.st_atime_ns, now.st_mtime_ns))  # a coarse clock gives both changes one time
    assert listed(tree, tmp_path / "cache") == torchvisions(tree)


def test_paths_are_a_sequence(tree):
    paths, *_ = index.index(tree, None)
    assert paths[-1] == list(paths)[-1]
    assert paths[1:3] == list(paths)[1:3]
    with pytest.raises(IndexError):
        paths[5]


# -- decoded images -----------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path) -> Path:
    for split in ("train", "val"):
        for name in ("a", "b"):
            for i in range(3):
                path = tmp_path / "images" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((20, 24), 60).convert("RGB").save(path)
    return tmp_path / "images"


def images(root: Path, cache: object) -> torch.Tensor:
    options = {**PLAIN, "name": "folder", "size": 16, "batch_size": 4, "root": str(root), "cache_dir": cache}
    data = ImageData(options)
    data.setup("fit")
    return torch.cat([x for x, _ in data.val_dataloader()])


def test_images_are_decoded_once_and_again_when_a_file_changes(photographs, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = images(photographs, False)
    assert torch.equal(images(photographs, cache), first)
    with monkeypatch.context() as patch:
        patch.setattr(store, "decode", None)
        assert torch.equal(images(photographs, cache), first)
        assert torch.equal(images(photographs, cache), first)
    path = photographs / "val" / "a" / "1.png"
    Image.new("RGB", (20, 24), (9, 8, 7)).save(path)
    changed = images(photographs, cache)
    assert torch.equal(changed, images(photographs, False))
    assert not torch.equal(changed, first)


def test_a_broken_image_leaves_nothing_in_the_store(photographs, tmp_path):
    (photographs / "train" / "a" / "1.png").write_text("hello")
    for _ in range(2):
        with pytest.raises(SoftgateError, match=r"1\.png cannot be read"):
            images(photographs, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.bin*[!k]"))


def test_a_cache_that_cannot_be_written_costs_time_and_one_warning(photographs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(SoftgateWarning, match=r"data\.cache_dir=.*file.*decoded at every start"):
        found = images(photographs, str(tmp_path / "file"))
    assert torch.equal(found, images(photographs, False))


def test_where_things_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder(None) == tmp_path / "softgate"
    assert store.folder(False) is None
    assert store.folder("~/x") == Path.home() / "x"
    with pytest.raises(SoftgateError, match=r"data\.cache_dir=3: a folder"):
        ImageData({**PLAIN, "name": "digits", "size": 8, "cache_dir": 3})


def test_a_listing_of_a_million_files_is_one_block_of_memory(tmp_path):
    names = [f"n{i % 1000:04d}/{i}.JPEG" for i in range(100_000)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = index.Paths.of(tmp_path, names)
    assert paths[77_777] == tmp_path / names[77_777]
    assert isinstance(paths.names, np.ndarray)
    assert paths.names.nbytes + paths.ends.nbytes < 25 * len(names)
