"""One process at a time writes into a directory, and several that build one cache end with one good cache."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs import TINY, composed
from holder import HOLD, at_once, content, holding, owner
from softgate import SoftgateError, files, locks
from softgate.data.images import Listing, decode
from softgate.data.index import index
from softgate.data.store import decoded
from softgate.errors import SoftgateWarning
from softgate.evaluation.evaluate import evaluate
from softgate.training.train import train


@pytest.fixture(autouse=True)
def _nothing_held():
    yield
    locks.release()


def boot() -> str:
    return locks.Owner.here().boot


def test_a_run_that_still_runs_is_not_resumed_and_nothing_is_written(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    before = content(tmp_path)
    with holding(tmp_path) as process:
        with pytest.raises(SoftgateError) as refused:
            train(composed(*TINY, "resume=true", directory=tmp_path))
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in str(refused.value)
        assert str(tmp_path) in str(refused.value)
        assert content(tmp_path) == before
    assert not (tmp_path / "run.lock").exists()


def test_a_lock_on_a_file_that_its_former_owner_takes_away_meanwhile_is_none(tmp_path, monkeypatch):
    lock, files_locked, flock = tmp_path / locks.LOCK, [], fcntl.flock

    def late(file: int, how: int) -> None:
        if not files_locked:
            lock.unlink()  # between the opening of the file and the locking
        files_locked.append(os.fstat(file))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locks.held(tmp_path):
        assert len(files_locked) == 2
        assert os.path.samestat(files_locked[-1], lock.stat())
        assert locks.Owner.read(lock).process == os.getpid()


def test_an_evaluation_does_not_write_beside_another(tmp_path):
    with holding(tmp_path) as process, pytest.raises(SoftgateError, match=f"process {process.pid} on"):
        evaluate(composed("runs=none", name="evaluate", directory=tmp_path))
    assert content(tmp_path) == {}


def test_the_lock_of_a_killed_process_is_taken_over_with_a_line(tmp_path, capsys):
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run.lock").is_file()
        with locks.held(tmp_path):
            assert locks.Owner.read(tmp_path / "run.lock").process == os.getpid()
    (line,) = capsys.readouterr().out.splitlines()
    said = f"taken over from process {process.pid} on {socket.gethostname()}, which has ended without giving it back."
    assert line == f"{tmp_path}: {said}"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_boot_or_machine_is_taken_over_with_a_line(tmp_path, capsys):
    for past in ({"host": socket.gethostname(), "process": os.getppid()}, {}):
        owner(tmp_path, **past)
        with locks.held(tmp_path):
            pass
        assert "taken over from process" in capsys.readouterr().out
    with locks.held(tmp_path):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("slow", [0, 0.4], ids=["at once", "a little later"])
def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path, slow):
    fork = """
import os, time
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
"""
    code = HOLD.replace('    print("locked"', "    " + fork.strip().replace("\n", "\n    ") + '\n    print("locked"')
    # A new process may be late to close what it has from the old one.
    code = f"import os, time; os.register_at_fork(after_in_child=lambda: time.sleep({slow}))\n" + code
    line = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(SoftgateError, match=f"process {process.pid} on"):
            locks.take(tmp_path)
        process.kill()
        process.wait()
        with locks.held(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


def test_a_process_may_take_what_it_has_and_gives_it_back_at_the_outermost_end(tmp_path):
    with locks.held(tmp_path):
        with locks.held(tmp_path):
            pass
        assert (tmp_path / "run.lock").is_file()
    assert not (tmp_path / "run.lock").exists()


def no_locks(file: int, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_where_there_are_no_locks_a_warning_is_all(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(SoftgateWarning, match=r"its file system has no locks \(No locks available\)"):
        summary = train(composed(*TINY, "callbacks=none", "trainer.max_epochs=1", directory=tmp_path))
    assert summary["status"] == "finished"


def test_where_there_are_no_locks_a_process_that_is_seen_to_live_is_still_one(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    owner(tmp_path, host=socket.gethostname(), process=os.getppid(), boot=boot())
    with pytest.raises(SoftgateError, match=f"process {os.getppid()} on"):
        locks.take(tmp_path)


def test_a_directory_that_is_gone_cannot_be_locked_and_is_named(tmp_path):
    with pytest.raises(SoftgateError, match=r"gone: cannot be written: No such file or directory\."):
        locks.take(tmp_path / "gone")


def test_of_many_processes_that_want_a_directory_at_once_one_has_it(tmp_path):
    code = """
from softgate import locks
from softgate.errors import SoftgateError
wait()
try:
    locks.take(Path(sys.argv[1]))
    print("has it", flush=True)
    time.sleep(3)
except SoftgateError as error:
    print("refused" if "still writes into it" in str(error) else error)
"""
    (tmp_path / "run").mkdir()
    said = at_once(code, 4, [str(tmp_path / "run")], tmp_path / "gate")
    assert sorted(said) == ["has it", "refused", "refused", "refused"]


def test_folders_of_one_name_that_are_made_at_once_are_different_ones(tmp_path):
    code = (
        "from softgate import files\nwait()\nfor _ in range(20):\n    print(files.new_folder(Path(sys.argv[1])).name)"
    )
    said = at_once(code, 3, [str(tmp_path / "day" / "run")], tmp_path / "gate")
    names = " ".join(said).split()
    assert sorted(names) == sorted(["run", *(f"run-{number}" for number in range(2, 61))])


def images(folder, count: int = 12) -> None:
    draw = np.random.default_rng(0)
    for number in range(count):
        (folder / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        picture = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"class{number % 3}" / f"{number}.png")
    for each in (folder, *folder.iterdir()):  # older than the grain of a file system's clock
        os.utime(each, (1e9, 1e9))


BUILD = """
import numpy as np
from softgate.data import images, index, store
real = images.decode
def decode(listing, size, channels):
    print("decoded", flush=True)
    time.sleep(.3)
    return real(listing, size, channels)
store.decode = decode
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
wait()
paths, labels, classes, _ = index.index(folder, cache)
(kept,) = cache.glob("index-*.npz")
found = dict(np.load(kept))
for _ in range(100):
    index._remember(found, kept)
    assert set(np.load(kept)) == set(found), "the index was seen half written"
index.index(folder, cache)
listing = images.Listing(list(paths), labels, classes)
print(int(store.decoded(listing, 16, 3, cache)[0].long().sum()))
"""


@pytest.mark.slow
def test_two_processes_that_build_one_cache_end_with_one_good_cache(tmp_path):
    folder, cache = tmp_path / "images", tmp_path / "cache"
    images(folder)
    paths, labels, classes, _ = index(folder, None)
    listing = Listing(list(paths), labels, classes)
    whole, _ = decode(listing, 16)
    said = at_once(BUILD, 2, [str(folder), str(cache)], tmp_path / "gate")
    words = " ".join(said).split()
    assert words.count("decoded") == 1  # the second waits for the first
    assert [word for word in words if word != "decoded"] == [str(int(whole.long().sum()))] * 2
    assert torch.equal(decoded(listing, 16, 3, cache)[0], whole)
    assert index(folder, cache)[0] == paths
    assert sorted(path.suffix for path in cache.iterdir() if path.suffix != ".lock") == [".bin", ".json", ".npz"]


def test_a_cache_where_there_are_no_locks_is_a_warning(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    images(folder)
    paths, labels, classes, _ = index(folder, None)

    def refuse(self) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock._acquire", refuse)
    with pytest.warns(SoftgateWarning, match=r"data\.cache_dir=.*cannot be kept there"):
        decoded(Listing(list(paths), labels, classes), 16, 3, tmp_path / "cache")
    assert index(folder, tmp_path / "cache")[0] == paths


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    words = (*TINY, "callbacks=none", "trainer.num_sanity_val_steps=0")
    train(composed(*words, "trainer.max_epochs=1", directory=tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    kept = last.read_bytes()
    with monkeypatch.context() as patch:
        open_ = Path.open
        full = Path("/dev/full")

        def opened(path, *args, **kwargs):
            return open_(full, "wb") if path.name == "last.ckpt.partial" else open_(path, *args, **kwargs)

        patch.setattr(Path, "open", opened)
        with pytest.raises(files.CannotWrite) as refused:
            train(composed(*words, "resume=true", directory=tmp_path))
    assert str(refused.value) == f"{last}: cannot be written: No space left on device."
    assert last.read_bytes() == kept
    assert {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert train(composed(*words, "resume=true", directory=tmp_path))["status"] == "finished"
