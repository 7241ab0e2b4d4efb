"""The launcher of sweeps: one process and one directory a job, failures apart, GPUs dealt, sweeps gone on with."""

import csv
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from softgate.cli import ranks
from softgate.cli.sweep import gpus, processes, resume
from softgate.cli.sweep.jobs import INDIFFERENT
from softgate.training.same import ABSENT, differences
from sweeps import Pretender

AT = "hydra.sweep.dir=sweep"


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Pretender:
    return Pretender(tmp_path, monkeypatch)


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "sweep" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- jobs ---------------------------------------------------------------------------------------------


def test_every_job_is_a_single_run_of_its_own_saved_config(sweep, tmp_path, capsys):
    assert sweep("surrogate=none,excitation", "optim.lr=0.1,0.2", "trainer.max_epochs=3", AT) == 0
    folders = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    kinds = ["none", "none", "excitation", "excitation"]
    assert folders == [f"{i}-digits-resnet18-{kind}" for i, kind in enumerate(kinds)]
    configs = [yaml.safe_load((tmp_path / "sweep" / name / ".hydra/config.yaml").read_text()) for name in folders]
    assert [config["optim"]["lr"] for config in configs] == [0.1, 0.2, 0.1, 0.2]
    assert [config["surrogate"]["gate"]["name"] for config in configs] == ["hard", "hard", "sigmoid", "sigmoid"]
    assert [config["sweep"]["job"] for config in configs] == [0, 1, 2, 3]
    assert configs[3]["sweep"]["overrides"] == ["surrogate=excitation", "optim.lr=0.2", "trainer.max_epochs=3"]
    assert configs[3]["sweep"]["name"] == f"{tmp_path.name}/sweep"
    assert configs[3]["name"] == "digits-resnet18-excitation"  # resolved: the job has no groups to read it from
    for name in folders:
        assert (tmp_path / "sweep" / name / ".hydra" / "hydra.yaml").is_file()
    for job in sweep.told():
        assert "-m" not in job["argv"]
        assert "resume=true" not in job["argv"]
    table = capsys.readouterr().out
    for word in ("surrogate", "optim.lr", "finished", "best/val/acc", "0.2000"):
        assert word in table
    assert "trainer.max_epochs" not in table.split("sweep of 4 jobs")[1]  # it tells no job from another


def test_sweep_csv_has_overrides_status_metric_and_time(sweep, tmp_path):
    sweep.plan = {"1": "raise"}
    assert sweep("optim.lr=0.1,0.2", "seed=3", AT) == 1
    first, second = rows(tmp_path)
    assert first.items() >= {"job": "0", "optim.lr": "0.1", "seed": "3", "status": "finished"}.items()
    assert first["best/val/acc"] == "0.1"
    assert first["directory"] == "0-digits-resnet18-excitation"
    assert float(first["seconds"]) > 0
    assert second["status"] == "failed"
    assert second["why"] == "RuntimeError: boom"
    assert second["best/val/acc"] == ""


def test_one_job_raises_one_is_killed_the_others_finish_and_only_the_missing_are_run_again(sweep, tmp_path, capsys):
    sweep.plan = {"1": "raise", "2": "kill"}
    words = ["optim.lr=0.1,0.2,0.3,0.4", AT]
    assert sweep(*words) == 1
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "failed", "killed by SIGKILL", "finished"]
    assert "2 of 4 jobs did not finish" in " ".join(capsys.readouterr().out.split())
    before = sweep.told()
    sweep.plan = {}
    assert sweep(*words, "sweep.resume=true") == 0
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 4
    assert [row["best/val/acc"] for row in rows(tmp_path)] == ["0.1", "0.2", "0.3", "0.4"]
    after = sweep.told()
    assert [new != old for new, old in zip(after, before, strict=True)] == [False, True, True, False]
    assert ["resume=true" in job["argv"] for job in after] == [False, True, True, False]


def test_n_jobs_run_at_the_same_time(sweep):
    assert sweep("seed=0,1,2,3", AT, "hydra.launcher.n_jobs=2") == 0
    told = sweep.told()
    at_once = max(sum(job["begun"] <= t < job["ended"] for job in told) for t in (job["begun"] for job in told))
    assert at_once == 2


def test_jobs_get_the_environment_of_one_run_of_their_own(sweep, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "shared")  # with this, W&B would write all jobs into one run
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "batch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert sweep("seed=0,1", AT, "hydra.launcher.n_jobs=2", "+hydra.job.env_set.COLOUR=red") == 0
    for job in sweep.told():
        assert job["env"]["WANDB_RUN_ID"] is None
        assert job["env"]["HYDRA_FULL_ERROR"] is None  # a job's mistakes are one sentence too
        assert job["env"]["SLURM_JOB_NAME"] == "interactive"  # or Lightning would take the job for one rank of many
        assert job["env"]["OMP_NUM_THREADS"] == "4"
        assert job["env"]["COLOUR"] == "red"


def test_a_sweep_starts_where_python_was_not_given_a_file(sweep, monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # a test's worker, an embedded Python
    assert sweep("seed=0", AT) == 0


# -- Ctrl-C -------------------------------------------------------------------------------------------


def interrupt_when(ready, *signals: int) -> None:
    """Sends this process signals, a second apart, as soon as `ready()`."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not ready():  # the test has failed by now, and a signal would end the ones after it
            return
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_jobs_and_lets_them_save_a_checkpoint(sweep, tmp_path, number):
    sweep.plan = {"0": "wait", "1": "wait", "2": "wait"}
    interrupt_when(lambda: len(list(tmp_path.glob("sweep/*/waits"))) == 2, number)
    assert sweep("seed=0,1,2", AT, "hydra.launcher.n_jobs=2") == 130
    assert len(list(tmp_path.glob("sweep/*/checkpoint"))) == 2
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "interrupted", "waiting"]
    sweep.plan = {}
    assert sweep("seed=0,1,2", AT, "sweep.resume=true") == 0
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 3


def test_a_job_that_is_interrupted_after_its_last_act_has_finished(sweep, tmp_path):
    sweep.plan = {"0": "late"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), signal.SIGINT)
    assert sweep("seed=0,1", AT) == 130
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "waiting"]
    assert float(rows(tmp_path)[0]["seconds"]) == 1.5  # of training, as after sweep.resume


@pytest.mark.parametrize(("grace", "signals"), [(0.5, [signal.SIGINT]), (60, [signal.SIGINT, signal.SIGINT])])
def test_a_job_that_does_not_leave_is_killed_after_the_grace_or_at_a_second_ctrl_c(sweep, tmp_path, grace, signals):
    sweep.plan = {"0": "stubborn"}
    interrupt_when(lambda: any(tmp_path.glob("sweep/*/waits")), *signals)
    assert sweep("seed=0,1", AT, f"hydra.launcher.grace={grace}") == 130
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "waiting"]
    assert float(rows(tmp_path)[0]["seconds"]) < 30


def test_jobs_are_ended_also_where_the_terminal_has_gone(sweep, tmp_path, monkeypatch):
    from rich.console import Console

    def gone(self, *args, **kwargs) -> None:
        raise BrokenPipeError

    sweep.plan = {"0": "wait"}

    def break_off() -> bool:
        if any(tmp_path.glob("sweep/*/waits")):
            monkeypatch.setattr(Console, "print", gone)
            return True
        return False

    interrupt_when(break_off, signal.SIGHUP)
    with pytest.raises(BrokenPipeError):  # of the table at the end
        sweep("seed=0,1", AT)
    assert len(list(tmp_path.glob("sweep/*/checkpoint"))) == 1
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "waiting"]


def test_a_process_that_a_job_leaves_behind_is_ended_with_it(sweep, tmp_path):
    # As a rank of DDP whose first process was killed: it waits for it up to half an hour.
    code = (
        "import subprocess,sys,os; p=subprocess.Popen(['sleep','100']); print(p.pid,flush=True); os.kill(os.getpid(),9)"
    )
    sweep._monkeypatch.setattr("softgate.cli.sweep.jobs.Job.command", lambda job: [sys.executable, "-c", code])
    assert sweep("seed=0", AT) == 1
    (log,) = tmp_path.glob("sweep/*/output.log")
    state = Path(f"/proc/{log.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


# -- searches -----------------------------------------------------------------------------------------


def test_a_search_gets_the_objective_back_survives_failures_and_is_gone_on_with(sweep, tmp_path):
    optuna = pytest.importorskip("optuna")
    words = ["hydra/sweeper=tpe", "optim.lr=interval(0.01,0.2)", "hydra.sweeper.n_trials=5", AT]
    words += ["hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_jobs=2", "hydra.launcher.n_jobs=2"]
    sweep.plan = {"2": "raise"}
    assert sweep(*words) == 1
    table = rows(tmp_path)
    assert [row["status"] for row in table] == ["finished", "finished", "failed", "finished", "finished"]
    rates = [float(row["optim.lr"]) for row in table]
    assert len(set(rates)) == 5
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(
        rate for rate, row in zip(rates, table, strict=True) if row["status"] == "finished"
    )
    before = sweep.told()
    sweep.plan = {}
    assert sweep(*words, "sweep.resume=true") == 0
    assert [float(row["optim.lr"]) for row in rows(tmp_path)][:3] == rates[:3]
    assert [new != old for new, old in zip(sweep.told(), before, strict=True)][:3] == [False, False, True]
    optuna.logging.enable_propagation()


def test_searches_share_their_trials_through_a_storage(sweep, tmp_path):
    optuna = pytest.importorskip("optuna")
    words = ["hydra/sweeper=tpe", "optim.lr=interval(0.01,0.2)", "hydra.sweeper.n_trials=2"]
    words += [f"hydra.sweeper.storage=sqlite:///{tmp_path}/search.db", "hydra.sweeper.study_name=shared"]
    for place in ("one", "two"):
        assert sweep(*words, f"hydra.sweep.dir={place}") == 0
    study = optuna.load_study(study_name="shared", storage=f"sqlite:///{tmp_path}/search.db")
    assert len(study.trials) == 4
    assert study.direction.name == "MAXIMIZE"
    assert all(trial.value == trial.params["optim.lr"] for trial in study.trials)


# -- GPUs ---------------------------------------------------------------------------------------------


@given(
    total=st.integers(1, 8),
    each=st.integers(1, 3),
    moves=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=40),
)
def test_no_gpu_is_dealt_to_more_jobs_than_may_share_it(total, each, moves):
    dealer = gpus.Dealer([str(i) for i in range(total)], each)
    held = []
    for gives_back, share in moves:
        if gives_back and held:
            dealer.give_back(held.pop())
        elif share <= total:
            taken = dealer.take(share)
            load = [sum(gpu in job for job in held) for gpu in dealer.gpus]
            room = sum(count < each for count in load)
            assert (taken is None) == (room < share)
            if taken is not None:
                assert len(set(taken)) == share
                held.append(taken)
        assert all(sum(gpu in job for job in held) <= each for gpu in dealer.gpus)


@pytest.mark.parametrize(
    ("trainer", "n_jobs", "share"),
    [
        ({"accelerator": "gpu", "devices": 2}, 1, 2),
        ({"accelerator": "auto", "devices": "auto"}, 4, 2),
        ({"accelerator": "auto", "devices": -1}, 1, 8),
        ({"accelerator": "gpu", "devices": [1, 3]}, 2, [1, 3]),
        ({"accelerator": "cpu", "devices": 2}, 1, 0),
    ],
)
def test_a_job_takes_the_gpus_that_its_trainer_wants(trainer, n_jobs, share):
    assert gpus.wanted(trainer, 8, n_jobs) == share


def pretend_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)


def test_jobs_side_by_side_never_see_the_same_gpu(sweep, monkeypatch):
    pretend_gpus(monkeypatch, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")  # the sweep itself may use only some of a machine's
    words = ["trainer=ddp", "trainer.devices=1,2,1,3", "hydra.launcher.n_jobs=4", AT]
    assert sweep(*words) == 0
    told = sweep.told()
    seen = [job["env"]["CUDA_VISIBLE_DEVICES"].split(",") for job in told]
    assert [len(each) for each in seen] == [1, 2, 1, 3]
    assert {gpu for each in seen for gpu in each} == {"2", "5", "7"}
    for i, one in enumerate(told):
        for j, other in enumerate(told[:i]):
            together = one["begun"] < other["ended"] and other["begun"] < one["ended"]
            assert not together or not set(seen[i]) & set(seen[j])


def test_a_list_of_gpu_numbers_counts_among_all_of_them(sweep, monkeypatch):
    pretend_gpus(monkeypatch, 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep("trainer=ddp", "trainer.devices=[0,2]", "seed=0", AT) == 0
    assert sweep.told()[0]["env"]["CUDA_VISIBLE_DEVICES"] is None


def test_without_gpus_the_choice_of_them_is_left_alone(sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep("seed=0", AT) == 0
    assert sweep.told()[0]["env"]["CUDA_VISIBLE_DEVICES"] == ""


# -- mistakes, before any job is started --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no.such.key=1,2"], "no.such.key: there is no such option"),
        (["optim.momentun=0,1"], "Did you mean optim.momentum?"),
        (["seed=0,-1"], "job 1 (seed=-1): seed=-1: a whole number"),
        (["seed=0,1", "optim.lr=0.1,fast"], "job 1 (seed=0 optim.lr=fast): optim.lr=fast: a number > 0"),
        (["seed=0,1", "data.batch_size=8,0"], "data.batch_size=0: a whole number >= 1"),
        (["surrogate=none,nosuch"], "surrogate=nosuch: there is no such choice"),
        (["seed=0,1", "trainer=ddp", "trainer.devices=4"], "trainer.devices=4: this machine has 3 GPUs"),
        (["seed=0", "trainer=ddp", "trainer.devices=[1,3]"], "trainer.devices=[1, 3]: there are 3 GPUs"),
        (["seed=0", "trainer.devices=999"], "trainer.devices=999: this machine has no GPU and"),
        (["seed=0", "trainer.num_nodes=2"], "needs hydra/launcher=slurm"),
        (["seed=0", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: a whole number >= 1"),
        (["seed=0", "hydra.launcher.jobs_per_gpu=half"], "hydra.launcher.jobs_per_gpu=half"),
        (["seed=0,1", "hydra.sweep.subdir=same"], "every job needs a directory of its own"),
        (["seed=0", "sweep.resume=true"], None),
    ],
)
def test_a_mistake_is_one_sentence_before_any_job_starts(sweep, tmp_path, capfd, monkeypatch, words, says):
    pretend_gpus(monkeypatch, 0 if "no GPU" in str(says) else 3)
    assert sweep(*words, AT) == (2 if says else 0)
    if says is None:  # there is nothing to go on with yet: it begins
        return
    assert not list(tmp_path.glob("sweep/*/.hydra"))
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_a_sweep_is_not_written_over(sweep, capfd):
    assert sweep("seed=0,1", AT) == 0
    before = sweep.told()
    assert sweep("seed=0,1", AT) == 2
    assert "sweep.resume=true goes on with that sweep" in capfd.readouterr().err
    assert sweep.told() == before


def test_a_sweep_goes_on_only_with_the_config_it_was_begun_with(sweep, capfd):
    assert sweep("seed=0,1", AT) == 0
    assert sweep("seed=0,1", "optim.lr=0.3", "trainer.max_epochs=9", AT, "sweep.resume=true") == 2
    says = capfd.readouterr().err
    assert (
        "begun with optim.lr=0.05, trainer.max_epochs=6, now it would have optim.lr=0.3, trainer.max_epochs=9" in says
    )
    assert sweep("seed=0,1", "data.num_workers=2", "print_config=false", AT, "sweep.resume=true") == 0


def test_words_in_another_order_are_not_taken_for_the_same_jobs(sweep, tmp_path, capfd):
    sweep.plan = {"1": "raise"}
    assert sweep("surrogate=none,excitation", "seed=0,1", AT) == 1
    before = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert sweep("seed=0,1", "surrogate=none,excitation", AT, "sweep.resume=true") == 2
    says = capfd.readouterr().err
    assert "job 1 of" in says
    assert "was begun in 1-digits-resnet18-none" in says
    assert "in their order" in says
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == before


def test_differences_are_found_at_any_depth():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {"a.c": (2, 3), "d": (ABSENT, 4)}
    assert differences({"sweep": {"job": 1}}, {"sweep": {"job": 2}}, INDIFFERENT) == {}
    assert differences({"trainer": {"max_epochs": 1}}, {"trainer": {"max_epochs": 2}}, INDIFFERENT)


def test_the_same_words_find_their_last_sweep(sweep, tmp_path, capfd):
    words = ["seed=0,1", "optim.lr=0.1"]
    assert sweep(*words, "sweep.resume=true") == 2
    assert "no sweep of the same words is in outputs/sweeps" in capfd.readouterr().err
    sweep.plan = {"1": "raise"}
    assert sweep(*words) == 1
    (place,) = tmp_path.glob("outputs/sweeps/*/*")
    sweep.plan = {}
    assert sweep("optim.lr=0.1", "sweep.resume=true", "seed=0,1", "hydra.launcher.n_jobs=2") == 0
    assert list(tmp_path.glob("outputs/sweeps/*/*")) == [place]
    assert sweep("seed=0,2", "optim.lr=0.1", "sweep.resume=true") == 2


def test_the_words_of_a_sweep_leave_out_where_and_how_many_at_a_time():
    assert resume.asked(["-m", "b=2", "a=1", "sweep.resume=true", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=x"]) == [
        "a=1",
        "b=2",
    ]


# -- what an output complains of ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("Traceback ...\n  File x\nRuntimeError: boom\n", "RuntimeError: boom"),
        ("error: seed=-1: too small.\n", "seed=-1: too small."),
        ("[rank1]: torch.cuda.OutOfMemoryError: no memory\nbye\n", "torch.cuda.OutOfMemoryError: no memory"),
        ("digits, backward rule: Hard()\n", ""),
    ],
)
def test_the_table_says_why_a_job_failed(tmp_path, output, why):
    (tmp_path / "log").write_text(output)
    assert processes.complaint(tmp_path / "log") == why
    assert processes.complaint(tmp_path / "log", (tmp_path / "log").stat().st_size) == ""  # of an earlier part


# -- ranks that another program has started -----------------------------------------------------------

STEP = {"SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}


def test_all_ranks_of_a_slurm_step_and_its_second_start_share_a_directory():
    words = ["trainer=slurm", "optim.lr=0.1"]
    (first,) = ranks.agree(words, STEP | {"SLURM_PROCID": "0"})
    assert first.startswith("hydra.run.dir=outputs/slurm/41.0-")
    assert first.endswith("-${name}")
    assert ranks.agree(words, STEP | {"SLURM_PROCID": "3"}) == [first, "hydra.output_subdir=null"]
    assert ranks.agree([*words, "resume=true"], STEP | {"SLURM_PROCID": "0"}) == [first]
    assert ranks.agree(["optim.lr=0.2"], STEP | {"SLURM_PROCID": "0"}) != [first]
    assert ranks.agree(words, STEP | {"SLURM_STEP_ID": "1", "SLURM_PROCID": "0"}) != [first]
    assert ranks.agree([*words, "hydra.run.dir=mine"], STEP | {"SLURM_PROCID": "0"}) == []


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_ID": "41"}, STEP | {"SLURM_PTY_PORT": "1"}, {"RANK": "0"}])
def test_a_command_typed_by_hand_keeps_hydras_directory(env):
    assert ranks.agree(["seed=1"], env) == []
    assert not ranks.several(env)


def test_several_ranks_are_known_by_torchruns_and_sruns_variables():
    assert ranks.several(STEP | {"SLURM_PROCID": "1"})
    assert ranks.several({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"})
    assert not ranks.several(STEP | {"SLURM_STEP_NUM_TASKS": "1"})
    assert not ranks.several({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "RANK": "0"})


def test_a_search_under_torchrun_is_refused(sweep, monkeypatch, capfd):
    pytest.importorskip("optuna")
    for key, value in (STEP | {"SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(key, value)
    assert sweep("hydra/sweeper=tpe", "optim.lr=interval(0.01,0.2)", AT) == 2
    assert "each rank of torchrun or srun would search by itself" in capfd.readouterr().err


def test_what_a_job_writes_last_decides_that_it_finished(sweep, tmp_path):
    assert sweep("seed=0,1", AT) == 0
    summary = tmp_path / "sweep" / "1-digits-resnet18-excitation" / "summary.json"
    for damaged in (json.dumps({"status": "interrupted", "best/val/acc": 0.5}), '{"status": "fini'):
        summary.write_text(damaged)
        before = sweep.told()
        assert sweep("seed=0,1", AT, "sweep.resume=true") == 0
        assert [new != old for new, old in zip(sweep.told(), before, strict=True)] == [False, True]
