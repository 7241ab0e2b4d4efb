"""Fixtures of the tests of comparisons."""

import pytest

import finished_sweep as finished


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return finished.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def swept(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "sweep"
    return finished.sweep(root, finished.options(images))
