"""BAPPS: what people said of triplets of patches (Zhang et al., arXiv 1801.03924), from the folders it comes in.

Each kind of distortion is a folder with `ref`, `p0` and `p1`, image files of the same names, and `judge`, for each of
them an `.npy` with the share of people who found `p1` nearer to `ref`. The data set is not fetched: it is at
github.com/richzhang/PerceptualSimilarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from softgate.data.reading import Unreadable, read
from softgate.errors import SoftgateError, require, unknown

PARTS = ("ref", "p0", "p1")
WITHIN = (".", "val", "2afc/val")
"""Where the families may lie below the folder that is named; those of 2afc/train have fewer judges."""


class BAPPS(Dataset[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]):
    """Triplets of patches and the choice that people made, of a folder of families.

    An item is the reference, two distortions of it ([3, H, W] float32, pixels in [0, 1]), the share of judges who found
    the second one nearer (a number in [0, 1]) and the number of its family.

    Args:
        root: The folder that holds a folder for each family, or these in `val/` or `2afc/val/`.
        families: Those that are used, in this order, such as "cnn"; None is all that are there, in alphabetical order.

    Attributes:
        families: Their names.

    Raises:
        SoftgateError: If there is no such folder or family, or a family's parts are not of the same names; for an item,
            if a file cannot be read or is no share of judges.
    """

    def __init__(self, root: str | Path, families: Sequence[str] | None = None) -> None:
        base, there = _found(Path(root).expanduser())
        for name in families or ():
            if name not in there:
                raise unknown("BAPPS: family", name, there)
        require(families is None or len(families) > 0, "BAPPS: families=[]: one at least is needed, or None for all.")
        self.families = tuple(there if families is None else families)
        self.items = [
            (base / name, file, number) for number, name in enumerate(self.families) for file in _files(base / name)
        ]

    def __len__(self) -> int:
        """How many triplets there are."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Reference, first distortion, second distortion, judges and family of a triplet."""
        folder, file, family = self.items[index]
        try:
            images = [TF.pil_to_tensor(read(folder / part / file).image).float() / 255 for part in PARTS]
        except Unreadable as error:
            path, reason = error.broken[0]
            raise SoftgateError(f"BAPPS: the image {path} cannot be read ({reason}).") from None
        shapes = {tuple(image.shape) for image in images}
        require(len(shapes) == 1, f"BAPPS: {folder / 'ref' / file}: its distortions have other sizes.")
        judge = _share(folder / "judge" / f"{Path(file).stem}.npy")
        return images[0], images[1], images[2], torch.tensor(judge, dtype=torch.float64), torch.tensor(family)


def _found(root: Path) -> tuple[Path, list[str]]:
    """The folder of families, and their names."""
    require(root.is_dir(), f"BAPPS: root={root}: there is no such folder.")
    for within in WITHIN:
        names = sorted(path.parent.name for path in (root / within).glob("*/judge") if path.is_dir())
        if names:
            return root / within, names
    raise SoftgateError(f"BAPPS: root={root}: no folder in it has ref/, p0/, p1/ and judge/.")


def _files(folder: Path) -> list[str]:
    """The names of a family's images, the same in all of its parts."""
    names = {part: {path.name for path in (folder / part).glob("*.*")} for part in PARTS}
    judged = {path.stem for path in (folder / "judge").glob("*.npy")}
    for part, files in names.items():
        odd = sorted({Path(name).stem for name in files} ^ judged)
        said = f"{len(odd)} names are in only one of {part}/ and judge/, such as {''.join(odd[:1])}"
        require(not odd, f"BAPPS: {folder}: {said}.")
        require(files == names["ref"], f"BAPPS: {folder}: ref/ and {part}/ have files of other names.")
    require(bool(judged), f"BAPPS: {folder}: there is no triplet in it.")
    return sorted(names["ref"])


def _share(path: Path) -> float:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SoftgateError(f"BAPPS: {path} cannot be read ({reason.rstrip('.')}).") from None
    fine = isinstance(found, np.ndarray) and found.size == 1 and found.dtype.kind in "fiu" and 0 <= found.item() <= 1
    require(fine, f"BAPPS: {path}: the share of judges, one number in [0, 1], is needed.")
    return float(found.item())
