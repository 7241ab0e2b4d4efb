"""What is measured of a final run while it trains: its numbers, that nothing changes, and the way into the report."""

import itertools
import re
from pathlib import Path

import numpy as np
import pretended_study as pretended
import pytest
import torch
from generalization_study import pictures, report, runs
from generalization_study.ledger import MEASURES, OVER_TRAINING, Ledger
from generalization_study.mechanism import Mechanism, dead_units, turnover
from generalization_study.noise import batch_gradients, compared, noise
from generalization_study.plan import FINAL, Job, Plan
from scipy import stats
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import SoftgateError
from softgate.data import ImageData

ROOT = Path(__file__).parents[2]
RULE = sg.Surrogate(gain="unit_rms")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)
    )
    return made.double()


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(count)
    x = torch.randn(count, 2, 6, 6, generator=dice, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=dice)


def by_example(net: nn.Module, rule: sg.Surrogate | None, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[N, weights]: each example's gradient, one backward pass each, by `attach` alone."""
    rows = []
    with sg.attach(net, RULE) as sites, sites.use(rule):
        for image, label in zip(x, labels, strict=True):
            net.zero_grad()
            F.cross_entropy(net(image[None]), label[None]).backward()
            rows.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize("rule", [None, RULE, sg.Surrogate(gain="matched")], ids=["true", "unit_rms", "matched"])
def test_the_noise_is_that_of_the_gradients_of_single_examples(rule):
    net, (x, labels) = network(), batch(6)
    each = by_example(net, rule, x, labels)
    trace = float(each.var(0, correction=1).sum())
    square = float(each.mean(0).square().sum()) - trace / 6
    one = noise(batch_gradients(net, rule, x, labels, 1), 1)
    assert (one.trace, one.square) == (pytest.approx(trace), pytest.approx(square))
    assert one.scale == (pytest.approx(trace / square) if square > 0 else pytest.approx(float("nan"), nan_ok=True))
    # Of all ways to cut six examples into pairs, the mean is what single ones say.
    halves = []
    for order in itertools.permutations(range(6)):
        if order[0] < order[1] and order[2] < order[3] and order[4] < order[5] and order[0] < order[2] < order[4]:
            at = torch.tensor(order)
            halves.append(noise(batch_gradients(net, rule, x[at], labels[at], 2), 2))
    assert len(halves) == 15
    assert np.mean([half.trace for half in halves]) == pytest.approx(trace)
    assert np.mean([half.square for half in halves]) == pytest.approx(square)


def test_both_parts_of_the_noise_scale_are_unbiased():
    """All 3^4 draws of four examples from three, as two batches of two: the means are the truth."""
    truth = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for draw in itertools.product(range(3), repeat=4):
        found.append(noise(truth[list(draw)].view(2, 2, 7).mean(1), 2))
    assert np.mean([one.trace for one in found]) == pytest.approx(float(truth.var(0, correction=0).sum()))
    assert np.mean([one.square for one in found]) == pytest.approx(float(truth.mean(0).square().sum()))


def test_two_gradients_are_compared_by_their_means():
    net, (x, labels) = network(), batch(4)
    ours, true = (by_example(net, rule, x, labels).mean(0) for rule in (RULE, None))
    cosine, ratio = compared(*(batch_gradients(net, rule, x, labels, 2) for rule in (RULE, None)))
    assert cosine == pytest.approx(float(F.cosine_similarity(ours, true, 0)))
    assert ratio == pytest.approx(float(ours.norm() / true.norm()))
    assert np.isnan(compared(torch.zeros(2, 3), torch.ones(2, 3))).all()


def test_dead_died_and_revived_units_are_those_of_diagnose():
    net, (x, labels) = network(3), batch(5)
    with torch.no_grad():
        net[0].bias[:2] = -50.0
        net[3].bias[1] = -50.0
    before, looked = dead_units(sg.paths.record(net, x)), sg.diagnose(net, x, labels, RULE)
    with torch.no_grad():
        net[0].bias[0], net[3].bias[:] = 50.0, -50.0
    after, again = dead_units(sg.paths.record(net, x)), sg.diagnose(net, x, labels, RULE)
    for units, sites in ((before, looked), (after, again)):
        for site in sites:
            if site.units:
                assert tuple(units[site.name].nonzero().flatten().tolist()) == site.dead_units
    dead = {site.name: set(site.dead_units) for site in looked}
    died = sum(len(set(site.dead_units) - dead[site.name]) for site in again)
    found = turnover(before, after)
    assert found == {"dead": 6 / 11, "died": died / 11, "revived": sum(sg.revived(looked, again).values()) / 11}
    assert found["died"] > 0
    assert found["revived"] > 0
    assert np.isnan([turnover(None, after)[key] for key in ("died", "revived")]).all()


# -- a run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["excitation_channel", "shuffled_gate"])
def test_weights_are_the_same_bit_for_bit_with_and_without(tmp_path, few, arm, monkeypatch):
    plan, run = few
    monkeypatch.setattr(runs, "final", lambda *given: {})
    job, kept = Job("B", FINAL, arm, 0.05, 0), []
    for cells in (["B"], []):
        plan.given["mechanism"]["cells"] = cells
        row = run(job)
        assert ("mechanism" in row) == bool(cells)
        weights = torch.load(tmp_path / "work" / job.key / "last.ckpt", weights_only=True)
        kept.append((weights["state_dict"], weights.get("softgate_scales", {}), row["last_train_loss"]))
    (one, scales, loss), (other, others, again) = kept
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert scales.keys() == others.keys()
    assert all(torch.equal(scales[name]["variance"], others[name]["variance"]) for name in scales)
    assert loss == again


def test_a_final_run_has_every_measure_of_every_moment_and_reads_no_test_image(few, monkeypatch):
    plan, run = few

    def read(*given):
        raise AssertionError("a test image was read before the last weights were there")

    monkeypatch.setattr(runs, "final", lambda *given: {})
    monkeypatch.setattr(ImageData, "_validated", read)
    row = run(Job("B", FINAL, "excitation_unit_rms", 0.05, 0))
    moments = row["mechanism"]
    assert [one["step"] for one in moments] == [0, 1, 2, 6]
    assert [one["epoch"] for one in moments] == pytest.approx([0, 1 / 3, 2 / 3, 2])
    for one in moments:
        assert one.keys() == {"settings", "step", "epoch", "seconds", *OVER_TRAINING}
        assert one["settings"] == plan.mechanism_identity
        lacks = {name for name in OVER_TRAINING if not np.isfinite(one[name])}
        assert lacks <= {"noise_scale_rule", "noise_scale_true"} | ({"died", "revived"} if one is moments[0] else set())
    last = moments[-1]
    assert (last["swap"], last["swap_function"], last["kappa"]) == pytest.approx((1, 1, 1))
    assert last["hamming"] == 0 < moments[0]["hamming"]
    assert last["swap_same_class"] < 1
    assert last["gradient_cosine"] < 1


def test_under_the_true_gradient_both_gradients_are_one(few, monkeypatch):
    _, run = few
    monkeypatch.setattr(runs, "final", lambda *given: {})
    for one in run(Job("B", FINAL, "true_gradient", 0.05, 0))["mechanism"]:
        assert (one["gradient_cosine"], one["gradient_norm_ratio"]) == pytest.approx((1, 1))
        assert one["noise_trace_rule"] == one["noise_trace_true"]


def test_a_run_that_diverges_keeps_what_was_measured_before(few, monkeypatch):
    _, run = few
    row = run(Job("B", FINAL, "true_gradient", 1e38, 0))
    assert row["status"] == "diverged"
    assert row["mechanism"][0]["sharpness"] > 0
    assert "swap" not in row["mechanism"][0]


def test_too_few_images_are_one_sentence(few, tmp_path):
    plan, _ = few
    data = ImageData(runs.config(plan, Job("B", FINAL, "true_gradient", 0.05, 0), tmp_path).data)
    asked = plan.given["mechanism"]
    with pytest.raises(
        SoftgateError, match=r"^mechanism\.images: class 0 has one probe image; at least 2 are needed\.$"
    ):
        Mechanism(data, asked | {"images": 10})
    with pytest.raises(SoftgateError, match=r"^mechanism\.noise: 5000 images are asked for, and there are \d+\.$"):
        Mechanism(data, asked | {"noise": {"batches": 100, "size": 50}})
    with pytest.raises(SoftgateError, match=r"^noise: 1 batch\(es\); at least 2 are needed\.$"):
        noise(torch.zeros(1, 3), 2)


# -- the plan and the ledger -------------------------------------------------------------------------------------


def test_the_digest_of_a_run_knows_nothing_of_it_and_its_own_does():
    plan, other = Plan(), Plan()
    other.given["mechanism"]["moments"] = 9
    assert other.identity("B", "sugar") == plan.identity("B", "sugar")
    assert other.mechanism_identity != plan.mechanism_identity
    other.given["mechanism"] |= {"moments": plan.given["mechanism"]["moments"], "cells": ["B"]}
    assert other.mechanism_identity == plan.mechanism_identity
    assert [cell for cell in plan.cells if plan.mechanism(cell)] == ["B", "A", "F"]


def test_published_runs_are_of_this_plan():
    """Tuning runs were made before the mechanism came into the plan."""
    rows = Ledger(ROOT / "docs" / "study", Plan()).rows.values()
    assert sum(row["plan"] == "fb86b60ac823" for row in rows) >= 12


def test_rows_go_into_a_csv_file_and_come_back_by_merging(tmp_path):
    ledger = pretended.whole(tmp_path / "a")
    text = (tmp_path / "a" / "mechanism.csv").read_text()
    assert len(text.splitlines()) == 1 + 3 * 3 * len(pretended.EPOCHS)
    assert "nan" not in text
    (tmp_path / "b").mkdir()
    for name in ("runs.csv", "correct.csv", "mechanism.csv"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    other = Ledger(tmp_path / "c", ledger.plan)
    assert other.merge(tmp_path / "b") == (33, [])
    other.export()
    for name in ("runs.csv", "correct.csv", "mechanism.csv"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert other.merge(tmp_path / "a") == (0, []), "files of a run and CSV files say the same"
    key = "B-final-excitation_matched-0.05-1"
    ledger.rows[key]["mechanism"][3]["swap"] += 0.01
    ledger.export(tmp_path / "b")
    assert other.merge(tmp_path / "b") == (0, [key])


def test_rows_of_other_settings_another_plan_or_no_run_are_refused(tmp_path):
    ledger = pretended.whole(tmp_path)
    (tmp_path / "csv").mkdir()
    good = {name: (tmp_path / name).read_text() for name in ("runs.csv", "correct.csv", "mechanism.csv")}
    row = good["mechanism.csv"].splitlines()[1]

    def read(**changed: str) -> Ledger:
        for name, text in (good | {f"{name}.csv": text for name, text in changed.items()}).items():
            (tmp_path / "csv" / name).write_text(text)
        return Ledger(tmp_path / "csv", pretended.plan())

    assert len(read().rows) == len(ledger.rows)
    settings, own = ledger.plan.mechanism_identity, ledger.plan.identity("B", "true_gradient")
    key = "B-final-true_gradient-0.05-0"
    for what, instead in ((settings, "0" * 12), (own, "1" * 12)):
        with pytest.raises(SoftgateError, match=rf"csv: what was measured while {key} was trained has other settings"):
            read(mechanism=good["mechanism.csv"].replace(row, row.replace(what, instead)))
    with pytest.raises(SoftgateError, match=r"mechanism\.csv: it has rows of B-final-sugar-0\.05-0, which is not in"):
        read(mechanism=good["mechanism.csv"].replace(row, row.replace("true_gradient", "sugar")))
    with pytest.raises(SoftgateError, match=r"mechanism\.csv: it is damaged"):
        read(mechanism=good["mechanism.csv"].replace("settings", "setting", 1))


def test_all_rows_of_the_plan_take_less_than_a_megabyte(tmp_path):
    plan = Plan()
    ledger = Ledger(tmp_path, plan)
    for cell in plan.given["mechanism"]["cells"]:
        for arm, seed in itertools.product(plan.cells[cell]["arms"], plan.finals(cell)):
            job = Job(cell, FINAL, arm, 0.0125, seed)
            ledger.rows[job.key] = pretended.row(job, plan)
    ledger.export()
    assert 100_000 < (tmp_path / "mechanism.csv").stat().st_size < 1_000_000


# -- the report ---------------------------------------------------------------------------------------------------


def test_lines_are_means_over_seeds_with_the_t_interval():
    rows = [{"mechanism": [{"epoch": 1.0, "swap": value, "sharpness": 10**value}]} for value in (0.1, 0.4, 0.7, 0.2)]
    values = [0.1, 0.4, 0.7, 0.2]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert pictures.over_seeds(rows, 1.0, "swap", "linear") == pytest.approx((np.mean(values), low, high))
    assert pictures.over_seeds(rows, 1.0, "swap", "percent")[0] == pytest.approx(100 * np.mean(values))
    assert pictures.over_seeds(rows, 1.0, "sharpness", "log") == pytest.approx(
        (10 ** np.mean(values), 10**low, 10**high)
    )
    assert np.isnan(pictures.over_seeds(rows, 1.0, "kappa", "linear")).all()
    assert np.isnan(pictures.over_seeds(rows, 2.0, "swap", "linear")).all()


def test_the_noise_scale_over_seeds_is_the_quotient_of_the_means():
    parts = [(4.0, 0.1), (5.0, -0.01), (6.0, 0.2)]
    rows = [
        {"mechanism": [{"epoch": 1.0, "noise_trace_true": trace, "gradient_square_true": square}]}
        for trace, square in parts
    ]
    middle, low, high = pictures.over_seeds(rows, 1.0, "noise_scale_true", "noise")
    assert middle == pytest.approx(15 / 0.29)
    left = np.log([(5 + 6) / 0.19, (4 + 6) / 0.3, (4 + 5) / 0.09])
    half = stats.t.ppf(0.975, 2) * np.sqrt(2 * np.mean((left - left.mean()) ** 2))
    assert (low, high) == (pytest.approx(middle * np.exp(-half)), pytest.approx(middle * np.exp(half)))
    rows[0]["mechanism"][0]["gradient_square_true"] = -1.0
    assert np.isnan(pictures.over_seeds(rows, 1.0, "noise_scale_true", "noise")).all()


def test_the_report_shows_it_where_there_are_rows_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "test_images", lambda plan, cell: pretended.COUNT)
    ledger = pretended.whole(tmp_path, cells=("B", "G"))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "study.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    report.report(ledger.plan, ledger, docs)
    text = (docs / "study.md").read_text()
    assert re.findall(r"study-mechanism-\w+\.png", text) == ["study-mechanism-B.png"]
    assert [path.name for path in (docs / "images").glob("*mechanism*")] == ["study-mechanism-B.png"]
    assert "What was measured while they were trained: [mechanism.csv](study/mechanism.csv)." in text
    for row in ledger.rows.values():
        row.pop("mechanism", None)
    assert pictures.mechanism(ledger.plan, report.compare(ledger.plan, ledger, "B")) is None
    assert set(MEASURES) & set(OVER_TRAINING), "a moment's measures are never taken from the run's"
