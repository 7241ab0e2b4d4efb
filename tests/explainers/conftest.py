"""Fixtures of the tests of explainers."""

import pytest
import torch

from classifier import Classifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Classifier().double()
    model(torch.randn(8, 3, 10, 10, dtype=torch.float64))  # running statistics that are not the initial ones
    return model.eval()


@pytest.fixture
def x():
    return torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
