"""What takes long is made once, and only the last few are kept."""

import threading

import pytest

from softgate.app.kept import Kept


def test_the_one_used_longest_ago_goes_first():
    kept, made = Kept(2), []

    def ask(key):
        return kept.get(key, lambda: made.append(key) or key)

    assert [ask(key) for key in "abac"] == list("abac")
    assert made == list("abc")
    assert len(kept) == 2
    ask("a")
    ask("b")
    assert made == list("abcb")


def test_many_who_ask_at_once_get_one_thing_and_a_failure_is_not_kept():
    kept, gate, made = Kept(2), threading.Event(), []

    def make():
        gate.wait()
        made.append(object())
        return made[-1]

    found = []
    threads = [threading.Thread(target=lambda: found.append(kept.get("x", make))) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(each is made[0] for each in found)
    with pytest.raises(ZeroDivisionError):
        kept.get("y", lambda: 1 / 0)
    assert kept.get("y", lambda: 7) == 7
