"""The notebooks of examples/: they run from top to bottom, at a small size, and lie in the tree without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

SMALL = {
    "1-pullbacks-of-a-network": ["EPOCHS = 1"],
    "2-your-own-training-loop": ["EPOCHS = 1"],
    "3-compare-two-arms": [
        "SEEDS = [0]",
        "EPOCHS = 1",
        "MORE = ['trainer.limit_train_batches=2', 'trainer.limit_val_batches=1', 'data.size=16', 'callbacks=none']",
    ],
}
"""What the settings of each are in a test."""


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder, with other settings; gives its cells of code with their outputs."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")

    def run(name: str) -> list:
        notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
        settings = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        known = {line.split(" = ")[0] for line in settings.source.splitlines() if " = " in line}
        assert {line.split(" = ")[0] for line in SMALL[name]} <= known
        settings.source += "\n" + "\n".join(SMALL[name])
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    return run


def shown(cells, kind: str) -> list[str]:
    """What cells have displayed in one form."""
    return [each.data[kind] for cell in cells for each in cell.outputs if kind in each.get("data", {})]


@pytest.mark.slow
def test_the_first_runs_without_weights_and_shows_pictures_and_the_coverage_table(executed):
    cells = executed("1-pullbacks-of-a-network")
    assert len(shown(cells, "image/png")) == 2
    (table,) = shown(cells, "text/html")
    assert "4 of 4 covered" in table
    assert all(len(words) < 1000 for words in shown(cells, "text/plain"))
    assert "a network of its own" in cells[1].outputs[0].text


def test_the_second_trains_through_soft_gates(executed):
    cells = executed("2-your-own-training-loop")
    assert len(shown(cells, "image/png")) == 3
    assert "5 T = 0.030" in cells[-1].outputs[0].text


@pytest.mark.slow
def test_the_third_compares_two_arms(executed):
    cells = executed("3-compare-two-arms")
    assert len(shown(cells, "image/png")) == 2
    (report,) = shown(cells, "text/markdown")[-1:]
    assert "excitation" in report
    assert "report.html" in cells[-1].outputs[0].text


def test_there_are_settings_for_every_notebook():
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_lies_in_the_tree_as_if_never_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}  # no version of whoever saved it
