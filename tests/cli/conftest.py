"""Fixtures of the tests of commands."""

import pytest

from pretended_sweep import Pretender


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Pretender:
    return Pretender(tmp_path, monkeypatch)
