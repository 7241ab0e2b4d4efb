"""The gradient's norm and the GPU's memory over epochs."""

from types import SimpleNamespace

import pytest
import torch

from softgate.training.callbacks import Vitals
from softgate.training.summary import GRADIENT


def epoch(callback: Vitals, gradients: list[torch.Tensor], first: int = 0, every: int = 2) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for step, gradient in enumerate(gradients, start=first):
        weight.grad = gradient
        trainer = SimpleNamespace(global_step=step, log_every_n_steps=every)
        callback.on_before_optimizer_step(trainer, None, optimizer)


def logged(callback: Vitals) -> dict[str, float]:
    found = {}
    module = SimpleNamespace(device=torch.device("cpu"), log=lambda key, value, **_: found.update({key: value}))
    callback.on_train_epoch_end(None, module)
    return found


def test_the_norm_is_the_mean_over_the_first_step_and_those_that_are_logged():
    gradients = [torch.randn(3, dtype=torch.float64) for _ in range(5)]
    callback = Vitals()
    epoch(callback, gradients, first=1)  # steps 1 to 5: the first of the epoch, and 2 and 4
    expected = sum(float(gradients[i].norm()) for i in (0, 1, 3)) / 3
    assert logged(callback) == {GRADIENT: pytest.approx(expected, rel=1e-12)}
    assert logged(callback) == {}  # nothing is left of the epoch before


def test_a_run_that_is_stopped_within_an_epoch_logs_what_it_would_have():
    gradients = [torch.randn(3, dtype=torch.float64) for _ in range(6)]
    whole, first, second = Vitals(), Vitals(), Vitals()
    epoch(whole, gradients)
    epoch(first, gradients[:3])
    second.load_state_dict(first.state_dict())
    epoch(second, gradients[3:], first=3)
    assert logged(second) == logged(whole)
