"""The driver of the study: it can be stopped anywhere, and results are neither lost, doubled nor mixed up."""

import os
import random
import signal
import time
from collections import Counter

import pretended_study as pretended
import pytest
from generalization_study.drive import Driver, expected, outlook
from generalization_study.ledger import COLUMNS, Ledger, read, versions
from generalization_study.plan import FINAL, Job

from softgate import SoftgateError, files


def drive(folder, seconds=0.0, log=None, workers=2, **options) -> Ledger:
    plan = pretended.plan()
    ledger = Ledger(folder, plan)
    chosen = plan.chosen(["B"], pretended.ARMS)
    make = options.pop("make", pretended.maker(seconds, log))
    Driver(
        plan, ledger, chosen, make, workers, say=options.pop("say", lambda line: None), start="fork", **options
    ).run()
    return ledger


def child(work) -> int:
    """A process of its own that does some work and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def wanted(folder) -> dict:
    return {key: row["acc"] for key, row in pretended.whole(folder).rows.items()}


def test_two_workers_make_every_run_of_the_plan_once(tmp_path):
    lines = []
    ledger = drive(tmp_path / "a", log=tmp_path / "log", say=lines.append)
    assert {key: row["acc"] for key, row in ledger.rows.items()} == pytest.approx(wanted(tmp_path / "b"))
    assert Counter((tmp_path / "log").read_text().split()).most_common(1)[0][1] == 1
    assert len(lines) == len(ledger.rows) == 3 * 8 + 3 * 3
    assert lines[-1].endswith("nothing is left")
    assert "runs left, 0 h" in lines[0]
    assert all((" %, 100 s; " in line) == ("-tune-" in line) for line in lines), (
        "test accuracies are not shown on the way"
    )
    assert files.read_csv(tmp_path / "a" / "runs.csv") == files.read_csv(tmp_path / "b" / "runs.csv")
    assert files.read_csv(tmp_path / "a" / "correct.csv") == files.read_csv(tmp_path / "b" / "correct.csv")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_study_stopped_at_ten_random_moments_ends_like_one_that_was_not(tmp_path, number):
    dice, folder, log = random.Random(int(number)), tmp_path / "a", tmp_path / "log"
    for _ in range(10):
        pid = child(lambda: drive(folder, 0.06, log))
        time.sleep(dice.uniform(0.02, 0.12))
        os.kill(pid, number)
        os.waitpid(pid, 0)
        rows = read(folder)  # whole rows, whatever was under way
        assert all(row["acc"] == pytest.approx(pretended.row(Job.of(row), pretended.plan())["acc"]) for row in rows)
    assert len(read(folder)) < 33, "it was done before it was stopped ten times"
    time.sleep(0.5)  # workers of a killed driver end by themselves
    ledger = drive(folder, 0.0, log)
    assert {key: row["acc"] for key, row in ledger.rows.items()} == pytest.approx(wanted(tmp_path / "b"))
    assert len(list((folder / "runs").iterdir())) == len(ledger.rows)
    made = Counter(log.read_text().split())
    # What was finished is not made again, but for the one run of each worker whose row was not yet written.
    assert sum(made.values()) - len(made) <= 10 * 2


def test_a_worker_that_dies_is_replaced_and_its_run_made_again(tmp_path):
    def make():
        run = pretended.make(0.0)

        def fragile(job: Job) -> dict:
            flag = tmp_path / job.key
            if job.arm == "excitation_matched" and job.seed == 1001 and not flag.exists():
                flag.touch()
                os._exit(9)
            return run(job)

        return fragile

    lines = []
    ledger = drive(tmp_path / "a", make=make, say=lines.append)
    assert sum("its worker died" in line for line in lines) == 4
    assert len(ledger.rows) == 33


def test_a_run_that_always_kills_its_worker_is_left_aside_and_named(tmp_path):
    def make():
        run = pretended.make(0.0)
        return lambda job: os._exit(9) if job.key == "B-tune-excitation_matched-0.1-1001" else run(job)

    lines = []
    ledger = drive(tmp_path, make=make, say=lines.append)
    assert len(ledger.rows) == 23, "no final run before all rates are there"
    assert lines[-1].startswith("B-tune-excitation_matched-0.1-1001: its worker died 2 times")


@pytest.mark.parametrize(
    "error", [SoftgateError("data.root=x: there is no such folder."), ZeroDivisionError("division")]
)
def test_what_a_run_raises_stops_the_driver_and_no_process_stays(tmp_path, error):
    def make():
        def run(job: Job) -> dict:
            raise error

        return run

    kind, said = (
        (SoftgateError, "^data.root=x") if isinstance(error, SoftgateError) else (RuntimeError, "ZeroDivisionE")
    )
    with pytest.raises(kind, match=said):
        drive(tmp_path, make=make)
    assert read(tmp_path) == []


def test_a_budget_begins_no_run_that_would_not_end_in_time(tmp_path):
    ledger = drive(tmp_path / "a", budget=0.0)
    assert not ledger.rows
    plan = pretended.plan()
    few = plan.chosen(["B"], pretended.ARMS)
    for job in list(plan.left(few, []))[:4]:
        ledger.put(pretended.row(job, plan))  # which took 100 s each, they say
    assert len(drive(tmp_path / "a", budget=50.0).rows) == 4
    assert len(drive(tmp_path / "a", budget=1000.0).rows) == 33


def test_what_is_left_is_told_from_the_seconds_of_runs_like_it(tmp_path):
    plan = pretended.plan()
    ledger, chosen = Ledger(tmp_path, plan), plan.chosen(["B", "A"], ["excitation_unit_rms"])
    assert outlook(plan, ledger, chosen, 2).endswith("no run is made yet (A, B)")
    ledger.put(pretended.row(Job("B", "tune", "true_gradient", 0.05, 1000), plan, seconds=50.0))
    ledger.put(pretended.row(Job("B", "tune", "excitation_unit_rms", 0.05, 1000), plan, seconds=90.0))
    assert expected(ledger, "B", "tune", "true_gradient") == 50
    assert expected(ledger, "B", "final", "true_gradient") == 70
    assert expected(ledger, "A", "final", "true_gradient") is None
    # 7 + 7 tuning runs and 3 + 3 final ones are left in B, as many and two more in A.
    assert outlook(plan, ledger, chosen, 2).startswith(
        f"42 runs left, 0 h {int((7 * 50 + 7 * 90 + 6 * 70) / 2 / 60):02d}"
    )


# -- results --------------------------------------------------------------------------------------------------


def test_results_of_two_machines_are_merged_whatever_each_of_them_made(tmp_path):
    plan = pretended.plan()
    full = pretended.whole(tmp_path / "full").rows
    dice = random.Random(1)
    for name in ("a", "b"):
        part = Ledger(tmp_path / name, plan)
        for row in dice.sample(list(full.values()), 20):
            part.put(row)
        part.export()
    for path in (tmp_path / "b" / "runs").iterdir():
        path.unlink()  # one machine's folder came as its CSV files only
    mine, other = Ledger(tmp_path / "a", plan), Ledger(tmp_path / "b", plan)
    both = set(mine.rows) | set(other.rows)
    added, differ = mine.merge(tmp_path / "b")
    assert (added, differ) == (len(both) - 20, [])
    assert mine.merge(tmp_path / "b") == (0, [])
    again = Ledger(tmp_path / "a", plan)
    assert set(again.rows) == both
    for key, row in again.rows.items():
        for name in COLUMNS:
            assert row.get(name) == (
                full[key][name] if not isinstance(full[key][name], float) else pytest.approx(full[key][name], rel=1e-5)
            )
        assert row.get("bits") == full[key].get("bits")


def test_a_run_that_both_machines_made_counts_once_and_another_result_is_named(tmp_path):
    plan = pretended.plan()
    job = Job("B", FINAL, "true_gradient", 0.05, 0)
    mine, other = Ledger(tmp_path / "a", plan), Ledger(tmp_path / "b", plan)
    mine.put(pretended.row(job, plan))
    other.put(pretended.row(job, plan, acc=0.1))
    assert mine.merge(tmp_path / "b") == (0, [job.key])
    assert Ledger(tmp_path / "a", plan).rows[job.key]["acc"] > 0.5


def test_results_of_another_plan_are_named_and_refused(tmp_path):
    plan = pretended.plan()
    job = Job("B", FINAL, "true_gradient", 0.05, 0)
    Ledger(tmp_path / "a", plan).put(pretended.row(job, plan))
    changed = pretended.plan()
    changed.given["cells"]["B"]["rates"] = [0.1, 0.2, 0.4, 0.8]
    said = rf"a: {job.key} was made by another plan \({plan.identity('B', 'true_gradient')}; this one is "
    with pytest.raises(SoftgateError, match=said):
        Ledger(tmp_path / "a", changed)
    with pytest.raises(SoftgateError, match=said):
        Ledger(tmp_path / "b", changed).merge(tmp_path / "a")
    del changed.given["cells"]["B"]
    with pytest.raises(SoftgateError, match="which has no such cell or arm"):
        Ledger(tmp_path / "a", changed)


@pytest.mark.parametrize(("name", "content"), [("runs/x.json", "{"), ("runs.csv", "cell,acc\r\nB,0.5\r\n")])
def test_a_damaged_file_of_results_is_one_sentence(tmp_path, name, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / name).write_text(content)
    with pytest.raises(SoftgateError, match=rf"{name}: it is damaged"):
        Ledger(tmp_path, pretended.plan())


def test_there_is_nothing_to_merge_from_an_empty_folder(tmp_path):
    ledger = Ledger(tmp_path / "a", pretended.plan())
    (tmp_path / "b").mkdir()
    with pytest.raises(SoftgateError, match=r"^--merge=.*b: there are no results in it"):
        ledger.merge(tmp_path / "b")
    with pytest.raises(SoftgateError, match=r"^--merge=.*c: there is no such folder"):
        ledger.merge(tmp_path / "c")


def test_versions_are_told_apart(tmp_path):
    ledger = pretended.whole(tmp_path)
    odd = next(iter(ledger.rows.values()))
    odd["torch"] = "2.16.0"
    assert versions(ledger.rows.values()) == {("0.1.0", "2.15.0"): 32, ("0.1.0", "2.16.0"): 1}


def test_all_results_of_the_study_stay_below_a_megabyte(tmp_path):
    """The size of a row times the number of runs that the plan can need."""
    ledger = pretended.whole(tmp_path)
    plan = ledger.plan
    runs = sum(len(cell["arms"]) * (12 + 8) for cell in plan.cells.values())
    finals = sum(len(cell["arms"]) * 8 * (10_000 if cell["smallest"] < 1 else 3_925) for cell in plan.cells.values())
    row = (tmp_path / "runs.csv").stat().st_size / len(ledger.rows)
    assert runs * row + finals / 6 < 1_000_000
