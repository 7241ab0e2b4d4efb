"""The suite of a GPU: `pytest -m gpu`.

Without one the same tests run small on the CPU, so that they are known to work before a GPU is at hand. What is about
CUDA alone takes the fixture `cuda`, and is skipped where there is none.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _exact_arithmetic():
    """Float32 products are of float32, and the algorithm of a convolution is the same each time."""
    wanted = {"allow_tf32": False, "benchmark": False, "deterministic": True}
    before = {name: getattr(torch.backends.cudnn, name) for name in wanted}
    products = torch.backends.cuda.matmul.allow_tf32
    for name, value in wanted.items():
        setattr(torch.backends.cudnn, name, value)
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    for name, value in before.items():
        setattr(torch.backends.cudnn, name, value)
    torch.backends.cuda.matmul.allow_tf32 = products
