"""How numbers read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softgate.rounding import percent, rounded


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.1, "0.100"),
        (2.3, "2.30"),
        (0.0289, "0.0289"),
        (97.24, "97.2"),
        (99.97, "100"),
        (999.7, "1,000"),
        (12345.6, "12,346"),
        (-0.5, "-0.500"),
        (1.2e-5, "1.20e-05"),
        (0.0, "0"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_a_number_has_three_significant_digits(value, said):
    assert rounded(value) == said


@given(st.floats(-1e9, 1e9).filter(lambda value: value != 0))
def test_what_is_read_is_within_half_a_unit_of_the_third_digit(value):
    read = float(rounded(value).replace(",", ""))
    assert abs(read - value) <= 0.5000001 * 10 ** (math.floor(math.log10(abs(value))) - 2)
    assert rounded(-value) in ("-" + rounded(value), rounded(value).removeprefix("-"))
    assert rounded(value, signed=True).lstrip("+") == rounded(value)


def test_a_share_is_all_or_nothing_only_where_it_is():
    assert [percent(share) for share in (0, 0.9724, 0.99999, 1, 0.5, math.nan)] == [
        *("0 %", "97.2 %", "99.999 %", "100 %", "50.0 %", "–")
    ]
