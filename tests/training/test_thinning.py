"""Which epochs stay: the first, the last, the promised number, the same ones however often it is asked."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from softgate.training.callbacks.thinning import spread, stay

LONG, MOST = st.integers(1, 400), st.integers(1, 120)


@given(LONG, MOST)
def test_spread_is_as_many_as_asked_for_and_denser_early(count, most):
    chosen = spread(count, most)
    assert len(chosen) == min(count, most)
    assert chosen[-1] == count - 1
    assert most == 1 or chosen[0] == 0
    gaps = [b - a for a, b in pairwise(chosen)]
    assert all(gap >= 1 for gap in gaps)
    assert all(b >= a - 1 for a, b in pairwise(gaps))  # up to rounding


@given(LONG, MOST)
def test_a_run_that_ends_as_planned_keeps_the_spread_epochs(count, most):
    kept: list[int] = []
    for epoch in range(count):
        kept = stay([*kept, epoch], most, count - 1)
        assert len(kept) <= most
        assert kept[-1] == epoch
        assert most == 1 or kept[0] == 0
    assert kept == spread(count, most)


@given(LONG, st.integers(4, 40), st.none() | LONG)
def test_a_run_without_a_planned_end_or_beyond_it_keeps_epochs_of_all_its_parts(count, most, last):
    kept: list[int] = []
    for epoch in range(count):
        kept = stay([*kept, epoch], most, last)
        assert len(kept) <= most
        assert (kept[0], kept[-1]) == (0, epoch)
        assert stay(kept, most, last) == kept
    if count > most and (last is None or last < count):
        assert len(kept) >= min(count, most) // 2


@given(st.sets(st.integers(0, 500), min_size=1), MOST, st.none() | LONG)
def test_what_stays_was_there(epochs, most, last):
    kept = stay(epochs, most, last)
    assert set(kept) <= epochs
    assert kept[-1] == max(epochs)
    assert len(kept) <= most
