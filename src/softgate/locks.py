"""Locks on directories: one process at a time writes into a run's, a sweep's or an evaluation's.

The lock is the kernel's, on the file `run.lock`, so that it goes with the process however that ends. The file says
whose it is. One that a dead process has left is taken over; where a file system has no locks, a warning is all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from softgate import files
from softgate.errors import SoftgateError, SoftgateWarning

LOCK = "run.lock"

TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""What the kernel says of a lock that another process has; all else means that there are no locks here."""

PATIENCE = 1.0
"""Seconds in which a process that has just locked a directory writes down who it is, or a forked one lets go of it."""

_held: dict[Path, int] = {}
"""What this process has locked, and the open files that hold it."""


@dataclass(frozen=True)
class Owner:
    """Whose a lock is.

    Attributes:
        host: The machine's name.
        process: The process id there.
        boot: Which start of the machine it was; empty where the system does not tell.
        since: When it was locked, ISO 8601.
    """

    host: str
    process: int
    boot: str
    since: str

    @classmethod
    def here(cls) -> Owner:
        """This process, now."""
        return cls(socket.gethostname(), os.getpid(), _boot(), datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, lock: Path) -> Owner | None:
        """Whom a lock file names; None where it names nobody."""
        found: dict[str, Any] = files.read_json(lock)
        try:
            return cls(str(found["host"]), int(found["process"]), str(found["boot"]), str(found["since"]))
        except (KeyError, TypeError, ValueError):
            return None

    def lives(self) -> bool:
        """Whether it is another process of this machine that still runs; of other machines nothing is known."""
        if (self.host, self.boot) != (socket.gethostname(), _boot()) or self.process == os.getpid():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            return True
        return True

    def ended(self) -> bool:
        """Whether it is known to have been a process of this machine that is no more."""
        here = (self.host, self.boot) == (socket.gethostname(), _boot())
        return here and self.process != os.getpid() and not self.lives()

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Has a directory locked within; nothing changes where this process has locked it already.

    Raises:
        SoftgateError: If another process has it.
        CannotWrite: If the directory cannot be written.
    """
    outer = directory.resolve() in _held
    take(directory)
    try:
        yield
    finally:
        if not outer:
            _drop(directory.resolve())


def take(directory: Path) -> None:
    """Locks a directory until `release`, or until this process ends.

    Raises:
        SoftgateError: If another process has it; the message says which.
        CannotWrite: If the directory cannot be written.
    """
    home = directory.resolve()
    if home in _held:
        return
    with files.refusals(directory):
        _held[home], known = _locked(home / LOCK, directory)
        try:
            before = Owner.read(home / LOCK)
            os.ftruncate(_held[home], 0)
            os.pwrite(_held[home], (json.dumps(asdict(Owner.here())) + "\n").encode(), 0)
        except BaseException:
            _drop(home)
            raise
    if before is not None and known:
        print(f"{directory}: taken over from {before}, which has ended without giving it back.", flush=True)


def release() -> None:
    """Gives back all that this process has locked."""
    for home in list(_held):
        _drop(home)


def _locked(lock: Path, directory: Path) -> tuple[int, bool]:
    """The open lock file, and whether the kernel locked it; whoever had it may have taken the file away meanwhile."""
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            known = _lock(file, lock, directory)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), lock.stat()):
                    return file, known
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, lock: Path, directory: Path) -> bool:
    try:
        _flock(file, lock)
    except OSError as error:
        if error.errno in TAKEN:
            raise _refusal(directory, _owner(lock)) from None
        owner = Owner.read(lock)
        if owner is not None and owner.lives():
            raise _refusal(directory, owner) from None
        warnings.warn(
            f"{directory}: its file system has no locks ({error.strerror}); nothing keeps a second process from "
            "writing there too.",
            SoftgateWarning,
            stacklevel=4,
        )
        return False
    return True


def _flock(file: int, lock: Path) -> None:
    """Locks an open file; waits a little where its owner has just ended and a process that it forked is still at it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            owner = Owner.read(lock) if error.errno in TAKEN else None
            if owner is None or not owner.ended() or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _owner(lock: Path) -> Owner | None:
    deadline = time.monotonic() + PATIENCE
    while (owner := Owner.read(lock)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return owner


def _refusal(directory: Path, owner: Owner | None) -> SoftgateError:
    who = "another process" if owner is None else f"{owner}, since {owner.since},"
    return SoftgateError(f"{directory}: {who} still writes into it; wait until that has ended, or end it.")


def _drop(home: Path) -> None:
    file = _held.pop(home)
    with suppress(OSError):  # gone, or its disk is; the lock goes with the file's closing
        (home / LOCK).unlink()
    os.close(file)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _forget() -> None:
    """In a forked process: the lock is its parent's, and must not live on in workers that outlive that."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
