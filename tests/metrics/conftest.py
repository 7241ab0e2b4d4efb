"""Fixtures of the tests of metrics."""

import pytest

from metric_cases import cases, network, probe, value


@pytest.fixture(scope="module")
def setting():
    net, (x, labels) = network(), probe()
    return net, x, labels, {name: value(*case) for name, case in cases(net, x, labels).items()}
