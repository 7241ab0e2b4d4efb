"""Fixtures of the tests of training."""

from pathlib import Path

import pytest

from trained import fitted


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    fitted(directory)
    return directory
