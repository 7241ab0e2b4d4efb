"""Random numbers that a look at a network draws without moving anybody else's generator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def generator_states() -> tuple[Tensor, Tensor | None]:
    """The states of torch's default generators: the CPU's, and that of the current GPU where there is one in use."""
    cuda = torch.cuda.is_available()
    return torch.get_rng_state(), torch.cuda.get_rng_state() if cuda else None


def set_generator_states(states: tuple[Tensor, Tensor | None]) -> None:
    """Puts `generator_states` back."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])


@contextmanager
def own_random_numbers(states: tuple[Tensor, Tensor | None] | None = None) -> Iterator[None]:
    """Random numbers drawn in the block begin where the generators stand, and leave them there.

    Torch has one default generator for all threads. Where this thread is the only one it is put back at the end.
    Where there are others, which may train meanwhile, putting it back would make them draw the same numbers again; so
    the block's own states are swapped in for the time of each operation that draws.

    Args:
        states: Where to begin; None is where the generators stand.
    """
    if threading.active_count() == 1:
        former = generator_states()
        if states is not None:
            set_generator_states(states)
        try:
            yield
        finally:
            set_generator_states(former)
    else:
        with _Swapping(states):
            yield


class _Swapping(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Runs operations that draw random numbers with generator states of its own."""

    supports_higher_order_operators = True

    def __init__(self, states: tuple[Tensor, Tensor | None] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.states = states

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **(kwargs or {}))
        outside = generator_states()
        if self.states is not None:
            set_generator_states(self.states)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.states = generator_states()
            set_generator_states(outside)
