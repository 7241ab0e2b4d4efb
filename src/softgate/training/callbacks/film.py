"""One probe image's pullbacks over training: collected in a file as training goes, drawn at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softgate import files
from softgate.files import save, save_picture
from softgate.grids import animation, film_strip
from softgate.training.callbacks.thinning import spread, stay

LENGTH, FRAMES = 12, 100
"""Most epochs that the strip and the animation show. The file is written anew with each: it must not grow for ever."""


class Film:
    """The pullbacks of one image to its own class, one for each rendered epoch and read-out, of at most 100 epochs.

    They stand in `film.pt`, so that a resumed run goes on with them and the pictures can be drawn anew at any time.

    Args:
        directory: Where `film.pt`, `film.png` and `film.gif` go.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image: Tensor | None = None
        self.frames: dict[int, dict[str, Tensor]] = {}

    def load(self, before: int) -> None:
        """Takes up the epochs before `before` that an earlier part of the run left; a broken file counts as none."""
        try:
            found: dict[str, Any] = files.load(self.directory / "film.pt")
            self.image = found["image"]
            self.frames = {int(epoch): dict(frame) for epoch, frame in found["frames"].items() if int(epoch) < before}
            if any(v.shape != found["image"].shape for frame in self.frames.values() for v in frame.values()):
                raise ValueError("frames of another size")
        except Exception:  # absent, cut short, of another version or no film at all: the film begins here
            self.image, self.frames = None, {}

    def add(self, epoch: int, image: Tensor, pullbacks: Mapping[str, Tensor], last: int | None = None) -> None:
        """Adds an epoch and saves.

        Args:
            epoch: Which epoch.
            image: [C, H, W] pixels in [0, 1].
            pullbacks: Read-out name to a pullback [C, H, W].
            last: The last epoch of the run as planned; None where that is not known.
        """
        if self.image is None or self.image.shape != image.shape or not self._same_names(pullbacks):
            self.frames = {}
        self.image = image
        self.frames[epoch] = {name: v.bfloat16() for name, v in pullbacks.items()}  # float16 would lose small ones
        self.frames = {each: self.frames[each] for each in stay(self.frames, FRAMES, last)}
        save({"image": image, "frames": self.frames}, self.directory / "film.pt")

    def draw(self, title: str, scale: str) -> list[Path]:
        """Draws what there is, its words counting epochs from 1; [] before the first one. Returns the files."""
        if not self.frames or self.image is None:
            return []
        epochs = sorted(self.frames)
        names = list(self.frames[epochs[0]])
        films = {name: torch.stack([self.frames[epoch][name].float() for epoch in epochs]) for name in names}
        chosen = spread(len(epochs), LENGTH)
        some = {name: film[chosen] for name, film in films.items()}
        strip = film_strip(self.image, some, [epochs[i] + 1 for i in chosen], title, scale=scale)
        paths = [self.directory / "film.png", self.directory / "film.gif"]
        save_picture(strip, paths[0])
        animation(self.image, films, [epoch + 1 for epoch in epochs], paths[1], scale=scale)
        return paths

    def _same_names(self, pullbacks: Mapping[str, Tensor]) -> bool:
        return all(frame.keys() == pullbacks.keys() for frame in self.frames.values())
