"""Which epochs stay where not all can: the first, the last, and more of the early ones, as most changes there."""

from __future__ import annotations

from collections.abc import Iterable


def spread(count: int, most: int) -> list[int]:
    """`most` of the indices 0 .. count - 1, or all: the first and the last among them, denser at the beginning.

    Of one the last. The i-th of the others is (i / (most - 1))^2 of the way, or i where that is further.
    """
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return [max(i, round((count - 1) * (i / (most - 1)) ** 2)) for i in range(most)]


def stay(epochs: Iterable[int], most: int, last: int | None = None) -> list[int]:
    """At most `most` of the epochs so far: all while they are that few, then those nearest to a spread over the run.

    Asked after every epoch with what stayed and the new one, it leaves exactly the spread epochs when the run ends as
    planned. The newest always stays. Asked twice with the same epochs it answers the same, so a resumed run ends with
    those of one that was not interrupted.

    Args:
        epochs: Those that are there.
        most: How many may stay.
        last: The last epoch of the run as planned; None, or one that is over, plans as far as the next power of two.
    """
    found = sorted(epochs)
    if len(found) <= most:
        return found
    newest = found[-1]
    end = last if last is not None and last >= newest else 2 ** newest.bit_length()
    wanted = spread(end + 1, most)
    return sorted({min(found, key=lambda epoch: abs(epoch - each)) for each in wanted})
