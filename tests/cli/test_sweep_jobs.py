"""The launcher of sweeps: one process and one directory a job, failures apart, searches gone on with."""

import json
import os
import sys

import pytest
import yaml

from pretended_sweep import AT, rows

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
    for word in ("surrogate", "optim.lr", "finished", "best/val/acc", "0.200"):
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


# -- searches -----------------------------------------------------------------------------------------


def test_a_search_gets_the_objective_back_survives_failures_and_is_gone_on_with(sweep, tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra sweep is not installed")
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
    optuna = pytest.importorskip("optuna", reason="the extra sweep is not installed")
    words = ["hydra/sweeper=tpe", "optim.lr=interval(0.01,0.2)", "hydra.sweeper.n_trials=2"]
    words += [f"hydra.sweeper.storage=sqlite:///{tmp_path}/search.db", "hydra.sweeper.study_name=shared"]
    for place in ("one", "two"):
        assert sweep(*words, f"hydra.sweep.dir={place}") == 0
    study = optuna.load_study(study_name="shared", storage=f"sqlite:///{tmp_path}/search.db")
    assert len(study.trials) == 4
    assert study.direction.name == "MAXIMIZE"
    assert all(trial.value == trial.params["optim.lr"] for trial in study.trials)


def test_what_a_job_writes_last_decides_that_it_finished(sweep, tmp_path):
    assert sweep("seed=0,1", AT) == 0
    summary = tmp_path / "sweep" / "1-digits-resnet18-excitation" / "summary.json"
    for damaged in (json.dumps({"status": "interrupted", "best/val/acc": 0.5}), '{"status": "fini'):
        summary.write_text(damaged)
        before = sweep.told()
        assert sweep("seed=0,1", AT, "sweep.resume=true") == 0
        assert [new != old for new, old in zip(sweep.told(), before, strict=True)] == [False, True]
