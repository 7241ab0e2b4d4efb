"""docs/extend.md: its files are written and its commands typed, as a reader would; each is short."""

import re
import shlex
import sys

import pytest

from configs import ROOT, TINY
from softgate import targets

SECTIONS = {
    title: re.findall(r"```(\w+)\n(.*?)```", body, re.DOTALL)
    for title, body in re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "extend.md").read_text(), re.M | re.S
    )
}


def test_all_are_there():
    kinds = " ".join(SECTIONS).lower()
    wanted = ("gate", "backbone", "data set", "optimiser", "metric", "callback", "experiment")
    assert all(word in kinds for word in wanted)


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_runs_and_is_short(title, typed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(targets, "_typed", set())
    commands = [text for language, text in SECTIONS[title] if language == "bash"]
    written = []
    for language, text in SECTIONS[title]:
        if language in ("python", "yaml"):
            name = text.partition("\n")[0].removeprefix("# ")
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.partition("\n")[2])
            written.append(path.stem)
            assert len([line for line in text.splitlines() if line.strip()]) <= 16, name
    assert len(commands) == 1
    words = shlex.split(commands[0])
    assert words[:3] == ["uv", "run", "train.py"]
    extra = [*TINY, "callbacks.grids.every_n_epochs=0", "hydra.run.dir=out"]
    if "experiment=first" in words:
        extra.remove("trainer.max_epochs=2")
    status, said = typed("train.py", *words[3:], *extra)
    assert (status, said) == (0, "")
    metrics = (tmp_path / "out" / "metrics.csv").read_text()
    assert all(name in metrics for name in ["val/acc", *(["weight_norm"] if "my_callback" in written else [])])
    assert "val/confidence" in metrics or "my_metric" not in written
    if "experiment=first" in words:
        assert "lr: 0.02" in (tmp_path / "out" / "config.yaml").read_text()
    for name in written:
        sys.modules.pop(name, None)
