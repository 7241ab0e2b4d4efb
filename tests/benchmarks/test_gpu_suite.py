"""The suite of a GPU: what is done and left, what a failure leaves, and that its commands are those that there are."""

import argparse
import shlex

import pytest

import gpu
from softgate import files
from softgate.errors import SoftgateError

HERE = {"card": "a card", "driver": "1", "torch": "2", "cuda": "13", "commit": "abc"}
JUNIT = (
    "<testsuite><testcase classname='a' name='fine'/><testcase classname='a' name='odd'><skipped/></testcase>"
    "<testcase classname='b' name='bad'><failure/></testcase></testsuite>"
)


def writes(text):
    return f"-c {shlex.quote(f'open({chr(34)}{{out}}{chr(34)}, {chr(34)}w{chr(34)}).write({text!r})')}"


@pytest.fixture
def few(monkeypatch, tmp_path):
    table = '{{"title": "a table", "rows": [{{"network": "net", "ratio": 1.25}}]}}'
    found = {
        "one": gpu.Item(writes(table), writes(table), 5),
        "tests": gpu.Item(writes(JUNIT), writes(JUNIT), 5),
        "wrong": gpu.Item("-c 'raise SystemExit(3)'", "-c 'raise SystemExit(3)'", 5),
        "images": gpu.Item("-c 'print(1)' {data}", "-c 'print(1)' {data}", 900),
        "rest": gpu.Item("-c 'print({left})'", "-c 'print({left})'", 5, rest=True),
    }
    monkeypatch.setattr(gpu, "items", lambda: found)
    monkeypatch.setattr(gpu, "machine", lambda: dict(HERE))
    return tmp_path / "found"


def given(folder, *words):
    return gpu.options([*words, f"--folder={folder}"])


def test_what_is_done_is_not_done_again_and_what_failed_is(few, capsys):
    assert gpu.command(given(few)) == 1
    said = capsys.readouterr().out
    assert "wrong: exit status 3" in said
    assert "images" not in said, "there is no folder of data sets"
    suite = gpu.Suite(few, None, False)
    assert list(suite.left()) == ["wrong", "rest"]
    assert files.read_json(few / "one.json")["rows"] == [{"network": "net", "ratio": 1.25}]
    assert files.read_json(few / "tests.json")["rows"] == [{"tests": 3, "passed": 1, "skipped": 1, "failed": "b::bad"}]
    page = (few / "gpu.md").read_text()
    assert "| net | 1.250 |" in page
    assert "**exit status 3**" in page


@pytest.mark.parametrize("key", ["card", "commit", "torch"])
def test_what_was_measured_of_another_machine_or_commit_is_left(key, few, monkeypatch):
    gpu.command(given(few, "--items=one"))
    assert "one" not in list(gpu.Suite(few, None, False).left())
    monkeypatch.setattr(gpu, "machine", lambda: HERE | {key: "other"})
    assert "one" in list(gpu.Suite(few, None, False).left())


def test_small_sizes_are_not_taken_for_the_measurement(few):
    gpu.command(given(few, "--items=one", "--toy"))
    assert "one" in list(gpu.Suite(few, None, False).left())


def test_no_item_is_begun_that_would_not_end(few, tmp_path, capsys):
    gpu.command(given(few, "--budget=60s", f"--data={tmp_path}"))
    said = capsys.readouterr().out
    assert "images: left for the next time, 900 s are needed" in said
    assert "one: done" in said
    left = int(files.read_json(few / "rest.json")["rows"][0]["last line"])
    assert 0 < left <= 60


def test_mistakes_are_told_in_a_sentence(few, tmp_path):
    for words, said in (
        (["--items=two"], "--items=two"),
        (["--items=images"], "--data"),
        (["--budget=soon"], "--budget=soon"),
        ([f"--data={tmp_path / 'nowhere'}"], "there is no such folder"),
    ):
        with pytest.raises(SoftgateError, match=said):
            gpu.command(given(few, *words))


def test_every_item_is_a_command_that_there_is():
    words = {"benchmarks": gpu.HERE, "root": gpu.ROOT, "data": "data", "out": "out", "left": 9}
    for item in gpu.items().values():
        for line in (item.command, item.toy):
            first = shlex.split(line.format(**words))[0]
            assert first == "-m" or (gpu.HERE / first).is_file(), first
    assert isinstance(given("x"), argparse.Namespace)
    assert set(gpu.machine()) == set(HERE)
