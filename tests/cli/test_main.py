"""The command `softgate`: what it starts, the folder it writes, and the wheel it comes in."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from configs import ROOT
from softgate import targets
from softgate.cli import main


def said(monkeypatch, capfd, *words):
    monkeypatch.setattr(sys, "argv", ["softgate", *words])
    try:
        main.main()
        status = 0
    except SystemExit as end:
        status = end.code
    out = capfd.readouterr()
    return status, out.out + out.err


def test_what_there_is_and_what_there_is_not(monkeypatch, capfd):
    status, text = said(monkeypatch, capfd)
    assert status == 0
    assert all(f"  {name}" in text for name in main.COMMANDS)
    status, text = said(monkeypatch, capfd, "trian")
    assert status == 2
    assert "Did you mean 'train'" in text


def test_the_starter_folder_trains_as_it_is(monkeypatch, capfd, tmp_path, typed):
    monkeypatch.chdir(tmp_path)
    status, text = said(monkeypatch, capfd, "init", "mine")
    assert status == 0
    assert "my_model.py" in text
    status, text = said(monkeypatch, capfd, "init", "mine")
    assert status == 2
    assert "there is something in it already" in text
    monkeypatch.setattr(targets, "_typed", set())
    for path in (tmp_path / "mine").iterdir():
        path.rename(tmp_path / path.name)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "callbacks=none"]
    status, text = typed("train.py", "experiment=first", *words, "hydra.run.dir=out", "print_config=false")
    assert (status, text) == (0, "")
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert all(f"_target_: {name}" in config for name in ("my_model.SmallNet", "my_data.make"))
    for name in ("my_model", "my_data"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_wheel_alone_trains_and_evaluates_in_an_empty_folder(tmp_path):
    subprocess.run(["uv", "build", "--out-dir", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert any(name.endswith("/src/softgate/py.typed") for name in archive.getnames())
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for name in ("conf/train.yaml", "py.typed", "__init__.pyi"):
        assert (tmp_path / "site" / "softgate" / name).is_file()
    entry = next((tmp_path / "site").glob("*.dist-info")) / "entry_points.txt"
    assert "softgate = softgate_start:main" in entry.read_text()

    def softgate(*words, where):
        code = "import sys; from softgate_start import main; sys.argv[0] = 'softgate'; main()"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        subprocess.run([sys.executable, "-c", code, *words], cwd=where, env=environment, check=True)

    softgate("init", "mine", where=tmp_path)
    home = tmp_path / "mine"
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "print_config=false", "hydra.run.dir=out"]
    softgate("train", "experiment=first", *few, where=home)
    softgate("evaluate", "runs=out", "trust=[my_model,my_data]", "hydra.run.dir=seen", where=home)
    assert (home / "seen" / "results.json").is_file()
