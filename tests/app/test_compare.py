"""Runs side by side: the table, the grids of an epoch, runs that are damaged or without anything."""

import shutil

import pytest

from app_options import options
from softgate import SoftgateError
from softgate.app import compare
from softgate.app.library import Library, find


def test_the_table_has_what_the_runs_wrote(library):
    heads, rows = compare.table(library)
    assert heads == [*compare.FIRST, "soft noise cosine"]
    assert rows == [
        ["excitation", "sigmoid", 0, "finished", 20.0, 20.0, 1.2],
        ["none", "hard", 1, "finished", 20.0, 20.0, 1.2],
    ]
    assert compare.epochs(library) == 2, "counted from 1"
    assert list(compare.measured(library)) == ["accuracy", "soft noise cosine"]


def test_grids_of_the_same_epoch_or_the_nearest_before(library):
    for epoch, expected in ((0, 1), (1, 1), (2, 2), (9, 2)):
        sides = compare.sides(library, library.labels, epoch)
        assert [(side.label, side.epoch) for side in sides] == [(label, expected) for label in library.labels]
        assert all(side.picture is not None for side in sides)


def test_each_measure_that_is_chosen_is_a_chart_and_every_run_a_line(library):
    drawn = compare.charts(library, library.labels, 2, ["soft noise cosine", "accuracy", "nothing"])
    assert list(drawn.pictures) == ["soft noise cosine", "accuracy"]
    assert list(drawn.legend) == library.labels
    elsewhere = compare.charts(library, library.labels, 1, ["accuracy"])
    assert elsewhere.pictures["accuracy"].tobytes() != drawn.pictures["accuracy"].tobytes(), "the cursor moves"


def test_a_run_without_checkpoints_or_figures_is_said_and_others_are_shown(runs, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(runs / "none" / "config.yaml", bare)
    broken = tmp_path / "broken"
    shutil.copytree(runs / "none", broken)
    (broken / "metrics.csv").write_bytes(b"\xff\xfe,\n")
    (broken / "grids" / "epoch=000.png").write_bytes(b"no picture")
    last = broken / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:500])
    several = Library(options(f'runs="{tmp_path}/*"', "accelerator=cpu"))
    with pytest.raises(SoftgateError, match="run bare: it has no checkpoint"):
        several.moments("bare")
    with pytest.raises(SoftgateError, match="cut short"):
        several.network("broken", "last")
    assert several.network("broken", "best").names[3] == "3"
    assert [row[0] for row in compare.table(several)[1]] == ["bare", "broken"]
    assert [side.picture for side in compare.sides(several, ["bare", "broken"], 1)] == [None, None]
    assert compare.charts(several, ["bare"], 1, ["accuracy"]).pictures == {}


def test_no_runs_are_one_sentence(tmp_path):
    with pytest.raises(SoftgateError, match="there is no run's directory and no checkpoint"):
        find([f"{tmp_path}/**"])


def test_where_there_may_be_none_yet_later_runs_are_found(runs, tmp_path):
    library = Library(options(f'runs="{tmp_path}/*"', "accelerator=cpu"), empty=True)
    assert library.labels == []
    shutil.copytree(runs / "none", tmp_path / "none")
    library.refresh()
    assert library.labels == ["none"]
    shutil.rmtree(tmp_path / "none")
    library.refresh()
    assert library.labels == ["none"], "what is looked at stays"
