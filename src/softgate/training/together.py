"""Several ranks end together: what one of them fails of reaches the others, also where it was killed.

A rank that waits in a collective for one that is gone does so for up to half an hour, or ends with what the network
library says. So every rank keeps a connection to rank 0 while it prepares and trains. One that fails tells why; the
kernel closes the connection of one that can say nothing. Whoever has heard ends with the same exit status, and is ended
if it cannot.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Callback

from softgate import memory, signals
from softgate.errors import FULL, CannotWrite, Diverged, OutOfMemory, RankFailed, SoftgateError, Stopped, printable
from softgate.training.contact import Client, Contact, End, Server

NOTICE = 8.0
"""Seconds in which a rank that has heard that another one failed must come out of what it is in."""

LIMIT = 25.0
"""Seconds after which it has ended; what is left of them its loggers have."""

OWN_LIMIT = 120.0
"""Seconds that a rank has to clear up after its own failure; its loggers may have much to send."""

LAST_WORDS = 5.0
"""Seconds in which a rank that failed prints its stack trace before the others are gone."""

DELAY = 6.0
"""Seconds in which the cause may follow on what the network library says of a partner that is gone."""

TAKES_LESS = "data.batch_size lower (trainer.accumulate_grad_batches makes up for it), or trainer.precision=bf16-mixed"

_LOST = ("gloo", "nccl", "closed by peer", "connection reset", "broken pipe", "timed out", "timeout", "socket")
"""What the errors of a collective say whose partner is gone."""


class Together(Callback):
    """This rank among the others of a run.

    Args:
        directory: The run's directory, on a drive that all ranks share: rank 0 writes there where it listens.
        nodes: Machines that the ranks are on.

    Attributes:
        cause: How the first of the other ranks ended before its time.
    """

    def __init__(self, directory: Path, nodes: int) -> None:
        self.directory, self.nodes = directory, nodes
        self.rank, self.ranks, self.host = 0, 1, socket.gethostname()
        self.cause: End | None = None
        self._contact: Contact | None = None
        self._trainer: pl.Trainer | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._heard, self._noticed, self._out = threading.Event(), threading.Event(), threading.Event()
        self._cause_left, self._first_left = threading.Event(), threading.Event()
        self._told = False  # the others, of an end of this rank's own

    def begin(self, rank: int, ranks: int) -> None:
        """Takes up contact with the other ranks."""
        if self._contact is None and ranks > 1:
            self.rank, self.ranks = rank, ranks
            if rank == 0:
                self._contact = Server(self.directory, self.nodes > 1, self._hear, self._closed)
            else:
                self._contact = Client(self.directory, rank, self._hear, self._closed)

    def follow(self, trainer: pl.Trainer) -> None:
        """Takes up contact before a trainer starts the other ranks; learns first of what it fails of."""
        self._trainer = trainer
        self.begin(trainer.global_rank, trainer.world_size)
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]  # Lightning does not annotate it

    def kept(self) -> str:
        """What is left to go on from, as a sentence; empty before the first checkpoint."""
        last = self.directory / "checkpoints" / "last.ckpt"
        return f"{last} is kept, and resume={self.directory} goes on from it." if last.is_file() else ""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tells the other ranks before anything is cleared up, which takes time."""
        self._noticed.set()
        if not self._follows(exception):
            self._tell(exception)

    # -- this rank's end --

    def conclude(self, error: BaseException) -> None:
        """Raises what stands for an error where there are several ranks; returns where that is the error itself."""
        if self._contact is not None:
            with signals.noted():  # torchrun sends SIGTERM to all ranks as soon as one has ended
                self._conclude(error)

    def _conclude(self, error: BaseException) -> None:
        if self._follows(error) and self._heard.wait(DELAY):
            assert self.cause is not None
            self._cause_left.wait(LAST_WORDS if self.rank == 0 else 0)
            self._end_children()
            if _interrupted(self.cause):
                raise Stopped(self.cause.status - 128) from None
            raise RankFailed(self._sentence(self.cause), self.cause.status, told=True) from None
        self._tell(error)
        self._end_children()
        agreed, interrupted = isinstance(error, Diverged), isinstance(error, KeyboardInterrupt)
        if self.rank > 0 and (agreed or interrupted):  # all ranks end by it, and torchrun ends all with the first
            self._first_left.wait(LIMIT)
        if interrupted or (agreed and self.rank == 0):
            return
        end = self._own(error)
        raise RankFailed(self._sentence(end), end.status, told=agreed) from error

    def _follows(self, error: BaseException) -> bool:
        """Whether an error may come of another rank's end, and not the other way round."""
        if isinstance(error, KeyboardInterrupt):
            return self.cause is not None and not _interrupted(self.cause)
        return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _LOST)

    def leave(self) -> None:
        """Says that this rank is done."""
        self._noticed.set()
        self._out.set()
        if self._contact is not None:
            self._contact.close()

    def _tell(self, error: BaseException) -> None:
        with self._lock:
            told, self._told = self._told, True
        if self._contact is not None and not told:
            self._take_children()
            end = self._own(error)
            self._contact.send(end)
            if not _interrupted(end):
                self._end_after(end.status, error)

    def _own(self, error: BaseException) -> End:
        said, status = _told(error)
        return End(self.rank, self.host, said, status)

    def _sentence(self, end: End) -> str:
        where, kept = f" on {end.host}" if self.nodes > 1 else "", self.kept()
        said = end.said if kept in end.said else f"{end.said} {kept}"
        return f"rank {end.rank} of {self.ranks}{where}: {said}"

    # -- another rank's end, heard in a thread --

    def _hear(self, end: End) -> None:
        with self._lock:
            if self._told or self._out.is_set() or self.cause is not None:
                return
            children = self._take_children()
            if end.gone and 0 < end.rank <= len(children):  # of this machine, which has the first ranks
                end = _seen(end, children[end.rank - 1])
            self.cause = end
        if end.gone:
            self._cause_left.set()
        if self._contact is not None and self.rank == 0:
            self._contact.send(end)
        if self._speaks(end):
            print(f"error: {printable(' '.join(self._sentence(end).split()))}", file=sys.stderr, flush=True)
        self._end_after(end.status)
        self._heard.set()

    def _speaks(self, end: End) -> bool:
        """Whether this rank says what another ended by: that one does it itself where it can, on its own machine."""
        if end.gone:
            return self.rank == (0 if end.rank else 1)
        return self.rank == 0 and end.host != self.host and not _interrupted(end)

    def _closed(self, rank: int) -> None:
        if rank == 0:
            self._first_left.set()
        if self.cause is not None and self.cause.rank == rank:
            self._cause_left.set()

    def _end_after(self, status: int, own: BaseException | None = None) -> None:
        """Ends this process if it does not end by itself: it may wait for ever for a rank that is gone.

        Args:
            status: Its exit status then.
            own: What this rank itself fails of; None where it is another.
        """

        def watch() -> None:
            if own is not None:
                if self._out.wait(OWN_LIMIT):
                    return
                traceback.print_exception(own)
            else:
                if self._noticed.wait(NOTICE):
                    time.sleep(LIMIT - NOTICE)
                if self._told:  # it ends by something of its own
                    return
            self._end_children()
            os._exit(status)

        threading.Thread(target=watch, daemon=True, name="softgate-end").start()

    # -- the ranks that Lightning has started from this one --

    def _take_children(self) -> list[subprocess.Popen[bytes]]:
        """From now on they are ended here: Lightning's observer would kill this process before it has said anything."""
        launcher: Any = None if self._trainer is None else self._trainer.strategy.launcher
        started = getattr(launcher, "procs", [])
        self._children += started
        started.clear()
        return self._children

    def _end_children(self) -> None:
        for child in self._take_children():
            with suppress(OSError):
                child.kill()


@contextmanager
def ranks(directory: Path, nodes: int) -> Iterator[Together]:
    """Has the ranks of a run end together within.

    Raises:
        RankFailed: In every rank, if one fails.
        Diverged: In rank 0, where all ranks diverge.
        Stopped: If the run is stopped.
    """
    together = Together(directory, nodes)
    for kind in (TorchElasticEnvironment, SLURMEnvironment):  # those of Lightning begin when there is a trainer
        if kind.detect():
            together.begin(kind().global_rank(), kind().world_size())
    try:
        yield together
    except BaseException as error:
        together.conclude(error)
        raise
    finally:
        together.leave()


def _told(error: BaseException) -> tuple[str, int]:
    """What other ranks are told of an error, empty if it is an interruption; and the exit status."""
    if isinstance(error, Stopped):
        return "", 128 + error.signal
    if isinstance(error, KeyboardInterrupt):
        return "", 128 + signal.SIGINT
    if isinstance(error, SoftgateError):
        return str(error), error.status
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.filename}: cannot be written: {error.strerror}.", CannotWrite.status
    said = memory.sentence(error, TAKES_LESS)
    if said is not None:
        return said, OutOfMemory.status
    first = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    return f"{type(error).__name__}: {first}.", 1


def _interrupted(end: End) -> bool:
    return not end.said


def _seen(end: End, child: subprocess.Popen[bytes]) -> End:
    """What the parent of a process knows of its end."""
    try:
        code = child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return end
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
    else:
        how = f"ended with exit status {code} and without a word"
    return replace(end, said=f"its process {child.pid} {how}.", status=128 - code if code < 0 else code or 1)
