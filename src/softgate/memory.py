"""Where memory runs out: how it is told from other errors, what is given back, and what is said."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from softgate.errors import OutOfMemory

_Part = TypeVar("_Part")

_SAYS = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "caught memoryerror in"),
)

_AMOUNT = re.compile(r"(?:tried|unable) to allocate ([\d.]+ ?[KMGTPE]i?B|\d+ bytes)", re.IGNORECASE)

_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: (?P<signal>[^.]+)\.|exited)")

_SHARED = re.compile(r"unable to (?:write to file|open shared memory object|mmap \d+ bytes from file) <?/?torch_")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    says = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in says for part in _SAYS)


def shortage(error: BaseException) -> str:
    """What ran out, in a few words: with the size that was asked for, where the error tells it."""
    found = _AMOUNT.search(str(error))
    return f"memory ran out at {_readable(found[1])} more" if found else "memory ran out"


def _readable(amount: str) -> str:
    number, _, unit = amount.partition(" ")
    return f"{int(number) / 2**20:.1f} MiB" if unit == "bytes" else amount


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def give_back(error: BaseException | None = None) -> None:
    """Frees what an error's frames still hold, and what PyTorch keeps for later."""
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_chunks(work: Callable[[slice], _Part], count: int, size: int) -> list[_Part]:
    """Runs `work` on slices of `count` items until all are done; smaller slices where memory runs out.

    No single item is left for the end where that can be helped: gates of other examples need one.

    Args:
        work: Takes a slice.
        count: How many items there are.
        size: At most so many at once; halved, down to one, as often as memory runs out.

    Returns:
        What `work` gave for each slice.
    """
    done, parts, size = 0, [], max(1, min(size, count))
    while done < count:
        short = None
        left = count - done
        taken = size - 1 if left == size + 1 and size > 2 else min(size, left)
        try:
            part = work(slice(done, done + taken))
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not ran_out(error):
                raise
            short = error
        if short is None:
            parts.append(part)
            done += taken
        else:
            give_back(short)
            size //= 2
    return parts


@contextmanager
def spared(say: Callable[[str], None]) -> Iterator[None]:
    """Passes over what is done within if memory runs out there; `say` is called with what ran out."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        why = shortage(error)
        give_back(error)
        say(why)


def sentence(error: BaseException, lower: str) -> str | None:
    """What a user is told where a command ends for want of memory; None for other errors.

    Args:
        error: The error.
        lower: The options that make it take less.
    """
    said = "\n".join(str(each) for each in _chain(error))
    found = list(_ENDED.finditer(said))
    how = next((one["signal"] for one in found if one["signal"]), None)
    if _SHARED.search(said) or how == "Bus error":
        return (
            "data.num_workers: a process that loads images found no room in shared memory (/dev/shm); make it larger "
            "(such as docker run --shm-size=8g), or set data.num_workers or data.batch_size lower; "
            "data.num_workers=0 takes none."
        )
    if found:
        killed = "was killed, as the system does where memory runs out"
        ended = killed if how == "Killed" else f"ended by a {how.lower()}" if how else "ended by itself"
        return (
            f"data.num_workers: a process that loads images {ended}; set data.num_workers or data.batch_size lower, "
            "or give it more memory and shared memory (/dev/shm)."
        )
    return f"{shortage(error)}; set {lower}." if ran_out(error) else None


@contextmanager
def phrased(lower: str, kept: Callable[[], str] = str) -> Iterator[None]:
    """Turns what ends for want of memory within into one sentence.

    Args:
        lower: The options that make it take less.
        kept: Says what is left of the work, as a sentence; empty where that is nothing.

    Raises:
        OutOfMemory: If memory runs out, or a process that loads images is killed.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        said = sentence(error, lower)
        if said is None:
            raise
        raise OutOfMemory(f"{said} {kept()}".strip()) from error
