"""Things that take long to make, made once and kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Thing = TypeVar("_Thing")


class Kept(Generic[_Thing]):
    """The things that were asked for last, at most so many; any number of threads may ask.

    Args:
        most: How many are kept; the one that was asked for longest ago goes first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._things: OrderedDict[Hashable, _Thing] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: Hashable, make: Callable[[], _Thing]) -> _Thing:
        """The thing of a key, made where it is not kept; others that ask for the same meanwhile wait for it.

        What `make` raises is raised, and nothing is kept.
        """
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._things:
                    self._things.move_to_end(key)
                    return self._things[key]
            made = make()
            with self._lock:
                self._things[key] = made
                while len(self._things) > self.most:
                    gone, _ = self._things.popitem(last=False)
                    self._making.pop(gone, None)
            return made
