"""Ctrl-C and SIGTERM at random moments of whole commands, as `benchmarks/interruptions.py` sends them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "moments"), [("train", 15), ("sweep", 10), ("evaluate", 10), ("alignment", 10), ("compare", 10)]
)
def test_a_command_that_is_ended_at_any_moment_keeps_what_was_done_and_says_so(case, moments, tmp_path):
    line = [sys.executable, str(ROOT / "benchmarks" / "interruptions.py"), "--cases", case]
    done = subprocess.run([*line, "--moments", str(moments), "--keep", str(tmp_path)], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
