"""Grids as pictures: no title is cut off."""

import torch

from softgate.grids.drawing import pullback_grid
from softgate.grids.sheet import Sheet


def test_a_title_wider_than_its_block_takes_two_lines_and_none_is_cut(monkeypatch):
    said = []
    words = Sheet.words

    def listen(self, lines, *args, **kwargs):
        said.append([lines] if isinstance(lines, str) else list(lines))
        return words(self, lines, *args, **kwargs)

    monkeypatch.setattr(Sheet, "words", listen)
    values = torch.randn(1, 2, 3, 16, 16)
    blocks = {"hard: gradient, image": values, "soft: excitation pullback, difference": values}
    small = pullback_grid(torch.rand(1, 3, 16, 16), blocks, ["a"], ["a", "b"], [0], [0, 1])
    assert ["soft: excitation pullback,", "difference"] in said
    assert not any("\u2026" in line for lines in said for line in lines)
    short = pullback_grid(torch.rand(1, 3, 16, 16), {"hard": values, "soft": values}, ["a"], ["a", "b"], [0], [0, 1])
    assert short.height < small.height
