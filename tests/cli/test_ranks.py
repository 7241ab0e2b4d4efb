"""Ranks that another program has started share a directory."""

import pytest

from pretended_sweep import AT
from softgate.cli import ranks

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
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    for key, value in (STEP | {"SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(key, value)
    assert sweep("hydra/sweeper=tpe", "optim.lr=interval(0.01,0.2)", AT) == 2
    assert "each rank of torchrun or srun would search by itself" in capfd.readouterr().err
