"""A wrong sweep is one sentence before any job starts; one that was begun is not written over."""

import pytest

from pretended_sweep import AT, pretend_gpus
from softgate.cli.sweep import processes, resume
from softgate.cli.sweep.jobs import INDIFFERENT
from softgate.training.config_differences import ABSENT, differences

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


def test_two_configs_differ_at_any_depth():
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
