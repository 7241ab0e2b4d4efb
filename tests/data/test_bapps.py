"""BAPPS from a made folder: triplets in order, and one sentence for each way that a folder is no BAPPS."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from softgate import SoftgateError
from softgate.data import BAPPS

COLOURS = {"ref": 10, "p0": 60, "p1": 200}
JUDGED = {"color": (0.0, 0.2), "cnn": (1.0, 0.6)}


def made(root, within="2afc/val"):
    for family, judges in JUDGED.items():
        folder = root / within / family
        for part in (*COLOURS, "judge"):
            (folder / part).mkdir(parents=True)
        for number, judge in enumerate(judges):
            for part, value in COLOURS.items():
                Image.new("RGB", (12, 12), (value, number, 0)).save(folder / part / f"{number:06d}.png")
            np.save(folder / "judge" / f"{number:06d}.npy", np.array([judge], dtype=np.float32))
    return root


@pytest.mark.parametrize("within", ["2afc/val", "val", "."])
def test_triplets_and_what_people_said(tmp_path, within):
    found = BAPPS(made(tmp_path, within))
    assert found.families == ("cnn", "color")
    assert len(found) == 4
    for index, (family, number) in enumerate([("cnn", 0), ("cnn", 1), ("color", 0), ("color", 1)]):
        *images, judge, which = found[index]
        for image, value in zip(images, COLOURS.values(), strict=True):
            colour = torch.tensor([value, number, 0]).view(3, 1, 1).expand(3, 12, 12) / 255
            torch.testing.assert_close(image, colour)
        assert float(judge) == pytest.approx(JUDGED[family][number])
        assert found.families[int(which)] == family


def test_families_in_the_order_that_is_asked_for_and_batches_for_the_metric(tmp_path):
    from softgate.metrics import PerceptualChoice, pixel_distance

    found = BAPPS(made(tmp_path), ["color", "cnn"])
    metric = PerceptualChoice(found.families)
    for ref, p0, p1, judge, family in DataLoader(found, batch_size=3):
        near, far = pixel_distance(ref, p0), pixel_distance(ref, p1)
        metric.update(near[:, None], far[:, None], judge[:, None], family[:, None])
    # p0 is nearer everywhere: one minus the share who chose p1.
    expected = {"color": 0.9, "cnn": 0.2, "all": 0.55}
    assert {name: float(v) for name, v in metric.compute().items()} == pytest.approx(expected)


def remove(path):
    path.unlink()


def resized(path):
    Image.new("RGB", (9, 9)).save(path)


BROKEN = {
    "no judge": (lambda f: remove(f / "judge/000001.npy"), None, r"1 names are in only one of ref/ and judge/.*000001"),
    "no distortion": (lambda f: remove(f / "p1/000000.png"), None, "only one of p1/ and judge/, such as 000000"),
    "other names": (
        lambda f: (f / "p0/000000.png").rename(f / "p0/000000.bmp"), None, "ref/ and p0/ have files of other names",
    ),
    "no image": (lambda f: (f / "p0/000000.png").write_bytes(b"x"), 0, r"the image .*000000\.png cannot be read"),
    "other size": (lambda f: resized(f / "p0/000000.png"), 0, "its distortions have other sizes"),
    "no share": (lambda f: np.save(f / "judge/000000.npy", np.array([1.5])), 0, r"one number in \[0, 1\]"),
    "two shares": (lambda f: np.save(f / "judge/000000.npy", np.zeros(2)), 0, "one number"),
    "no array": (lambda f: (f / "judge/000000.npy").write_bytes(b"x"), 0, r"000000\.npy cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_sentence(tmp_path, case):
    spoil, item, said = BROKEN[case]
    spoil(made(tmp_path) / "2afc/val/cnn")
    with pytest.raises(SoftgateError, match=said):
        BAPPS(tmp_path, ["cnn"])[0] if item is not None else BAPPS(tmp_path)


def test_a_folder_or_family_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(SoftgateError, match=r"root=.*none: there is no such folder"):
        BAPPS(tmp_path / "none")
    with pytest.raises(SoftgateError, match=r"no folder in it has ref/, p0/, p1/ and judge/"):
        BAPPS(tmp_path)
    made(tmp_path)
    with pytest.raises(SoftgateError, match=r"family=colour: .*Did you mean 'color'"):
        BAPPS(tmp_path, ["colour"])
    with pytest.raises(SoftgateError, match=r"families=\[\]"):
        BAPPS(tmp_path, [])
