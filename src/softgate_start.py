"""What comes before softgate is imported, which takes seconds: signals are one line from the beginning on."""

import atexit
import os
import signal


def watch() -> None:
    """Has signals end the process at once; `softgate.cli.command` takes over from there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
        atexit.register(signal.signal, number, signal.SIG_IGN)  # the last act of all: the exit status stands by then


def main() -> None:
    """The command `softgate`."""
    watch()
    from softgate.cli.main import main

    main()


def _stop(number: int, frame: object) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of several processes is enough
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        os.write(2, f"stopped by {name}: nothing was begun.\n".encode())
    os._exit(128 + number)
