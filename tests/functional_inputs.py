"""Inputs that the tests of the functional forms share."""

import torch

from softgate.surrogate import pools

LSE = pools.LSE()


def bits(x):
    """The bit pattern, so that NaN equals NaN and -0.0 differs from 0.0."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
