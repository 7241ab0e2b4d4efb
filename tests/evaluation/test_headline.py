"""The sentences that a report begins with: each says what the statistics say, in plain words."""

import math
import re
from dataclasses import replace

import pytest

from made_comparison import comparison
from softgate.evaluation import compare
from softgate.evaluation.generalization.planning import Between, Outlook
from softgate.evaluation.generalization.statistics import Difference
from softgate.evaluation.reports.headline import headline, points

HARD = {"gate": {"name": "hard"}, "pool": {"name": "hard"}}
SOFT = {"gate": {"name": "sigmoid"}, "pool": {"name": "hard"}}


def said(*differences: Difference, arms=("excitation",), needed: float | None = 12):
    """The sentences of arms with these differences, three seeds each."""
    found = comparison("digits")
    config = {"none": HARD, "soft digits": SOFT}
    found.runs = [replace(run, config={**run.config, "surrogate": config[run.arm]}) for run in found.runs]
    runs = [run for run in found.runs if run.arm == "none"]
    runs += [replace(run, arm=arm) for arm in arms for run in found.runs if run.arm != "none"]
    found.runs, found.rows = runs, []
    ahead = Outlook(Between(0, 0, 0), Between(0, 0, 0), ((0.005, Between(99, 9, None)), (0.01, Between(needed, 4, 80))))
    for arm, one in zip(arms, differences, strict=True):
        found.rows.append(compare.Row(arm, "", "acc", (0, 1, 2), one, one.verdict(True), ahead))
    return headline(found.for_people())


def difference(mean, low, high, p=0.5, inner=None, outside=0.5):
    ends = inner or (low, high)
    return Difference(mean, low, high, p, 1.0, (), None, p, 0.01, ends, outside, outside)


OPEN = difference(0.004, -0.012, 0.02)
BETTER = difference(0.02, 0.01, 0.03, p=0.01)
WORSE = difference(-0.05, -0.06, -0.04, p=0.01)
EQUAL = difference(0.001, -0.011, 0.013, inner=(-0.004, 0.006), outside=0.01)


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            OPEN,
            "Soft gates (excitation) and the true gradient cannot be told apart on digits: +0.4 points of top-1, "
            "between -1.2 and +2.0; about 12 seeds would be needed to see a difference of 1 point.",
        ),
        (
            BETTER,
            "Soft gates (excitation) do better than the true gradient on digits: +2.0 points of top-1, between +1.0 "
            "and +3.0, over 3 seeds.",
        ),
        (
            WORSE,
            "Soft gates (excitation) do worse than the true gradient on digits: -5.0 points of top-1, between -6.0 "
            "and -4.0, over 3 seeds.",
        ),
        (
            EQUAL,
            "Soft gates (excitation) do as well as the true gradient on digits, to within 1 point: +0.1 points of "
            "top-1, between -0.4 and +0.6 (90 % sure), over 3 seeds.",
        ),
        (
            replace(BETTER, mean=0.004, low=0.0003, high=0.0077, inner=(0.001, 0.007), outside_adjusted=0.01),
            "Soft gates (excitation) do better than the true gradient on digits: +0.40 points of top-1, between +0.03 "
            "and +0.77, over 3 seeds, which is less than the 1 point that would matter.",
        ),
        (
            difference(0.02, math.nan, math.nan, p=math.nan),
            "Soft gates (excitation) and the true gradient cannot be compared on digits: +2.0 points of top-1 with 3 "
            "seeds, of which every one found the same.",
        ),
    ],
)
def test_each_verdict_has_its_sentence(one, sentence):
    assert said(one) == [sentence]


@pytest.mark.parametrize(
    ("needed", "end"),
    [
        (2, "these 3 seeds would most likely have shown a difference of 1 point."),
        (None, "no number of seeds would show a difference of 1 point on so few images."),
        (4600, "about 4,600 seeds would be needed to see a difference of 1 point."),
    ],
)
def test_an_open_question_says_what_it_would_take(needed, end):
    assert said(OPEN, needed=needed)[0].endswith(f"; {end}")


def test_claims_come_first_then_arms_as_good_then_open_ones_the_largest_before_the_others():
    more = difference(-0.009, -0.02, 0.01)
    found = said(OPEN, EQUAL, more, WORSE, BETTER, arms=("a", "b", "c", "d", "e"))
    assert [re.match(r"\w+ (and|does) \w+ \w+", line)[0] for line in found] == [
        *("e does better than", "d does worse than", "b does as well"), "c and the true", "a and the true"
    ]  # fmt: skip


def test_a_claim_is_never_printed_as_nothing():
    assert points(0.02, -0.01) == ["+2.0", "-1.0"]
    assert points(0.02, 0.0003) == ["+2.00", "+0.03"]
    assert points(0.0, 0.02) == ["+0.0", "+2.0"]
    assert points(1e-9, 0.02) == ["+0.0000", "+2.0000"]


def test_where_nothing_is_compared_that_is_the_sentence():
    found = comparison("digits")
    found.runs, found.rows, found.measured = found.runs[:3], [], found.measured[:3]
    assert headline(found.for_people()) == ["There is no arm but the true gradient: nothing is compared."]
