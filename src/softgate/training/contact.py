"""The connections between the ranks of a run: every rank has one to rank 0 for as long as it lives.

Rank 0 writes into `ranks.json` in the run's directory where it listens. Each line that is sent is a JSON object. A
connection that breaks between two machines may be made anew before its rank counts as gone; on one machine the kernel
does not err.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from softgate import files

FILE = "ranks.json"

PATIENCE = 3.0
"""Seconds in which a connection between two machines may come back."""

LONGEST = 1 << 16
"""Bytes of a line; what sends more is none of the ranks."""


@dataclass(frozen=True)
class End:
    """How a rank ended before its time.

    Attributes:
        rank: Which.
        host: Its machine.
        said: Its error; empty where it was interrupted.
        status: Its exit status.
        gone: Whether it could say nothing itself: it was killed, or crashed.
    """

    rank: int
    host: str
    said: str
    status: int
    gone: bool = False

    @classmethod
    def read(cls, plain: Any) -> End:
        """From what was sent."""
        return cls(int(plain["rank"]), str(plain["host"]), str(plain["said"])[:4096], int(plain["status"]))

    @classmethod
    def silent(cls, rank: int, host: str, process: int) -> End:
        """Of a process that is gone without a word."""
        said = (
            f"its process {process} on {host} is gone without a word: it was killed, as the system does where memory "
            "runs out, or crashed."
        )
        return cls(rank, host, said, 137, gone=True)


def _keep_alive(made: socket.socket) -> None:
    """A machine that loses its power is noticed after two minutes, and no firewall forgets a silent connection."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):  # not on every system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Contact(Protocol):
    """What a rank has to the others."""

    def send(self, end: End) -> None:
        """Tells the others how a rank ended."""

    def close(self) -> None:
        """Says that this rank is done, and closes."""


Hear = Callable[[End], None]


@dataclass
class _Line:
    """A connection, and what has come of a line so far."""

    socket: socket.socket
    rank: int = -1  # before it has said which
    host: str = ""
    process: int = 0
    done: bool = False
    rest: bytes = field(default=b"", repr=False)

    def send(self, **plain: Any) -> None:
        with suppress(OSError):
            self.socket.sendall(json.dumps(plain).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The lines that have come; None at the end of the connection."""
        try:
            came = self.socket.recv(4096)
            *lines, self.rest = (self.rest + came).split(b"\n")
            if not came or len(self.rest) > LONGEST:
                return None
            return [dict(json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError):  # broken, or not one of ours
            return None


class Server:
    """Rank 0's part: hears every rank, and tells all of them.

    Args:
        directory: Where `ranks.json` goes.
        beyond: Whether ranks of other machines are to be heard too.
        hear: Called, in a thread, with how another rank ended.
        closed: Called, in a thread, with a rank whose connection is closed.
    """

    def __init__(self, directory: Path, beyond: bool, hear: Hear, closed: Callable[[int], None]) -> None:
        self._hear, self._closed, self._host = hear, closed, socket.gethostname()
        self._listening = socket.create_server(("" if beyond else "127.0.0.1", 0))
        self._token = secrets.token_hex(16)
        self._lines: dict[int, _Line] = {}
        self._missing: dict[int, tuple[float, _Line]] = {}  # until when its connection may come back
        names = [os.environ.get("MASTER_ADDR", ""), self._host] if beyond else []
        port = self._listening.getsockname()[1]
        self._file = directory / FILE
        about = {"token": self._token, "host": self._host, "names": [name for name in names if name], "port": port}
        files.write_json(about | {"process": os.getpid()}, self._file)
        self._file.chmod(0o600)  # the token is for the ranks alone
        self._end, self._open = threading.Event(), selectors.DefaultSelector()
        self._open.register(self._listening, selectors.EVENT_READ, None)
        threading.Thread(target=self._serve, daemon=True, name="softgate-ranks").start()

    def send(self, end: End) -> None:
        """Tells all others how a rank ended, this one or another."""
        for rank, line in list(self._lines.items()):
            if rank != end.rank:
                line.send(**asdict(end))

    def close(self) -> None:
        """Says that rank 0 is done."""
        self._end.set()
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
        for line in list(self._lines.values()):
            line.send(done=True)
        self._listening.close()

    def _serve(self) -> None:
        while not self._end.is_set():
            for key, _ in self._open.select(timeout=0.5):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            for rank, (until, line) in list(self._missing.items()):
                if time.monotonic() >= until:
                    del self._missing[rank]
                    self._hear(End.silent(rank, line.host, line.process))

    def _accept(self) -> None:
        with suppress(OSError):
            made = self._listening.accept()[0]
            _keep_alive(made)
            made.settimeout(PATIENCE)
            self._open.register(made, selectors.EVENT_READ, _Line(made))

    def _read(self, line: _Line) -> None:
        came = line.receive()
        for plain in came or ():
            if line.rank < 0:
                if not self._greeted(line, plain):
                    came = None
                    break
            elif plain.get("done"):
                line.done = True
            else:
                with suppress(KeyError, ValueError, TypeError):
                    self._hear(End.read(plain | {"rank": line.rank, "host": line.host}))
                    line.done = True
        if came is None:
            self._open.unregister(line.socket)
            line.socket.close()
            if line.rank > 0 and self._lines.get(line.rank) is line:
                del self._lines[line.rank]
                self._closed(line.rank)
                if not line.done:
                    wait = 0.0 if line.host == self._host else PATIENCE
                    self._missing[line.rank] = time.monotonic() + wait, line

    def _greeted(self, line: _Line, plain: dict[str, Any]) -> bool:
        try:
            token, rank = str(plain["token"]), int(plain["rank"])
            line.host, line.process = str(plain["host"])[:256], int(plain["process"])
        except (KeyError, ValueError, TypeError):
            return False
        if not hmac.compare_digest(token.encode(), self._token.encode()) or rank < 1:
            return False
        line.rank = rank
        line.send(token=self._token)
        self._lines[rank] = line
        self._missing.pop(rank, None)
        return True


class Client:
    """The part of every other rank: tells rank 0, and hears from it of all others.

    Args:
        directory: Where rank 0 writes `ranks.json`; one that an earlier run left leads nowhere, and is read again.
        rank: Of this process.
        hear: Called, in a thread, with how another rank ended.
        closed: Called, in a thread, with rank 0 when its connection is closed.
    """

    def __init__(self, directory: Path, rank: int, hear: Hear, closed: Callable[[int], None]) -> None:
        self._directory, self._rank, self._hear, self._closed = directory, rank, hear, closed
        self._host, self._end = socket.gethostname(), threading.Event()
        self._line: _Line | None = None
        self._made = threading.Event()
        threading.Thread(target=self._follow, daemon=True, name="softgate-ranks").start()

    def send(self, end: End) -> None:
        """Tells rank 0 how this rank ended."""
        if self._made.wait(PATIENCE) and self._line is not None:
            self._line.send(**asdict(end))

    def close(self) -> None:
        """Says that this rank is done."""
        self._end.set()
        if self._line is not None:
            self._line.send(done=True)
            with suppress(OSError):
                self._line.socket.shutdown(socket.SHUT_RDWR)

    def _follow(self) -> None:
        while not self._end.is_set():
            about = files.read_json(self._directory / FILE)
            line = self._connected(about)
            if line is None:
                self._end.wait(1.0)
                continue
            self._line = line
            self._made.set()
            while self._listen(line):
                until = time.monotonic() + (0.0 if line.host == self._host else PATIENCE)
                again = None
                while again is None and time.monotonic() < until and not self._end.is_set():
                    self._end.wait(0.5)
                    again = self._connected(about)
                if again is None:
                    if not self._end.is_set():
                        self._hear(End.silent(0, line.host, line.process))
                    return
                self._line = line = again
            return

    def _listen(self, line: _Line) -> bool:
        """Hears until the connection ends; whether that came unannounced."""
        done = False
        while (came := line.receive()) is not None:
            for plain in came:
                if plain.get("done"):
                    done = True
                    continue
                with suppress(KeyError, ValueError, TypeError):
                    end = End.read(plain)
                    done = done or end.rank == 0
                    self._hear(End(**{**asdict(end), "gone": bool(plain["gone"])}))
        self._closed(0)
        return not done

    def _connected(self, about: dict[str, Any]) -> _Line | None:
        """A connection to where `ranks.json` says, if it is rank 0 of this run that listens there."""
        names = about.get("names")
        here = ["127.0.0.1"] if about.get("host") == self._host else []
        for name in [*here, *(names if isinstance(names, list) else [])]:
            try:
                made = socket.create_connection((str(name), int(about["port"])), timeout=PATIENCE)
            except (OSError, KeyError, ValueError, TypeError, OverflowError):
                continue
            _keep_alive(made)
            line = _Line(made, 0, str(about["host"]), int(about.get("process", 0)))
            line.send(token=about.get("token"), rank=self._rank, host=self._host, process=os.getpid())
            came = line.receive()
            if came and came[0].get("token") == about.get("token"):
                made.settimeout(None)
                return line
            made.close()
        return None
