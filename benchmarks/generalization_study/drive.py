"""The driver: hands runs to workers, one after the other, and can be stopped and gone on with at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from generalization_study.ledger import Ledger, put
from generalization_study.plan import TUNE, Job, Plan
from softgate import signals
from softgate.errors import SoftgateError

Run = Callable[[Job], dict[str, Any]]
Chosen = Mapping[str, Sequence[str]]

ATTEMPTS = 2
"""So often a run is begun whose worker dies; then it is left aside until the next start."""


class Driver:
    """Makes the runs that are left.

    Args:
        plan: The plan.
        ledger: The results, which are added to.
        chosen: Cells and their arms.
        make: Called in each worker, once: returns what makes a run. It must be importable.
        workers: How many runs are made at the same time.
        budget: Seconds after which no run is begun that would not end in time; None is no limit.
        say: Is given each line of the log.
        start: How a worker begins: "spawn", or "fork" for tests.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        chosen: Chosen,
        make: Callable[[], Run],
        workers: int = 1,
        budget: float | None = None,
        say: Callable[[str], None] = print,
        start: str = "spawn",
    ) -> None:
        self.plan, self.ledger, self.chosen, self.say = plan, ledger, chosen, say
        self._make, self._context = make, multiprocessing.get_context(start)
        self._deadline = None if budget is None else time.monotonic() + budget
        self._many, self._begun = workers, Counter[str]()
        self._busy: dict[Worker, Job] = {}
        self._idle: list[Worker] = []

    def run(self) -> None:
        """Works until nothing is left, or the budget is spent.

        Raises:
            SoftgateError: If a run cannot be made.
            Stopped: After Ctrl-C, SIGTERM or SIGHUP.
        """
        try:
            with signals.raised():
                while self._hand_out():
                    for worker in wait_for(list(self._busy)):
                        self._take(worker, self._busy.pop(worker))
        finally:  # whatever ends it: what a worker was at is made again the next time
            for worker in (*self._busy, *self._idle):
                worker.end()
            self.ledger.export()
        aside = [key for key, times in self._begun.items() if times >= ATTEMPTS and key not in self.ledger.rows]
        for key in aside:
            self.say(f"{key}: its worker died {ATTEMPTS} times, for want of memory perhaps; it is left aside.")

    def _hand_out(self) -> bool:
        """Gives idle workers something to do; whether anyone works."""
        while len(self._busy) < self._many:
            job = self._next()
            if job is None:
                break
            worker = self._idle.pop() if self._idle else Worker(self._context, self._make, self.ledger.folder)
            worker.give(job)
            self._busy[worker] = job
            self._begun[job.key] += 1
        return bool(self._busy)

    def _next(self) -> Job | None:
        working = {job.key for job in self._busy.values()}
        for job in self.plan.left(self.chosen, list(self.ledger.rows.values())):
            if job.key not in working and self._begun[job.key] < ATTEMPTS:
                late = self._deadline is not None and time.monotonic() + (self._expected(job) or 0) > self._deadline
                return None if late else job
        return None

    def _take(self, worker: Worker, job: Job) -> None:
        answer = worker.answer()
        if answer is None:
            self.say(f"{job.key}: its worker died.")
            worker.end()
            return
        self._idle.append(worker)
        if isinstance(answer, Exception):
            raise answer
        self._begun[job.key] = 0
        self.ledger.put(answer)
        self.ledger.export()
        diverged = ", diverged" if answer["status"] == "diverged" else ""
        # Nobody who decides whether to go on is to know what the test images said so far.
        found = f"{100 * answer['acc']:.2f} %" if job.stage == TUNE else "made"
        self.say(f"{job.key}: {found}{diverged}, {answer['seconds']:.0f} s; {self.outlook()}")

    # -- how long --

    def _expected(self, job: Job) -> float | None:
        return expected(self.ledger, job.cell, job.stage, job.arm)

    def outlook(self) -> str:
        """What is left, and how long that will take, in words."""
        return outlook(self.plan, self.ledger, self.chosen, self._many)


def expected(ledger: Ledger, cell: str, stage: str, arm: str) -> float | None:
    """Seconds that a run takes: the median of those like it, else of its cell and stage, else of its cell."""
    rows = [row for row in ledger.rows.values() if row["cell"] == cell and row["status"] == "finished"]
    alike = [row for row in rows if row["stage"] == stage]
    for some in ([row for row in alike if row["arm"] == arm], alike, rows):
        if some:
            return statistics.median(float(row["seconds"]) for row in some)
    return None


def outlook(plan: Plan, ledger: Ledger, chosen: Chosen, workers: int) -> str:
    """What is left of the chosen cells and arms, and how long that takes by the runs made so far, in words."""
    count = plan.count(chosen, list(ledger.rows.values()))
    left, seconds, unknown = sum(count.values()), 0.0, set()
    for (cell, stage, arm), number in count.items():
        each = expected(ledger, cell, stage, arm)
        if each is None and number:
            unknown.add(cell)
        seconds += number * (each or 0)
    if not left:
        return "nothing is left"
    so_far = f"{left} runs left, {_duration(seconds / workers)}"
    return so_far + (f" and cells of which no run is made yet ({', '.join(sorted(unknown))})" if unknown else "")


def _duration(seconds: float) -> str:
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


class Worker:
    """A process that makes one run after the other and writes each one's row.

    It ends with the driver, also where that is killed; what it was at is lost, and nothing else.
    """

    def __init__(self, context: Any, make: Callable[[], Run], folder: Path) -> None:
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, folder, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        """Lets it begin a run."""
        self.connection.send(job)

    def answer(self) -> dict[str, Any] | Exception | None:
        """The row of its run; what kept it from making one; None if it is dead."""
        try:
            found: dict[str, Any] | Exception = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        return found

    def end(self) -> None:
        """Ends it, whatever it is at."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def wait_for(workers: Sequence[Worker]) -> list[Worker]:
    """Those of the workers that have an answer, or are dead; waits for one."""
    ready = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in ready]


def _work(connection: Connection, make: Callable[[], Run], folder: Path, driver: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow, args=(driver,), daemon=True).start()
    run: Run | None = None
    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            run = run or make()
            row = run(job)
            put(row, folder)
            answer: Any = row
        except SoftgateError as error:
            answer = SoftgateError(str(error))
        except Exception:  # a mistake in the code: the driver stops with its trace
            answer = RuntimeError(f"{job.key}:\n{traceback.format_exc()}")
        connection.send(answer)


def _follow(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(0.2)
    os._exit(1)
