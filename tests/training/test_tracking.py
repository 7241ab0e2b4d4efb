"""What a run leaves in Weights & Biases, read from the record of an offline run."""

import json
from pathlib import Path
from typing import Any

import pytest

from softgate.training import tracking
from trained import fitted
from wandb_file import read_run

FEW = ("callbacks=alignment", "callbacks.alignment.images=8", "callbacks.alignment.few=2")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Any]:
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        words = ("callbacks.alignment.draws=2", "callbacks.alignment.dear_epochs=0", "callbacks.grids.every_n_epochs=0")
        fitted(folder, "logger=wandb", *FEW, *words, "optim.lr=0.01")
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return [file, *read_run(file)]


def of(records: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records[1:] if record.WhichOneof("record_type") == kind]


def rows(records: list[Any]) -> list[dict[str, Any]]:
    made = []
    for each in of(records, "history"):
        made.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.item})
    return made


def test_curves_stand_over_epochs_and_the_best_is_in_the_summary(records):
    axes = {metric.name or metric.glob_name: metric for metric in of(records, "metric")}
    for name in ("val/acc", "val/loss", "train/*", "val/*", "align/*"):
        assert axes[name].step_metric == "epoch"
    assert axes["val/acc"].summary.max
    assert axes["val/loss"].summary.min
    assert "*" not in axes
    told = {item.key: json.loads(item.value_json) for each in of(records, "summary") for item in each.update}
    best = max((row["val/acc"], -row["epoch"]) for row in rows(records) if "val/acc" in row)
    assert told["best/val/acc"] == pytest.approx(best[0])
    assert told["best/epoch"] == -best[1]


def test_ends_of_intervals_are_in_a_table_and_not_among_the_curves(records):
    logged = rows(records)
    assert any(key.startswith("align/") for row in logged for key in row)
    assert not [key for row in logged for key in row if key.endswith(tracking.ENDS)]
    tables = {key: row for row in logged for key in row if key.startswith(("alignment/intervals", "results", "curves"))}
    assert {key.partition("/path")[0] for key in tables} >= {"alignment/intervals/_type", "results/_type"}
    folder = Path(records[0]).parent / "files"
    (file,) = folder.rglob("intervals*.table.json")
    table = json.loads(file.read_text())
    place = {name: k for k, name in enumerate(table["columns"])}
    cosine = [row for row in table["data"] if row[place["metric"]] == "noise_cosine"]
    assert len(cosine) == 4  # two read-outs, two epochs
    assert all(row[place["low"]] <= row[place["value"]] <= row[place["high"]] for row in cosine)
    assert list(folder.rglob("curves*.png"))


def test_a_single_run_has_a_name_a_group_tags_and_a_config_without_noise(records):
    run = of(records, "run")[0]
    assert run.display_name == "digits-resnet18-excitation-seed0 trainer.max_epochs=2 optim.lr=0.01"
    assert run.run_group == "digits-resnet18-excitation"
    assert list(run.tags) == ["digits", "resnet18", "sigmoid"]
    config = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optim"]["lr"] == 0.01
    assert not {"print_config", "logger", "plugins", "trust"} & set(config)
    assert "null" not in json.dumps({key: config[key] for key in ("data", "model", "optim", "surrogate")})
