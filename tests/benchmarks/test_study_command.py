"""The study's command: what it refuses and prints; and real runs, from their words to their rows."""

import json
import subprocess
import sys

import pretended_study as pretended
import pytest
import study
import torch
from generalization_study.ledger import COLUMNS, MEASURES, Ledger
from generalization_study.measures import unpacked
from generalization_study.plan import FINAL, TUNE, Job, Plan

from softgate.data import ImageData
from softgate.training.checkpoints import restore


def typed(capsys, *words: str) -> tuple[int, str, str]:
    status = study.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cells", "Z"], "--cells=Z: there is no such name; allowed: A, B, C, D, E, F, G, H, I, J."),
        (["--arms", "sugr", "--status"], "--arms=sugr: there is no such name; did you mean sugar?"),
        (["--budget", "3d", "--data", "."], "--budget=3d: a number with s, m or h is needed, such as 3h."),
        (["--workers", "0", "--data", "."], "--workers=0: a whole number >= 1 is needed."),
        (["--cells", "B"], "--data: the folder of the data sets is needed."),
        (["--report", "--cells", "B"], "--cells: it does not go with --report."),
        (["--status", "--budget", "1h"], "--budget: it does not go with --status."),
        (["--merge", ".", "--data", "."], "--data: it does not go with --merge."),
        (["--unfinished", "--data", "."], "--unfinished: it does not go with making runs."),
    ],
)
def test_what_cannot_be_is_one_sentence_and_status_2(capsys, tmp_path, words, said):
    status, out, err = typed(capsys, *words, "--folder", tmp_path / "results")
    assert (status, out) == (2, "")
    assert err.startswith(said.split(" did you mean")[0])
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_images_that_are_not_there_are_named_before_anything_begins(capsys, tmp_path):
    (tmp_path / "imagenette2-160").mkdir()
    words = ("--data", tmp_path, "--folder", tmp_path / "results", "--cells")
    status, _, err = typed(capsys, *words, "B,G")
    assert status == 2
    assert err == (
        f"--data={tmp_path}: there is no folder {tmp_path}/cifar10-jpeg, which cell G takes its images from.\n"
    )
    assert not (tmp_path / "results").exists()


def test_a_cell_for_a_gpu_is_refused_without_one(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "imagenette2-160").mkdir()
    status, _, err = typed(capsys, "--data", tmp_path, "--folder", tmp_path / "results", "--cells", "H")
    assert (status, err) == (2, "--cells=H: a GPU is needed, and there is none.\n")


def test_the_status_says_rates_final_runs_and_what_comes_next(capsys, tmp_path):
    plan = Plan()
    ledger, chosen = Ledger(tmp_path, plan), plan.chosen(["B"], ["excitation_unit_rms"])
    for _ in range(17):
        ledger.put(pretended.row(next(plan.left(chosen, list(ledger.rows.values()))), plan))
    words = ("--status", "--folder", tmp_path, "--cells", "B", "--arms", "excitation_unit_rms", "--workers", "2")
    status, out, _ = typed(capsys, *words)
    assert status == 0
    assert out.splitlines()[0].startswith("B true_gradient: rate 0.05 [0.0125: 66.3 %, 0.025: ")
    assert out.splitlines()[0].endswith("; 1 of 8 final runs")
    assert out.splitlines()[2] == "17 runs made, 0.5 core-hours; 15 runs left, 0 h 12 min"
    assert out.splitlines()[3] == "next: B-final-excitation_unit_rms-0.05-0"


def test_folders_are_merged_by_the_command_and_several_versions_named(capsys, tmp_path):
    plan = Plan()
    ones = [Job("B", TUNE, "true_gradient", rate, 1000) for rate in (0.025, 0.05, 0.1)]
    for name, jobs, made_by in (("a", ones[:2], "2.15.0"), ("b", ones[1:], "2.16.0")):
        ledger = Ledger(tmp_path / name, plan)
        for job in jobs:
            ledger.put(pretended.row(job, plan, torch=made_by))
    status, out, _ = typed(capsys, "--merge", tmp_path / "b", "--folder", tmp_path / "a")
    assert status == 0
    assert out.splitlines()[0] == f"{tmp_path / 'b'}: 1 runs taken."
    assert "softgate 0.1.0, torch 2.15.0: 2 runs; softgate 0.1.0, torch 2.16.0: 1 runs" in out
    assert len((tmp_path / "a" / "runs.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(("ratio", "said"), [(12.0, "a step takes 12.0 times as long"), (0.6, None)])
def test_a_processor_without_bfloat16_is_named_before_runs_are_made(capsys, tmp_path, monkeypatch, ratio, said):
    class Idle:
        def __init__(self, *given: object) -> None: ...

        def outlook(self) -> str:
            return "idle"

        def run(self) -> None: ...

    monkeypatch.setattr(study, "bfloat16_ratio", lambda: ratio)
    monkeypatch.setattr(study, "Driver", Idle)
    (tmp_path / "imagenette2-160").mkdir()
    status, out, _ = typed(capsys, "--data", tmp_path, "--folder", tmp_path / "results", "--cells", "B")
    assert status == 0
    assert (said in out) if said else ("no instructions" not in out)


def test_two_drivers_never_work_in_one_folder(capsys, tmp_path):
    (tmp_path / "imagenette2-160").mkdir()
    code = (
        "import sys, time; from pathlib import Path; from softgate import locks\n"
        "with locks.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        status, _, err = typed(capsys, "--data", tmp_path, "--folder", tmp_path, "--cells", "B")
    finally:
        other.kill()
        other.wait()
    assert status == 2
    assert "still writes into it" in err


def test_a_real_run_of_either_stage_fills_its_row(tmp_path, few):
    plan, run = few
    tune = run(Job("B", TUNE, "excitation_annealed", 0.05, 1000))
    assert 0 <= tune["acc"] <= 1
    assert tune["status"] == "finished"
    assert "bits" not in tune
    assert not list((tmp_path / "work").rglob("*.ckpt"))
    job = Job("B", FINAL, "excitation_channel", 0.05, 0)
    row = run(job)
    assert set(COLUMNS) <= set(row)
    assert all(isinstance(row[key], float) for key in MEASURES)
    assert row["plan"] == plan.identity("B", "excitation_channel")
    assert (row["epochs"], row["seed"], row["rate"]) == (2, 0, 0.05)
    right = unpacked(row["bits"], 359)
    assert right.mean() == pytest.approx(row["acc"])
    assert row["gap"] == pytest.approx(row["train_acc"] - row["acc"])
    assert (tmp_path / "work" / job.key / "last.ckpt").is_file()
    json.dumps(row)
    again = run(job)
    assert all(again[key] == row[key] for key in (*MEASURES, "bits")), "a run made again is the same run"
    other = run(Job("B", FINAL, "true_gradient", 0.05, 0))
    assert other["surrogate_cosine"] == pytest.approx(1)


def test_a_final_run_is_measured_with_its_own_weights_by_other_code_too(tmp_path, few):
    _, run = few
    job = Job("B", FINAL, "excitation_unit_rms", 0.05, 1)
    row = run(job)
    module, options = restore(tmp_path / "work" / job.key / "last.ckpt")
    assert options["val_split"] is None
    data = ImageData(options)
    data.setup("fit")
    with torch.no_grad():
        parts = [(module.net.eval()(x), labels) for x, labels in data.val_dataloader()]
    logits, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    assert row["acc"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert row["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Encountered `nan`")
def test_a_run_that_diverges_is_a_result_at_chance(tmp_path, few):
    _, run = few
    row = run(Job("A", FINAL, "true_gradient", 1e38, 0))
    assert (row["status"], row["acc"]) == ("diverged", 0.1)
    assert "bits" not in row
    assert row["images_per_second"] is None
