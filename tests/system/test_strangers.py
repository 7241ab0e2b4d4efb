"""Files that somebody else made, one test for each reader: they are data, and a hostile one costs a sentence."""

import csv
import io
import json
import pickle
import re
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from rich.live import Live
from rich.text import Text

import finished_sweep as finished
from compared import CHEAP, FEW, evaluated
from pretended_sweep import AT, Pretender
from softgate import files, tables
from softgate.cli import exits
from softgate.cli.sweep import display, resume
from softgate.data import sources
from softgate.errors import SoftgateError, SoftgateWarning, printable
from softgate.evaluation import checkpoints, runs
from softgate.models import weights
from softgate.paths.packing import SiteLayout
from softgate.paths.recording import HEAD, HEAD_SIZE, MAGIC, Header, Layout, Recording, probe_hash
from softgate.training import summary
from softgate.training.callbacks import BestCheckpoint
from softgate.training.callbacks.film import Film
from softgate.training.checkpoints import restore

SECRET = "a secret of this machine"
SCRIPT = "<script>alert(1)</script>"
COLOUR = "\x1b[31m"


class Evil:
    """Makes a file where it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('evil').touch()",)


@pytest.fixture(autouse=True)
def _nothing_of_theirs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    yield
    assert not list(tmp_path.rglob("evil"))


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Pretender:
    return Pretender(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return finished.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def theirs(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "sweep"
    return finished.sweep(root, finished.options(images), arms=("none", "excitation"), seeds=(0, 1))


@pytest.fixture
def copied(theirs, tmp_path):
    return shutil.copytree(theirs, tmp_path / "sweep")


# -- tensors: checkpoints, weights, films, recordings --------------------------------------------------------


def evil_files(folder: Path) -> list[Path]:
    """Files that run code where they are unpickled: as PyTorch writes them, and bare."""
    torch.save({"state_dict": Evil(), "image": Evil(), "frames": {0: Evil()}}, folder / "a.pt")
    torch.save({"x": torch.zeros(2), "y": Evil()}, folder / "b.pt", _use_new_zipfile_serialization=False)
    (folder / "c.pt").write_bytes(pickle.dumps(Evil()))
    return [folder / f"{name}.pt" for name in "abc"]


def packed(path: Path) -> Path:
    """Tensors of a hundred megabytes in a file of a hundred kilobytes."""
    torch.save({"state_dict": {}, "x": torch.zeros(100 * 2**18)}, path)
    entries = zipfile.ZipFile(path)
    small = path.with_suffix(".small")
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as made:
        for name in entries.namelist():
            made.writestr(name, entries.read(name))
    small.replace(path)
    assert path.stat().st_size < 2**20
    return path


def test_a_checkpoint_runs_nothing_and_unpacks_to_no_more_than_it_is(tmp_path):
    for path in evil_files(tmp_path):
        with pytest.raises(SoftgateError, match=r"names code to run|not a checkpoint of plain data"):
            restore(path)
    with pytest.raises(SoftgateError, match=r"cut short \(it is \d+ bytes that unpack to 10\d{7}\)"):
        restore(packed(tmp_path / "bomb.ckpt"))


def test_a_file_of_weights_runs_nothing(tmp_path):
    for path in [*evil_files(tmp_path), packed(tmp_path / "bomb.pt")]:
        with pytest.raises(SoftgateError, match="not a file of plain tensors"):
            weights._read("resnet18", str(path))


def test_a_film_that_is_none_is_begun_anew_and_can_be_gone_on_with(tmp_path):
    image, values = torch.rand(3, 8, 8), torch.rand(3, 8, 8)
    hostile = [
        *({"image": image, "frames": {0: {"hard": torch.zeros(1).expand(3, 10**6, 10**6)}}}, [1], {"image": 1}),
        *({"image": image, "frames": {0: torch.zeros(3)}}, {"image": 1, "frames": {"x": {}}}),
    ]
    paths = evil_files(tmp_path)
    for number, content in enumerate(hostile):
        torch.save(content, tmp_path / f"h{number}.pt")
        paths.append(tmp_path / f"h{number}.pt")
    for path in [*paths, packed(tmp_path / "bomb.pt")]:
        (tmp_path / "film").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "film" / "film.pt")
        film = Film(tmp_path / "film")
        film.load(before=5)
        assert film.frames == {}
        film.add(1, image, {"hard": values})
        assert len(film.draw("film", "cell")) == 2


def recording(folder: Path, **changed) -> Path:
    """A recording of two images and one ReLU, with changes in its header."""
    folder.mkdir()
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    layout = Layout([SiteLayout("relu", "relu", (16,), 1)])
    header = Header("Net", "n", probe_hash(images, labels), 2, layout, None, None, False)
    plain = header.plain() | changed
    files.write_json(plain, folder / "header.json")
    torch.save({"images": images, "labels": labels}, folder / "probe.pt")
    head = HEAD.pack(MAGIC, header.identity(), 0, 0.0, 2, layout.row)
    (folder / "step=00000000.gates").write_bytes(head.ljust(HEAD_SIZE, b"\0") + bytes(2 * layout.row))
    return folder


SITE = {"name": "relu", "kind": "relu", "shape": [16], "bits": 1, "window": None}


@pytest.mark.parametrize(
    "changed",
    [
        {"images": -1}, {"images": 0}, {"images": 10**12}, {"images": "x"}, {"images": None}, {"hard": "abc"},
        {"hard": [{**SITE, "shape": [-16]}]}, {"hard": [{**SITE, "shape": [10**9, 10**9]}]}, {"hard": [[1]]},
        {"hard": [{**SITE, "shape": ["x"]}]}, {"hard": [{**SITE, "bits": 10**6}]}, {"hard": [{**SITE, "bits": "x"}]},
        {"hard": [{**SITE, "window": [1, 2]}]}, {"hard": [{**SITE, "window": {"evil": 1}}]}, {"hard": [{}]},
        {"hard": [{**SITE, "__class__": "x"}]}, {"soft": "x"}, {"hard": {"a": 1}}, {"format": [1]}, {"version": "x"},
    ],
)  # fmt: skip
def test_the_header_of_a_recording_is_refused_in_a_sentence(tmp_path, changed):
    assert len(Recording(recording(tmp_path / "good")).images) == 2
    with pytest.raises(SoftgateError) as error:
        Recording(recording(tmp_path / "bad", **changed))
    assert "\n" not in str(error.value)


def test_a_recording_runs_nothing(tmp_path):
    for number, path in enumerate([*evil_files(tmp_path), packed(tmp_path / "bomb.pt")]):
        place = recording(tmp_path / f"r{number}")
        shutil.copy(path, place / "probe.pt")
        with pytest.raises(SoftgateError, match="truncated or damaged"):
            Recording(place)
    place = recording(tmp_path / "list")
    torch.save({"images": [1], "labels": None}, place / "probe.pt")
    with pytest.raises(SoftgateError, match="is not the probe set"):
        Recording(place)
    (place / "header.json").write_text("[" * 10**5)
    with pytest.raises(SoftgateError, match="is truncated"):
        Recording(place)


@pytest.mark.parametrize("named", ["/etc/passwd", "x/..", "..", "../../mine", "s3://bucket/x", "checkpoints/last.ckpt"])
def test_the_best_checkpoint_that_is_replaced_is_the_runs_own_whatever_a_checkpoint_names(tmp_path, named):
    folder = tmp_path / "run" / "checkpoints"
    state = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), named)
    best = BestCheckpoint(folder)
    score = torch.tensor(0.5)
    best.load_state_dict({**state, "best_k_models": {named: score}, "best_model_score": score, "kth_value": score})
    found = {best.best_model_path, best.kth_best_model_path, best.last_model_path, *best.best_k_models}
    assert found == {str(folder / "best.ckpt")}


# -- text: config.yaml, hydra.yaml, overrides.yaml, summary.json, results.json, sweep files -------------------


def report(copied: Path, *words: str) -> tuple[dict, str]:
    out = copied.parent / "out"
    found = evaluated(out, f"runs={copied}/**", *FEW, *CHEAP, *words)["comparison"]
    return found, "".join((out / name).read_text() for name in ("report.html", "report.md", "results.json", "runs.csv"))


def test_what_a_config_names_is_shown_and_neither_looked_up_nor_made(copied, capsys):
    for path in copied.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config |= {"name": "${oc.env:SECRET}", "x": {"_target_": "os.system", "_args_": ["touch evil"]}}
        path.write_text(yaml.safe_dump(config))
    about = {"hydra": {"runtime": {"choices": {"surrogate": "${oc.env:SECRET}"}}, "callbacks": {"_target_": "os.x"}}}
    (copied / "none-0" / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(about))
    found, text = report(copied)
    assert len(found["runs"]) == 4
    assert "${oc.env:SECRET}" in text
    assert SECRET not in text + capsys.readouterr().out


HOSTILE_YAML = [
    *("!!python/object/apply:os.system ['touch evil']", "!!python/name:os.system", "[", "\x00", "text", "[1, 2]", "1"),
    *("hydra: 3", "hydra: {runtime: 3}", "hydra: {runtime: {choices: [1]}}", "hydra: {overrides: {task: {a: b}}}"),
    *("- {a: b}\n- 1\n- [x]", "[" * 5000, "{a: &a [*a]}"),
]


@pytest.mark.parametrize("content", HOSTILE_YAML)
def test_yaml_of_any_kind_costs_at_most_the_run(copied, content):
    for name in ("hydra.yaml", "overrides.yaml"):
        (copied / "none-0" / ".hydra" / name).write_text(content)
    (copied / "multirun.yaml").write_text(content)
    every = checkpoints.directories(f"{copied}/**")
    found, left = runs.read(every, "last")
    assert [len(found), left] == [4, []]
    assert all(isinstance(word, str) for run in found for word in (run.command, run.sweep_command or ""))
    (copied / "none-0" / "config.yaml").write_text(content)
    found, left = runs.read(every, "last")
    assert len(found) == 3
    assert re.fullmatch(r"none-0: its config.*\.", left[0])


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("summary.json", {"seconds": "x"}), ("summary.json", {"environment": {"packages": 3}}),
        ("summary.json", {"environment": [1]}), ("summary.json", {"started": {"a": 1}}),
        ("config.yaml", {"data": {"fraction": "x"}}), ("config.yaml", {"surrogate": {"gate": 3}}),
        ("config.yaml", {"surrogate": [1]}), ("config.yaml", {"data": 3}), ("config.yaml", {"seed": "x"}),
    ],
)  # fmt: skip
def test_a_run_whose_files_hold_other_things_than_a_run_writes_is_left_out(copied, file, changed):
    path = copied / "none-0" / file
    found = yaml.safe_load(path.read_text()) | changed
    path.write_text(json.dumps(found))
    read, left = runs.read(checkpoints.directories(f"{copied}/**"), "last")
    assert len(read) == 3
    assert re.fullmatch(
        r"none-0: its (summary\.json|config\.yaml) is damaged\.|none-0: its config has no seed\.", left[0]
    )


def test_script_in_the_names_of_a_strangers_run_is_shown_as_text(copied, capsys):
    evil = f"{SCRIPT}{COLOUR}"
    for path in copied.glob("none-*"):
        (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"name={evil}\n```\n", "seed=0"]))
        about = json.loads((path / "summary.json").read_text())
        about["environment"] |= {"hardware": evil, "packages": {evil: evil}, "commit": evil, "platform": evil}
        (path / "summary.json").write_text(json.dumps(about | {"started": evil}))
        choices = {"hydra": {"runtime": {"choices": {"surrogate": evil}}}}
        (path / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(choices))
        config = yaml.safe_load((path / "config.yaml").read_text())
        (path / "config.yaml").write_text(yaml.safe_dump(config | {"name": evil, evil: evil}))
    (copied / "sweep.csv").write_text(f"job,directory\n{evil},../../x\n{evil},/etc/x\n")
    report(copied)
    page = (copied.parent / "out" / "report.html").read_text()
    assert SCRIPT not in page
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in page
    text = (copied.parent / "out" / "report.md").read_text()
    assert text.count("```") == 2  # nothing ends the block of commands early
    outside = text.split("```")[2]
    assert "&lt;script>" in outside
    assert "<script" not in outside
    assert "\x1b" not in text + capsys.readouterr().out


def test_the_jobs_of_a_strangers_sweep_are_read_as_data(sweep, tmp_path, capfd):
    assert sweep("seed=0,1", AT) == 0
    jobs = sorted((tmp_path / "sweep").glob("*-*"))
    for content in ("[1, 2]", '{"best/val/acc": "evil", "seconds": "x", "status": "finished"}', "[" * 10**5, "{"):
        (jobs[0] / "summary.json").write_text(content)
        assert sweep("seed=0,1", AT, "sweep.resume=true") == 0
    (jobs[0] / ".hydra" / "config.yaml").write_text("!!python/object/apply:os.system ['touch evil']")
    capfd.readouterr()
    assert sweep("seed=0,1", AT, "sweep.resume=true") == 2
    assert "config.yaml is damaged" in capfd.readouterr().err


def test_what_was_swept_is_compared_and_never_taken_from_a_sweeps_own_record(tmp_path):
    hostile = ["seed=0,1", "plugins=[evil]", "hydra.searchpath=[file:///x]"]
    for number, content in enumerate([json.dumps(hostile), "{", "[" * 10**5, "3", '{"a": 1}']):
        place = tmp_path / "outputs" / "sweeps" / "d" / str(number)
        place.mkdir(parents=True)
        (place / resume.RECORD).write_text(content)
    with pytest.raises(SoftgateError, match="no sweep of the same words"):
        resume.directory(["seed=0,1", "sweep.resume=true"])
    for name in ("${oc.env:SECRET}", "a,hydra.searchpath=[x]", "x"):
        place = tmp_path / "outputs" / "sweeps" / "e" / name
        place.mkdir(parents=True)
        files.write_json(["seed=0,1"], place / resume.RECORD)
    assert resume.directory(["seed=0,1", "sweep.resume=true"]) == ["hydra.sweep.dir=outputs/sweeps/e/x"]


@pytest.mark.parametrize("name", ["multirun.yaml", "0-x/output.log", "0-x"])
def test_a_sweep_with_a_link_that_leads_out_of_it_does_not_go_on(sweep, tmp_path, capfd, name):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "sweep" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(mine)
    assert sweep("seed=0,1", AT, "sweep.resume=true") == 2
    assert f"{name} is a link that leads out of the directory" in capfd.readouterr().err
    assert mine.read_text() == "mine"


def test_a_partial_file_that_is_a_link_is_not_written_through(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("last.ckpt", "last.ckpt.partial"):
        (tmp_path / name).symlink_to(mine)
    files.write("new", tmp_path / "last.ckpt")
    assert mine.read_text() == "mine"
    assert (tmp_path / "last.ckpt").read_text() == "new"
    assert not (tmp_path / "last.ckpt").is_symlink()


def test_the_progress_of_a_job_is_shown_as_text_whatever_it_holds(tmp_path, sweep):
    from types import SimpleNamespace

    job = SimpleNamespace(directory=tmp_path)
    for content in ("[1]", "{", "\x00", "[" * 10**5, json.dumps({"epoch": {"a": [1]}, "loss": f"{COLOUR}x"})):
        (tmp_path / display.PROGRESS).write_text(content)
        line = display.progress(job, 1.0)
        assert "\x1b" not in shown(Text(line))
    assert summary.number({"a": float("nan"), "b": True, "c": "1"}, "a") is None


# -- what is written and shown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "=HYPERLINK(1)",
        "+cmd|' /C calc'!A0",
        "-1+1",
        "@SUM(1)",
        "\t=1",
        "+x",
        "-a",
        "=",
        "＝1+1",
        "-1 cmd|x",
        "'=1",
    ],
)
def test_a_cell_that_a_spreadsheet_would_calculate_is_text(tmp_path, text):
    path = tmp_path / "a.csv"
    files.write_csv([{text: text, "n": 1}], path)
    files.append_csv([{text: text, "n": 2}], path, [text, "n"])
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell[0] for cell in cells[::2]] == ["'"] * 3
    assert files.csv_text(["\r=1"], []).startswith("\"'\r=1")
    assert files.read_csv(path) == [{text: text, "n": "1"}, {text: text, "n": "2"}]


@pytest.mark.parametrize(
    "value", [-1.5, "-1.5", "+3", "-1e-05", "-inf", "-.5", "+1.2 pp", "-3 %", "-", "", None, "a=b", "'a"]
)
def test_numbers_and_plain_words_stay_as_they_are(value):
    lines = files.csv_text(["x", "y"], [{"x": value, "y": 0}]).splitlines()
    assert lines[1] == f"{'' if value is None else value},0"


def shown(*what, **options) -> str:
    console = tables.Terminal(file=io.StringIO(), force_terminal=True, width=100)
    console.print(*what, **options)
    return console.file.getvalue()


COMMANDS = [
    *("\x1b[2J", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x9b31m", "\x1bc", "\x07", "\x08", "\x7f"),
    *("\u202e", "\x00"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_gives_the_terminal_no_command(command, capsys):
    name = f"a{command}b"
    assert printable(name) == "ab"
    made = tables.Table(["arm", name], [["none", name], [name, tables.Cell(name, mark="better")]], title=name)
    for text in (shown(made.rich()), shown(name, markup=False), shown(Text(name)), shown(f"[bold]{name}[/]")):
        bare = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert not any(sign in bare for sign in (command, "\x1b", "\x9b"))
        assert bare.index("a") < bare.index(
            "b"
        )  # rich prints a text in parts: the rest of a command may stay as letters
    assert "\x1b[32m" in shown(made.rich())  # our own colours stay
    with pytest.raises(SystemExit):
        exits.refuse(f"{name}: wrong")
    assert capsys.readouterr().err == "error: ab: wrong\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(name, SoftgateWarning, stacklevel=1)
    assert str(caught[0].message) == "ab"


def test_live_lines_are_clean_and_lines_written_over_stay_so():
    console = tables.Terminal(file=io.StringIO(), force_terminal=True, width=100)
    with Live(console=console, auto_refresh=False) as live:
        live.update(Text("a\x1b[5mb\x1b]0;x\x07c"), refresh=True)
    assert "ab" in console.file.getvalue()
    assert not any(command in console.file.getvalue() for command in ("\x1b[5m", "\x1b]", "\x07"))
    assert shown("1 of 2", end="\r").endswith("\r")


def test_markup_in_a_config_is_printed_as_it_is():
    console = tables.Terminal(file=io.StringIO(), width=100)
    summary.print_tree({"name": "[/]", "[red]key": {"[link=http://x]": "[bold]v"}}, console)
    text = console.file.getvalue()
    assert all(part in text for part in ("[/]", "[red]key", "[link=http://x]", "[bold]v"))


# -- archives -------------------------------------------------------------------------------------------------


def archive(path: Path, *members: tuple[str, dict], content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, about in (("data", {"type": tarfile.DIRTYPE, "mode": 0o755}), *members):
            member = tarfile.TarInfo(name)
            for key, value in about.items():
                setattr(member, key, value)
            if member.isreg():
                member.size = len(content)
            made.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("../evil", {}), ("data/../../evil", {}), ("data/link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
        ("data/link", {"type": tarfile.SYMTYPE, "linkname": "inside"}), ("data/pipe", {"type": tarfile.FIFOTYPE}),
        ("data/hard", {"type": tarfile.LNKTYPE, "linkname": "../../mine"}), ("data/dev", {"type": tarfile.CHRTYPE}),
    ],
)  # fmt: skip
def test_an_archive_puts_nothing_outside_of_its_folder(tmp_path, name, about):
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    with pytest.raises(SoftgateError, match="is not extracted"):
        sources.extract(archive(tmp_path / "a.tgz", ("data/a", {}), (name, about)), root, "data")
    assert list((tmp_path / "deep").rglob("*")) == [root]


def test_an_absolute_path_in_an_archive_stays_inside(tmp_path):
    place = tmp_path / "outside" / "evil"
    root = tmp_path / "root"
    root.mkdir()
    sources.extract(archive(tmp_path / "a.tgz", (str(place), {})), root, "data")
    assert not place.exists()
    assert list(root.rglob("*")) == [root / "data"]


def test_an_archive_that_grows_beyond_its_bound_is_stopped_and_leaves_nothing(tmp_path):
    bomb = archive(tmp_path / "a.tgz", *((f"data/{i}", {}) for i in range(4)), content=bytes(2**20))
    assert bomb.stat().st_size < 2**15
    root = tmp_path / "root"
    root.mkdir()
    for most in ((100, 3 * 2**20), (4, 2**30)):
        with pytest.raises(SoftgateError, match=r"it unpacks to more than \d+ members or \d+ bytes"):
            sources.extract(bomb, root, "data", most)
        assert not list(root.iterdir())
    with pytest.raises(SoftgateError, match="it has no folder other"):
        sources.extract(bomb, root, "other")
    (tmp_path / "b.tgz").write_bytes(bomb.read_bytes()[:3000])
    with pytest.raises(SoftgateError, match="is not extracted"):
        sources.extract(tmp_path / "b.tgz", root, "data")
    assert not list(root.iterdir())
    sources.extract(bomb, root, "data")
    assert len(list((root / "data").iterdir())) == 4


def test_no_module_reads_what_could_run_code():
    source = Path(files.__file__).parent
    text = {path.relative_to(source).as_posix(): path.read_text() for path in source.rglob("*.py")}
    never = [r"\bpickle\.load", "allow_pickle=True", r"\byaml\.\w*load\(", r"weights_only=False[,)]", "extract_archive"]
    never += [r"(?<![.\w])eval\(", r"(?<![.\w])exec\(", r"hydra\.utils", r"\binstantiate\(", r"(?<![\w.])Console\("]
    asks_first = {
        r"hydra\.utils": ["targets.py"],
        r"\binstantiate\(": ["targets.py"],
    }  # tests/test_targets.py
    for pattern in never:
        found = [path for path, content in text.items() if re.search(pattern, content)]
        assert found == asks_first.get(pattern, []), pattern
    assert "weights_only=True" in text.pop("app/snippets.py")  # words for a user to run, not a call
    assert [path for path, content in text.items() if "torch.load(" in content] == ["files.py"]


PROMISED = (
    *("training/test_strangers_files.py", "test_targets.py"),
    *("training/test_contact.py", "system/test_strangers.py"),
)


def test_every_promise_names_a_test_that_exists():
    root = Path(__file__).parents[2]
    named = re.findall(r"`(test_\w+)`", (root / "docs" / "security.md").read_text())
    there = [root / "tests" / place for place in PROMISED]
    defined = re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in there), flags=re.MULTILINE)
    assert len(named) > 10
    assert set(named) <= set(defined)
