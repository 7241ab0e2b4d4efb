"""A command that a signal ends: one line on standard error, whatever is under way, and the status of the signal."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from configs import CONF, ROOT
from softgate import files, locks
from softgate.cli import command, exits, stops
from softgate.quoting import unquoted

NUMBERS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@pytest.fixture
def trained(tmp_path, monkeypatch) -> stops.Command:
    """A command that trains, with a directory."""
    monkeypatch.setattr(stops, "current", stops.Command("train"))
    stops.current.directory = tmp_path / "run"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return stops.current


def before(folder: Path) -> dict[str, str]:
    """An environment in which Python finds modules of a folder before all others."""
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'src'}"}


def begun(directory: Path) -> None:
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "overrides.yaml").write_text("[]\n")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_the_first_imports_is_one_line(script, number, tmp_path):
    (tmp_path / "hydra.py").write_text(f"import signal; signal.raise_signal({int(number)}); [0 for _ in range(99)]")
    line = [sys.executable, str(ROOT / script)]
    done = subprocess.run(line, capture_output=True, text=True, env=before(tmp_path))
    assert done.returncode == 128 + number
    assert done.stderr == f"stopped by {NUMBERS[number]}: nothing was begun.\n"
    assert done.stdout == ""


HALF = """
from pathlib import Path
from softgate.cli import stops
stops.watch({script!r})
stops.current.directory = Path({directory!r})
import {module}
"""


@pytest.mark.parametrize("module", ["pydantic", "torch", "yaml", "rich"])
@pytest.mark.parametrize(
    ("script", "kept"),
    [("train", "kept {run}/checkpoints/last.ckpt; uv run train.py resume={run} goes"), ("evaluate", "no results are")],
)
def test_a_signal_in_an_import_after_the_directory_is_made_is_one_line(module, script, kept, tmp_path):
    """Whatever is half imported at that moment cannot be used to find the words."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / files.LAST_CHECKPOINT).touch()
    here = tmp_path / "modules"
    here.mkdir()
    (here / f"{module}.py").write_text("import signal; signal.raise_signal(15); [0 for _ in range(99)]")
    code = HALF.format(script=script, directory=str(run), module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=before(here))
    assert done.returncode == 143
    assert done.stderr.startswith(f"stopped by SIGTERM: {kept.format(run=run)}")
    assert done.stderr.count("\n") == 1


def test_where_the_words_cannot_be_found_the_line_says_where_to_look(trained, capfd):
    def fails() -> str:
        raise ImportError

    trained.kept = fails
    assert trained.stopped(signal.SIGTERM) == 143
    assert capfd.readouterr().err == f"stopped by SIGTERM: what was written is kept, in {trained.directory}.\n"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_the_command_softgate_is_imported_is_one_line(number, tmp_path):
    (tmp_path / "softgate.py").write_text(f"import signal; signal.raise_signal({int(number)}); [0 for _ in range(99)]")
    line = [sys.executable, "-c", "from softgate_start import main; main()"]
    done = subprocess.run(line, capture_output=True, text=True, env=before(tmp_path))
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"stopped by {NUMBERS[number]}: nothing was begun.\n"


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_python_ends_changes_no_status(script, number, tmp_path):
    (tmp_path / "softgate").mkdir()
    (tmp_path / "softgate" / "__init__.py").touch()
    (tmp_path / "omegaconf.py").write_text("DictConfig = dict")
    (tmp_path / "hydra.py").write_text("main = lambda **words: lambda function: function")
    code = f"""
    import builtins, os, sys

    class Last:
        def __del__(self, kill=os.kill, own=os.getpid()):
            kill(own, {int(number)})

    builtins.last = Last()  # goes when all else has gone

    class command:
        run = lambda *words: sys.exit(7)

    exits = None
    """
    (tmp_path / "softgate" / "cli.py").write_text(textwrap.dedent(code))
    line = [sys.executable, str(ROOT / script)]
    done = subprocess.run(line, capture_output=True, text=True, env=before(tmp_path))
    assert (done.returncode, done.stderr) == (7, "")


def test_importing_a_script_takes_no_signals_over(tmp_path):
    code = "import signal, sys; sys.path.insert(0, sys.argv[1]); import {};"
    code += "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    # Its own imports would take seconds, and what they do is not asked here.
    fakes = "import sys, types; sys.modules |= {n: types.ModuleType(n) for n in ('hydra', 'omegaconf')};"
    fakes += "sys.modules['hydra'].main = lambda **k: (lambda f: f); sys.modules['omegaconf'].DictConfig = dict;"
    fakes += "sys.modules |= {n: types.ModuleType(n) for n in ('softgate', 'softgate.cli')};"
    fakes += "sys.modules['softgate.cli'].command = sys.modules['softgate.cli'].exits = None;"
    for script in ("train", "evaluate"):
        line = [sys.executable, "-c", fakes + code.format(script), str(ROOT)]
        done = subprocess.run(line, capture_output=True, text=True, check=True, env=before(tmp_path))
        assert done.stdout == "True\n"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_before_a_job_ends_the_command_at_once(trained, number, capfd, monkeypatch):
    def leave(status: int) -> None:
        raise SystemExit(status)

    def main() -> None:
        stops.current.directory = trained.directory
        locks.take(trained.directory)
        signal.raise_signal(number)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        command.run(main, str(CONF), "train")
    assert ended.value.code == 128 + number
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"stopped by {NUMBERS[number]}: no checkpoint of {trained.directory} is written yet; ")
    assert not (trained.directory / locks.LOCK).exists()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_a_job_ends_it_with_one_line_and_the_signals_status(trained, number, capfd):
    def job(cfg: object) -> None:
        signal.raise_signal(number)

    with pytest.raises(SystemExit) as ended:
        exits.job(job, None)
    assert ended.value.code == 128 + number
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert trained.stopped(signal.SIGINT) == 128 + number  # a later one changes nothing, and says nothing
    assert capfd.readouterr().err == ""


def test_only_the_first_of_several_processes_speaks(trained, capfd, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert trained.stopped(signal.SIGINT) == 130
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["run", "with blanks", "it's", 'say "x"', "a,b=[c]", "ünï"])
def test_the_line_says_what_goes_on(trained, tmp_path, name):
    trained.directory = trained.directory.rename(tmp_path / name)
    assert trained.on_disk().endswith("the same command begins anew")
    begun(trained.directory)
    assert trained.on_disk().startswith(f"no checkpoint of {trained.directory} is written yet; uv run train.py ")
    torch.save({"global_step": 7}, trained.directory / "checkpoints" / "last.ckpt")
    told = re.fullmatch(r"kept (.*), step 7; uv run train\.py (.*) goes on from it", trained.on_disk())
    assert Path(told[1]) == trained.directory / "checkpoints" / "last.ckpt"
    (word,) = shlex.split(told[2])
    assert unquoted(word.removeprefix("resume=")) == str(trained.directory)
    (read,) = OverridesParser.create().parse_overrides([word])
    assert str(getattr(read.value(), "text", read.value())) == str(trained.directory)
    (trained.directory / "summary.json").write_text(json.dumps({"status": "finished"}))
    assert trained.on_disk() == f"the run is finished, in {trained.directory}"
    os.utime(trained.directory / "summary.json", (1, 1))  # of an earlier part of the run
    assert trained.on_disk().startswith("kept ")


def test_a_damaged_checkpoint_does_not_silence_the_line(trained):
    begun(trained.directory)
    (trained.directory / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    assert "last.ckpt; uv run train.py resume=" in trained.on_disk()


def test_what_is_kept_of_an_evaluation(tmp_path):
    made = stops.Command("evaluate")
    assert made.on_disk() == "nothing was begun"
    made.directory = tmp_path
    assert made.on_disk() == f"no results are in {tmp_path} yet; the same command begins anew"
    (tmp_path / "runs.csv").write_text("run,acc\na,1\n")
    assert made.on_disk() == f"measures of 1 run are in {tmp_path / 'runs.csv'}; the same command begins anew"
    (tmp_path / "results.json").write_text("{}")
    assert made.on_disk() == f"the results are in {tmp_path}"
    made.since = time.time() + 10
    assert made.on_disk().startswith("no results")  # those are of another evaluation
