"""Jobs side by side are dealt GPUs of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretended_sweep import AT, pretend_gpus
from softgate.cli.sweep import gpus


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
    assert gpus.wanted(trainer["accelerator"], trainer["devices"], 8, n_jobs) == share


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
