"""A command's directory is its own, and what cannot be written is one sentence with an exit status of its own."""

import json
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import hydra.core.utils
import pytest
import yaml

from configs import ROOT, TINY, composed
from holder import content, holding
from pretended_sweep import AT
from softgate.cli import command, directories, exits, ranks
from softgate.cli.sweep import processes
from softgate.errors import CannotWrite, Diverged, SoftgateError
from softgate.training import resume

FEW = (*TINY, "callbacks=none", "trainer.max_epochs=1")
LONG = "n" * 300


class Noon(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None) -> datetime:
        return datetime(2026, 1, 2, 12, 0, 0, tzinfo=tz)


@pytest.fixture
def noon(monkeypatch) -> str:
    monkeypatch.setattr(hydra.core.utils, "datetime", Noon)
    return "2026-01-02/12-00-00"


def test_two_runs_of_one_second_have_two_directories(typed, noon, tmp_path):
    for _ in range(3):
        assert typed("train.py", *FEW)[0] == 0
    day = tmp_path / "outputs" / "2026-01-02"
    first = "12-00-00-digits-resnet18-excitation"
    assert sorted(path.name for path in day.iterdir()) == [first, f"{first}-2", f"{first}-3"]
    for run in day.iterdir():
        assert json.loads((run / "summary.json").read_text())["status"] == "finished"
        assert yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text())["hydra"]["run"]["dir"].endswith(run.name)
        assert not (run / "run.lock").exists()


def test_two_evaluations_of_one_second_have_two_directories(typed, noon, tmp_path):
    assert typed("train.py", *FEW, "hydra.run.dir=run")[0] == 0
    for _ in range(2):
        assert typed("evaluate.py", "runs=run", "measure=false", "grid.rows=2", "grid.targets=2")[0] == 0
    made = tmp_path / "outputs" / "evaluations" / "2026-01-02"
    assert sorted(path.name for path in made.iterdir()) == ["12-00-00", "12-00-00-2"]
    assert all((each / "results.json").is_file() for each in made.iterdir())


def test_a_refused_evaluation_leaves_nothing(typed, noon, tmp_path):
    assert typed("evaluate.py", "runs=none")[0] == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_two_sweeps_of_one_second_have_two_directories(sweep, noon, tmp_path):
    assert sweep("seed=0,1") == sweep("seed=2,3") == 0
    day = tmp_path / "outputs" / "sweeps" / "2026-01-02"
    assert sorted(path.name for path in day.iterdir()) == ["12-00-00", "12-00-00-2"]
    for made in day.iterdir():
        assert (made / "multirun.yaml").is_file()
        assert len(list(made.glob("*/summary.json"))) == 2
        for saved in made.glob("*/.hydra/hydra.yaml"):
            assert yaml.safe_load(saved.read_text())["hydra"]["sweep"]["dir"].endswith(made.name)


@pytest.mark.parametrize("env", [{"LOCAL_RANK": "1"}, {"NODE_RANK": "1"}, {"TORCHELASTIC_RUN_ID": "x", "RANK": "1"}])
def test_a_further_rank_makes_no_directory_of_its_own(env, monkeypatch, tmp_path):
    assert ranks.first({})
    assert ranks.first({"LOCAL_RANK": "0"})
    assert not ranks.first(env)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    directories.settle(composed(directory=tmp_path / "run"), "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_still_runs_is_refused_before_hydra_writes(typed, tmp_path):
    run = tmp_path / "run"
    assert typed("train.py", *FEW, "hydra.run.dir=run")[0] == 0
    (run / "checkpoints" / "last.ckpt").rename(run / "kept")  # else a second run would be refused for another reason
    before = content(run)
    with holding(run) as process:
        for words in (["resume=run"], [*FEW, "hydra.run.dir=run"], [*FEW, "hydra.run.dir=run", "resume=true"]):
            status, said = typed("train.py", *words)
            assert status == 2
            (line,) = [line for line in said.splitlines() if line.startswith("error")]
            assert f"process {process.pid} on {socket.gethostname()}" in line
            assert "Traceback" not in said
            assert content(run) == before
        status, said = typed("evaluate.py", "runs=run", "hydra.run.dir=run")
        assert status == 2
        assert f"process {process.pid}" in said
        assert content(run) == before


def test_a_sweep_that_still_runs_is_not_resumed(sweep, tmp_path, capfd):
    sweep.plan = {"0": "raise"}
    assert sweep("seed=0,1", AT) == 1
    before = content(tmp_path / "sweep")
    with holding(tmp_path / "sweep") as process:
        capfd.readouterr()
        assert sweep("seed=0,1", AT, "sweep.resume=true") == 2
    assert f"process {process.pid} on {socket.gethostname()}" in capfd.readouterr().err
    assert content(tmp_path / "sweep") == before
    sweep.plan = {}
    assert sweep("seed=0,1", AT, "sweep.resume=true") == 0


@pytest.mark.parametrize("name", ["a blank", "it's", 'a "quoted" one', "back\\slash", "both' \\'\" \\", "comma, {x}"])
def test_a_run_in_a_directory_of_any_name_is_resumed(name, typed, tmp_path):
    words = (*FEW, f"hydra.run.dir={resume.quoted(Path(name))}")
    assert typed("train.py", *words) == (0, "")
    assert (tmp_path / name / "summary.json").is_file()
    assert typed("train.py", f"resume={name}") == (0, "")
    status, said = typed("train.py", *words)
    assert status == 2
    assert said == f"error: hydra.run.dir={name}: there is a run in it; resume={name} goes on with it.\n"


@pytest.mark.parametrize("name", ["a b", "it's", 'x"y', "back\\slash", "ends\\", "\\'\\\\'", ""])
def test_a_quoted_path_says_what_it_is(name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    word = resume.quoted(Path(name))
    assert OverridesParser.create().parse_override(f"a={word}").value() == str(Path(name))
    assert resume.unquoted(word) == str(Path(name))


def test_the_ranks_that_lightning_starts_find_a_directory_with_a_quote(monkeypatch):
    told = 'hydra.run.dir="a "b""'
    assert command._of_any_path(told) == told
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command._of_any_path(told) == r'hydra.run.dir="a \"b\""'
    assert command._of_any_path("seed=1") == "seed=1"


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        ("train.py", [*FEW, f"name={LONG}"], LONG),
        ("train.py", [*FEW, f"hydra.run.dir={LONG}"], LONG),
        ("train.py", [*FEW, "-m", "seed=0,1", f"name={LONG}"], f"0-{LONG}"),
        ("train.py", [*FEW, "hydra.run.dir=/dev/null/run"], "/dev/null/run"),
        ("train.py", [*FEW, "-m", "seed=0,1", "hydra.sweep.dir=/dev/null/sweep"], "/dev/null/sweep"),
        ("evaluate.py", ["runs=none", "hydra.run.dir=/dev/null/evaluation"], "/dev/null/evaluation"),
        ("evaluate.py", ["runs=none", f"hydra.run.dir={LONG}"], LONG),
    ],
    ids=["name", "directory", "names of jobs", "no folder", "no folder of a sweep", "evaluation", "its name"],
)
def test_a_directory_that_cannot_be_made_is_one_sentence(script, words, named, typed):
    status, said = typed(script, *words)
    assert status == exits.DISK == 4
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert f"{named}: cannot be written: " in said or f"{named}/.hydra/config.yaml" in said


def test_a_name_too_long_to_resume_is_no_run(typed):
    assert typed("train.py", f"resume={LONG}") == (
        2,
        f"error: resume={LONG}: there is no such run; give its directory, or true.\n",
    )


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_sentence(typed, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert typed("train.py", *FEW, "hydra.run.dir=closed/run") == (
        4,
        "error: closed/run: cannot be written: Permission denied.\n",
    )


FAULT = """
import shutil
from pathlib import Path
from softgate.training import SoftgateModule


real = SoftgateModule.on_validation_epoch_end
real_open = Path.open


def full(path, *args, **kwargs):
    return open("/dev/full", "wb") if path.name == "last.ckpt.partial" else real_open(path, *args, **kwargs)


def fault(self):
    real(self)
    run = Path(self.trainer.default_root_dir)
    WHAT


SoftgateModule.on_validation_epoch_end = fault
"""


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("Path.open = full", "last.ckpt"),
        pytest.param("shutil.rmtree(run)", "metrics.csv", marks=pytest.mark.slow),
        pytest.param("raise OSError(28, 'No space left on device')", "run", marks=pytest.mark.slow),
    ],
    ids=["full", "gone", "another writer's"],
)  # fmt: skip
def test_a_disk_that_fails_during_a_run_is_one_sentence_without_a_trace(what, named, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULT.replace("WHAT", what))
    words = [*FEW, "trainer.num_sanity_val_steps=0", "plugins=[faulty]", "hydra.run.dir=run"]
    line = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path / 'run'}" in said
    assert f"{named}: cannot be written: " in said
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_path_of_other_letters_in_a_terminal_without_them_is_written_all_the_same(tmp_path):
    where = tmp_path / "путь é"
    where.mkdir()
    env = os.environ | {"LANG": "C", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "train.py"), *FEW, "hydra.run.dir='ü'", "name='ß'", "print_config=true"]
    done = subprocess.run(line, cwd=where, capture_output=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((where / "ü" / "summary.json").read_text())["status"] == "finished"
    assert b"directory \\xfc" in done.stdout
    # A Python that is told to take paths for ASCII cannot write them down: that is said, and nothing is begun.
    env |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([*line, "resume=true"], cwd=where, capture_output=True, env=env, timeout=900)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert b"not of this terminal's encoding, ascii" in done.stderr.replace(b"utf-8", b"ascii")


def test_each_kind_of_error_has_its_exit_status():
    found = [kind("x").status for kind in (SoftgateError, Diverged, CannotWrite)]
    assert found == [2, 3, 4]
    assert processes.ENDED[4] == "could not write"
