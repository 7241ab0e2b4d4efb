"""A visit's wishes and files: the newest wish counts, a copy is another visit."""

import copy
import time
from pathlib import Path

import pytest
import torch

from softgate.app.look import look
from softgate.app.request import Request
from softgate.app.visit import KEPT, Superseded, Turns, Visit, rest
from softgate.surrogate.rule import Surrogate


def test_a_wish_counts_until_the_next_one():
    turns = Turns()
    first = turns.check(turns.ask())
    first()
    second = turns.check(turns.ask())
    second()
    with pytest.raises(Superseded):
        first()


def test_a_rest_ends_with_its_wish():
    turns = Turns()
    check = turns.check(turns.ask())
    rest(check, 0.01)
    turns.ask()
    begun = time.monotonic()
    with pytest.raises(Superseded):
        rest(check, 3600)
    assert time.monotonic() - begun < 60


def test_files_of_a_visit_are_few_and_go_with_it(library):
    visit = Visit()
    other = copy.deepcopy(visit)
    shown = look(library, Request([("none", "last")], [1], Surrogate()))
    places = [visit.keep(shown) for _ in range(KEPT + 3)]
    folder = Path(places[0][0]).parent
    assert len(list(folder.iterdir())) == 2 * KEPT
    assert Path(other.keep(shown)[0]).parent != folder
    kept = torch.load(places[-1][1], weights_only=True)
    assert torch.equal(kept["soft"], shown.grid.readings["soft: excitation pullback"].values)
    waits = visit.looks.check(visit.looks.ask())
    visit.end()
    other.end()
    assert not folder.exists()
    with pytest.raises(Superseded):
        waits()
