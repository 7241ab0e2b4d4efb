"""Files are written whole or not at all, and nowhere but in `softgate.files`."""

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from softgate import files

SRC = Path(__file__).parents[1] / "src"

ALLOWED = {
    ("softgate/cli/sweep/processes.py", "self.log.open"): "the output of a job, which a process of its own writes",
    ("softgate/cli/sweep/launch.py", "job.save"): "a job's own method, which writes by softgate.files",
    ("softgate/figures/style.py", "made.savefig"): "into memory",
    ("softgate/figures/style.py", "self.figure.savefig"): "into memory",
}
"""Calls outside files.py that look like writers, and why they may stay."""


def writers(tree: ast.AST) -> list[str]:
    """The calls in a module that write a file themselves."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        given = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
        if last == "open":  # Image.open and the like have no mode
            words = [each for each in given if isinstance(each, str) and set(each) <= set("rwaxbt+")]
            if any(set(each) & set("wax+") for each in words):
                found.append(name)
        elif last in {"write_text", "write_bytes", "savefig", "to_csv", "tofile", "imwrite", "save_image", "dump"}:
            found.append(name)
        elif last in {"save", "savez", "savez_compressed", "savetxt"}:
            into = {ast.unparse(each) for each in node.args}
            if (
                name not in {"files.save", "save", "figures.save"} and "file" not in into
            ):  # an open file, by files.replacing
                found.append(name)
        elif name in {"csv.writer", "csv.DictWriter", "os.replace", "os.rename", "shutil.copy", "shutil.move"}:
            found.append(name)
    return found


def test_no_module_but_files_writes_a_file_itself():
    found = {
        (path.relative_to(SRC).as_posix(), name)
        for path in SRC.rglob("*.py")
        if path != SRC / "softgate" / "files.py"
        for name in writers(ast.parse(path.read_text()))
    }
    assert found == set(ALLOWED)  # an entry that nothing needs any more is taken out


@pytest.mark.parametrize(
    "code",
    [
        "path.open('w')", "open(path, 'wb')", "path.open(mode='a')", "path.open('r+')", "path.write_text(x)",
        "csv.writer(file)", "json.dump(x, file)", "torch.save(x, path)", "np.savez(path, **x)", "figure.savefig(path)",
        "image.save(path)", "OmegaConf.save(x, path)", "os.replace(a, b)",
    ],
)  # fmt: skip
def test_the_search_finds_every_way_to_write(code):
    assert writers(ast.parse(code))


@pytest.mark.parametrize("code", ["path.open()", "path.open('rb')", "Image.open('wax.png')", "files.save(x, path)"])
def test_the_search_lets_reading_be(code):
    assert writers(ast.parse(code)) == []


@pytest.mark.parametrize(
    "written",
    [
        lambda path: files.write("new", path),
        lambda path: files.write_json({"new": 1}, path),
        lambda path: files.write_csv([{"new": 1}], path),
        lambda path: files.save({"new": 1}, path),
    ],
    ids=["text", "json", "csv", "tensors"],
)
def test_where_the_disk_fails_the_old_file_stands_and_nothing_else(written, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            written(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    written(path)
    assert b"new" in path.read_bytes()


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    files.save({"weights": torch.arange(3)}, tmp_path / "good")
    assert files.load(tmp_path / "good")["weights"].tolist() == [0, 1, 2]
    files.save({"weights": Evil()}, tmp_path / "evil")
    with pytest.raises(pickle.UnpicklingError):
        files.load(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()


def test_csv_files_grow_by_whole_rows_under_one_head(tmp_path):
    path = tmp_path / "a.csv"
    files.append_csv([{"a": 1, "b": 2}], path, ["a", "b"])
    files.append_csv([{"b": 4, "c": 5}], path, ["a", "b"])
    assert path.read_bytes() == b"a,b\r\n1,2\r\n,4\r\n"
    with path.open("a") as file:
        file.write("5,")
    assert files.read_csv(path) == [{"a": "1", "b": "2"}, {"a": "", "b": "4"}]
    assert files.read_csv(tmp_path / "none.csv") == []


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    path = tmp_path / "a.json"
    files.write_json({"a": float("nan"), "b": [float("inf"), (1.5,)], "c": {"d": "x"}}, path)
    assert json.loads(path.read_text()) == {"a": None, "b": [None, [1.5]], "c": {"d": "x"}}
