"""Every metric over two gloo processes, each with images of its own, has the value of one process with all of them."""

import socket

import pytest
import torch

from metric_cases import SPLITS, cases, network, probe, work


@pytest.fixture(scope="module")
def both():
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(work, (port, results), nprocs=2)
        return dict(results)


@pytest.fixture(scope="module")
def alone():
    found = {}
    for name, (metric, arguments) in cases(network(), *probe()).items():
        metric.update(*arguments)
        found[name] = metric.compute()
    return found


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(cases(network(), *probe())))
def test_two_processes_have_the_value_of_one(name, split, both, alone):
    for rank in (0, 1):
        found, expected = both[split, name, rank], alone[name]
        pairs = [(found[k], expected[k]) for k in found] if isinstance(found, dict) else [(found, expected)]
        for ours, theirs in pairs:
            assert ours == pytest.approx(float(theirs), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(cases(network(), *probe())))
def test_two_processes_have_one_interval_over_all_images(name, split, both, alone):
    mine, other = (torch.tensor(both[split, f"{name}, interval", rank]) for rank in (0, 1))
    assert torch.equal(mine.nan_to_num(7), other.nan_to_num(7))
    metric, arguments = cases(network(), *probe())[name]
    metric.update(*arguments)
    expected = metric.interval(resamples=200)
    expected = torch.stack([expected[k] for k in metric.outputs]) if metric.outputs else expected[None]
    assert torch.allclose(mine, expected.to(mine), rtol=1e-5, atol=1e-7, equal_nan=True)
