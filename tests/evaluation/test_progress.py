"""What is said before and while runs are compared."""

from io import StringIO

import pytest
from rich.console import Console

from softgate.evaluation.progress import Bar, expectation

WORK = {"top-1": 100.0, "attacks": 300.0, "shifted": 0.0}


def test_the_expected_time_is_that_of_all_passes():
    assert expectation(3, WORK, 0.5) == "3 runs of about 0:03:20 each, 0:10:00 in all: attacks 75%, top-1 25%"


@pytest.mark.parametrize(("terminal", "shown"), [(True, ["run 2 of 3: attacks", "42 %"]), (False, [])])
def test_a_bar_names_the_part_where_there_is_a_terminal_only(terminal, shown):
    out = StringIO()
    with Bar(Console(file=out, force_terminal=terminal, width=100), 3, WORK) as bar:
        for run, part in ((1, "top-1"), (1, "attacks"), (2, "top-1"), (2, "attacks")):
            bar.begin(run, part)
    assert all(word in out.getvalue() for word in shown)
    assert bool(out.getvalue()) == terminal
