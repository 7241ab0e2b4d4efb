"""A visit's wishes: the newest counts, a copy is another visit."""

import copy
import time

import pytest

from softgate.app.visit import Superseded, Turns, Visit, rest


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


def test_a_copy_is_another_visit_and_an_end_forgets_all():
    visit = Visit()
    visit.upload = b"mine"
    other = copy.deepcopy(visit)
    assert other.upload is None
    assert other.looks is not visit.looks
    waits = visit.looks.check(visit.looks.ask())
    visit.end()
    assert visit.upload is None
    with pytest.raises(Superseded):
        waits()
