"""Fixtures of the tests of sites."""

import pytest

import mode_networks
import site_networks


@pytest.fixture
def net():
    return site_networks.Net().double().eval()


@pytest.fixture
def residual():
    return mode_networks.Net().double().eval()
