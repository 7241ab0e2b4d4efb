"""Another process that has a directory locked, or writes one cache with others at the same moment."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from softgate import locks
with locks.held(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(directory: Path, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """A process that has a directory locked until the block ends, or until it is killed within."""
    line = [sys.executable, "-c", code, str(directory)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.communicate(timeout=60)


def at_once(code: str, count: int, words: Sequence[str], gate: Path) -> list[str]:
    """Runs code in several processes, which wait for one moment after their imports by `wait()`; what each printed."""
    begin = f"import sys, time\nfrom pathlib import Path\ndef wait():\n    print('ready', flush=True)\n    while not Path({str(gate)!r}).exists():\n        time.sleep(.001)\n"  # noqa: E501  (one line of another process)
    pipe = subprocess.PIPE
    line = [sys.executable, "-c", begin + code, *words]
    processes = [subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    gate.touch()
    said = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), said
    return [out.strip() for out, _ in said]


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but for the lock."""
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != "run.lock"}


def owner(directory: Path, **changed: object) -> None:
    """Leaves the lock of a process that has ended without giving it back."""
    past = {"host": "elsewhere", "process": 1, "boot": "another", "since": "2026-01-01T00:00:00+00:00"}
    (directory / "run.lock").write_text(json.dumps(past | changed))


def until(met, seconds: float = 60.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)
