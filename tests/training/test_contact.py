"""The connections between ranks: what one says reaches all, and one that says nothing more is known to be gone."""

import json
import queue
import socket
import time
from contextlib import suppress

import pytest

from softgate.training import contact
from softgate.training.contact import FILE, Client, End, Server

HOST = socket.gethostname()


class Heard:
    """What a rank has heard, in order."""

    def __init__(self) -> None:
        self.ends: queue.Queue[End] = queue.Queue()
        self.closed: queue.Queue[int] = queue.Queue()

    def next(self) -> End:
        return self.ends.get(timeout=10)

    def nothing(self, seconds: float = 0.3) -> bool:
        time.sleep(seconds)
        return self.ends.empty()


@pytest.fixture
def ranks(tmp_path):
    """Three ranks, connected, and what each has heard."""
    heard = [Heard() for _ in range(3)]
    every = [Server(tmp_path, False, heard[0].ends.put, heard[0].closed.put)]
    every += [Client(tmp_path, rank, heard[rank].ends.put, heard[rank].closed.put) for rank in (1, 2)]
    deadline = time.monotonic() + 10
    while not all(one._made.is_set() for one in every[1:]) and time.monotonic() < deadline:
        time.sleep(0.01)
    yield every, heard
    for one in every:
        one.close()


def vanish(rank) -> None:
    """What the kernel does for a process that is killed."""
    rank._end.set()
    rank._line.socket.shutdown(socket.SHUT_RDWR)


def test_what_a_rank_ended_by_reaches_rank_0_and_from_there_all_others(ranks):
    (server, one, _), (heard, _, other) = ranks
    one.send(End(1, HOST, "data.root=x: it is gone.", 2))
    end = heard.next()
    assert end == End(1, HOST, "data.root=x: it is gone.", 2)
    server.send(end)
    assert other.next() == end
    vanish(one)
    assert heard.closed.get(timeout=10) == 1
    assert heard.nothing()  # it had said why


def test_a_rank_that_is_gone_without_a_word_is_told_with_its_process(ranks):
    (server, one, _), (heard, _, other) = ranks
    vanish(one)
    end = heard.next()
    assert (end.rank, end.gone, end.status) == (1, True, 137)
    assert "is gone without a word" in end.said
    server.send(end)
    assert other.next() == end


def test_rank_0_that_is_gone_is_known_to_all_others(ranks):
    (server, *_), (_, *others) = ranks
    server._end.set()
    server._listening.close()
    for line in list(server._lines.values()):
        line.socket.shutdown(socket.SHUT_RDWR)
    for heard in others:
        end = heard.next()
        assert (end.rank, end.gone) == (0, True)


def test_ranks_that_are_done_are_not_missed(ranks, tmp_path):
    (server, one, _), (heard, _, other) = ranks
    one.close()
    assert heard.nothing()
    server.close()
    assert other.nothing()
    assert not (tmp_path / FILE).exists()


def test_a_connection_between_machines_that_breaks_and_comes_back_is_no_end(ranks, monkeypatch):
    (server, one, _), (heard, mine, _) = ranks
    monkeypatch.setattr(contact, "PATIENCE", 5.0)
    monkeypatch.setattr(server, "_host", "another machine")
    one._line.host = "another machine"
    before = one._line
    before.socket.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 10
    while (one._line is before or 1 not in server._lines) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one._line is not before
    assert heard.nothing()
    assert mine.nothing(0)


def test_whoever_does_not_know_the_token_is_not_heard(ranks, tmp_path):
    _, (heard, *_) = ranks
    about = json.loads((tmp_path / FILE).read_text())
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    end = {"rank": 1, "host": HOST, "said": "lies", "status": 2, "gone": False}
    for first in ({**about, "token": "0" * 32, "rank": 1, "host": HOST, "process": 1}, end, [1], "x" * 70_000):
        with socket.create_connection(("127.0.0.1", about["port"]), timeout=5) as line:
            line.sendall(json.dumps(first).encode() + b"\n" + json.dumps(end).encode() + b"\n")
            with suppress(ConnectionResetError):
                assert line.recv(1) == b""  # closed
    assert heard.nothing()


def test_a_file_that_an_earlier_run_left_is_read_again(tmp_path):
    stale = Server(tmp_path, False, print, print)
    content = (tmp_path / FILE).read_text()
    stale.close()
    (tmp_path / FILE).write_text(content)
    heard = Heard()
    client = Client(tmp_path, 1, heard.ends.put, heard.closed.put)
    assert heard.nothing()
    server = Server(tmp_path, False, heard.ends.put, heard.closed.put)
    deadline = time.monotonic() + 10
    while 1 not in server._lines and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 1 in server._lines
    client.close()
    server.close()
