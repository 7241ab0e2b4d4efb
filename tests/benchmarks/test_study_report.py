"""The study's report: what is claimed of numbers that are known, and from CSV files alone."""

import re
from pathlib import Path

import numpy as np
import pretended_study as pretended
import pytest
from generalization_study import report
from generalization_study.ledger import Ledger
from generalization_study.measures import packed, unpacked
from generalization_study.plan import FINAL, Job
from generalization_study.statistics import family
from scipy import stats

from softgate import SoftgateError

ROOT = Path(__file__).parents[2]
COUNT = pretended.COUNT


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(report, "test_images", lambda plan, cell: COUNT)


def page(folder: Path) -> Path:
    """A copy of the study's page, without results."""
    folder.mkdir(parents=True)
    (folder / "study.md").write_text((ROOT / "docs" / "study.md").read_text())
    return folder


@pytest.mark.parametrize("count", [1, 7, 8, 9, 3925])
def test_which_images_were_right_takes_a_bit_each_and_comes_back(count):
    right = np.random.default_rng(count).random(count) < 0.5
    assert np.array_equal(unpacked(packed(right), count), right)
    assert len(packed(right)) <= 4 * -(-count // 8) / 3 + 4


# -- statistics -----------------------------------------------------------------------------------------------


def test_with_one_number_a_seed_it_is_the_paired_t_test_and_two_one_sided_ones():
    dice = np.random.default_rng(0)
    a, b = dice.normal(0.7, 0.01, (2, 8))
    (one,) = family([(a, b)], smallest=0.01)
    found, error = one.difference, (a - b).std(ddof=1) / np.sqrt(8)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    for share, (low, high) in ((0.975, (found.low, found.high)), (0.95, found.inner)):
        assert (high - low) / 2 == pytest.approx(stats.t.ppf(share, 7) * error)
        assert (high + low) / 2 == pytest.approx(found.mean)


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [
        (0.03, 0.005, "better"),
        (-0.03, 0.005, "worse"),
        (0.0, 0.003, "as good"),
        (0.005, 0.002, "better, by less than is of interest"),
        (-0.005, 0.002, "worse, by less than is of interest"),
        (0.0, 0.03, "undecided"),
    ],
)
def test_the_verdict_is_a_null_only_where_the_narrow_interval_is_within_what_is_of_interest(mean, spread, verdict):
    off = np.array([-1.4, -0.9, -0.5, -0.1, 0.1, 0.5, 0.9, 1.4])
    base = 0.6 + 0.01 * np.arange(8)
    (one,) = family([(base + mean + spread * off, base)], smallest=0.01)
    assert one.difference.mean == pytest.approx(mean)
    assert one.verdict == verdict
    (other,) = family([(base + mean + spread * off, base)])
    assert other.verdict in ("better", "worse", "undecided"), "without a smallest difference no null is claimed"


def test_holm_corrects_within_the_family_only():
    dice = np.random.default_rng(1)
    base = dice.normal(0.6, 0.01, 8)
    arms = [base + dice.normal(shift, 0.01, 8) for shift in (0.02, 0.008, 0.0)]
    alone = [family([(arm, base)])[0].difference for arm in arms]
    assert [one.adjusted for one in alone] == [one.p for one in alone]
    together = [one.difference for one in family([(arm, base) for arm in arms])]
    expected, worst = [0.0] * 3, 0.0
    for factor, i in zip((3, 2, 1), np.argsort([one.p for one in together]), strict=True):
        worst = max(worst, min(1.0, factor * together[i].p))
        expected[i] = worst
    assert [one.adjusted for one in together] == pytest.approx(expected)


def test_a_detectable_difference_is_found_four_times_in_five():
    dice = np.random.default_rng(2)
    error = dice.normal(0, 0.01, (300, 8))
    least = np.median([family([(each, 0 * each)])[0].detectable for each in error[:30]])
    found = [family([(each + least, 0 * each)])[0].difference.low > 0 for each in error]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


# -- the report -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_comes_from_the_csv_files_alone_and_is_the_same(tmp_path):
    ledger = pretended.whole(tmp_path / "full", cells=("B", "A"))
    docs = page(tmp_path / "docs")
    report.report(ledger.plan, ledger, docs)
    text = (docs / "study.md").read_text()
    assert {path.name for path in (docs / "study").iterdir()} == {"runs.csv", "correct.csv", "mechanism.csv"}
    again = page(tmp_path / "again")
    report.report(ledger.plan, Ledger(docs / "study", pretended.plan()), again)
    assert (again / "study.md").read_text() == text
    drawn = [f"images/study-{name}.png" for name in ("forest", "rates", "mechanism-A", "mechanism-B")]
    for name in ("study/runs.csv", "study/correct.csv", "study/mechanism.csv", *drawn):
        assert (again / name).read_bytes() == (docs / name).read_bytes(), name
    report.report(ledger.plan, ledger, docs)
    assert (docs / "study.md").read_text() == text, "a second time it takes the place of the first"
    plan, _, _ = text.partition(report.BEGIN)
    assert plan == (ROOT / "docs" / "study.md").read_text().partition(report.BEGIN)[0]


def test_what_is_said_are_the_differences_of_the_runs(tmp_path):
    ledger = pretended.whole(tmp_path / "full")
    cell = report.compare(ledger.plan, ledger, "B")
    runs = {(row["arm"], row["seed"]): row["acc"] for row in ledger.rows.values() if row["stage"] == FINAL}
    for arm, one in cell.top.items():
        assert one.difference.deltas == pytest.approx(
            [runs[arm, s] - runs["true_gradient", s] for s in range(3)], abs=1e-9
        )
    docs = page(tmp_path / "docs")
    report.report(ledger.plan, ledger, docs)
    text = (docs / "study.md").read_text()
    for arm, one in cell.top.items():
        assert f"| B | {arm} (primary) | {100 * one.difference.mean:+.2f} |" in text
        assert re.search(
            rf"- Cell B: {arm} is \*\*[a-z ,]+\*\* the true gradient: \{100 * one.difference.mean:+.2f} \(95 %", text
        )
    accuracy = [runs["true_gradient", s] for s in range(3)]
    assert f"| top-1 | {100 * np.mean(accuracy):.2f} % ± {100 * np.std(accuracy, ddof=1):.2f} % |" in text
    assert "33 runs, 0.9 core-hours; softgate 0.1.0, torch 2.15.0: 33." in text


def test_the_primary_family_does_not_grow_with_the_arms(tmp_path):
    few = pretended.whole(tmp_path / "few")
    more = pretended.whole(tmp_path / "more", arms=(*pretended.ARMS, "sugar", "leaky"))
    a, b = report.compare(few.plan, few, "B"), report.compare(more.plan, more, "B")
    for arm in pretended.ARMS[1:]:
        assert a.top[arm] == b.top[arm]
    assert set(b.top) == set(b.rows) - {"true_gradient"}


def test_nothing_is_compared_before_its_last_seed_is_there(tmp_path):
    ledger = pretended.whole(tmp_path)
    del ledger.rows["B-final-excitation_matched-0.05-2"]
    cell = report.compare(ledger.plan, ledger, "B")
    assert set(cell.top) == {"excitation_unit_rms"}
    assert cell.notes == ["excitation_matched: 2 of 3 seeds, not compared before the last is made."]
    cell = report.compare(ledger.plan, ledger, "B", unfinished=True)
    assert len(cell.top["excitation_matched"].difference.deltas) == 2
    assert cell.notes == ["excitation_matched: 2 of 3 seeds, compared as they are, no more will come."]
    for key in [key for key in ledger.rows if "final" in key]:
        del ledger.rows[key]
    assert not report.compare(ledger.plan, ledger, "B").top
    assert report.compare(ledger.plan, ledger, "A") is None


def test_a_diverged_run_counts_at_chance_and_is_named(tmp_path):
    ledger = pretended.whole(tmp_path)
    row = ledger.rows["B-final-excitation_matched-0.05-1"]
    before = report.compare(ledger.plan, ledger, "B").top["excitation_matched"]
    row |= {"status": "diverged", "acc": 0.1, **dict.fromkeys(("nll", "gap"), float("nan"))}
    del row["bits"]
    cell = report.compare(ledger.plan, ledger, "B")
    base = ledger.rows["B-final-true_gradient-0.05-1"]["acc"]
    assert cell.top["excitation_matched"].difference.deltas[1] == pytest.approx(0.1 - base)
    assert cell.top["excitation_matched"].difference.mean < before.difference.mean
    assert "excitation_matched: 1 final runs diverged; they count at chance." in cell.notes
    assert "excitation_matched" not in cell.others["nll"]


def test_runs_of_another_version_are_left_out_and_named(tmp_path):
    ledger = pretended.whole(tmp_path)
    for seed in range(3):
        ledger.rows[f"B-final-excitation_matched-0.05-{seed}"]["torch"] = "2.16.0"
    ledger.rows["B-final-true_gradient-0.05-0"]["commit"] = "def+"
    cell = report.compare(ledger.plan, ledger, "B")
    assert set(cell.rows) == {"true_gradient", "excitation_unit_rms"}
    assert any(
        note
        == "3 runs were made by softgate 0.1.0 and torch 2.16.0, the others by 0.1.0 and 2.15.0; they are left out."
        for note in cell.notes
    )
    assert "runs were made on several commits: abc, def+." in cell.notes


def test_a_rate_at_the_bound_of_the_grid_is_named(tmp_path):
    plan = pretended.plan()
    ledger, chosen = Ledger(tmp_path, plan), plan.chosen(["B"], ["excitation_unit_rms"])
    while (job := next(plan.left(chosen, list(ledger.rows.values())), None)) is not None:
        made = pretended.row(job, plan)
        if job.arm == "excitation_unit_rms" and job.stage == "tune":
            made["acc"] = job.rate / 10
        ledger.put(made)
    assert (
        "excitation_unit_rms: its rate, 1.6, is a bound of the plan's grid." in report.compare(plan, ledger, "B").notes
    )


def test_results_that_do_not_fit_together_are_one_sentence(tmp_path):
    ledger = pretended.whole(tmp_path)
    row = ledger.rows["B-final-excitation_matched-0.05-1"]
    row["acc"] += 0.01
    with pytest.raises(
        SoftgateError, match=r"^correct\.csv: B-final-excitation_matched-0\.05-1 has 0\.\d+ of its images"
    ):
        report.compare(ledger.plan, ledger, "B")
    del row["bits"]
    with pytest.raises(SoftgateError, match=r"^correct\.csv: it has no row for B-final-excitation_matched-0\.05-1"):
        report.compare(ledger.plan, ledger, "B")


def test_a_page_without_a_place_for_results_and_a_folder_without_any_are_one_sentence(tmp_path):
    plan = pretended.plan()
    with pytest.raises(SoftgateError, match=r"there are no results in it\.$"):
        report.report(plan, Ledger(tmp_path / "none", plan), page(tmp_path / "docs"))
    (tmp_path / "docs" / "study.md").write_text("# A page\n")
    with pytest.raises(SoftgateError, match=r"study\.md: the lines '<!-- results"):
        report.report(plan, pretended.whole(tmp_path / "full"), tmp_path / "docs")
    assert not (tmp_path / "docs" / "study").exists()


def test_test_images_are_counted_by_cell(monkeypatch):
    monkeypatch.undo()
    plan = pretended.plan()
    assert {cell: report.test_images(plan, cell) for cell in plan.cells} == {
        **dict.fromkeys("BACDEFH", 3925),
        **dict.fromkeys("GIJ", 10_000),
    }


def test_a_key_of_a_run_names_all_that_tells_it_apart():
    assert Job("B", FINAL, "sugar", 0.0015625, 7).key == "B-final-sugar-0.0015625-7"
