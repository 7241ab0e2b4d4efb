"""The plan of the study: which runs there are, which comes next, and what makes a run what it is."""

import copy
import random

import pytest
from generalization_study.plan import FINAL, TUNE, Job, Plan
from generalization_study.runs import CONF, words
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from softgate import SoftgateError
from softgate.training.config import TrainConfig

SEEDS = (1000, 1001)


@pytest.fixture
def plan() -> Plan:
    return Plan()


def tuned(cell: str, arm: str, accuracies: dict[float, float]) -> list[dict]:
    """Rows of finished tuning runs; the two seeds lie around the mean."""
    return [
        {"cell": cell, "stage": TUNE, "arm": arm, "rate": rate, "seed": seed, "acc": acc + off}
        for rate, acc in accuracies.items()
        for seed, off in zip(SEEDS, (-0.01, 0.01), strict=True)
    ]


def test_seeds_of_the_rate_are_no_final_seeds_and_every_primary_contrast_is_run(plan):
    assert not set(plan.given["seeds"]["tune"]) & set(plan.given["seeds"]["final"])
    assert len(plan.finals("B")) == 8
    assert len(plan.finals("H")) == 5
    for cell in plan.given["primary"]["cells"]:
        assert {plan.baseline, *plan.given["primary"]["arms"]} <= set(plan.cells[cell]["arms"])
    for cell in plan.cells.values():
        assert cell["arms"][0] == plan.baseline
        assert set(cell["arms"]) <= set(plan.arms)
        assert len(cell["rates"]) == 4


def test_the_first_runs_of_cell_b_are_the_five_arms_that_the_page_names(plan):
    first = ["true_gradient", "excitation_unit_rms", "excitation_matched", "random_gate", "excitation_channel"]
    assert plan.cells["B"]["arms"][:5] == first
    jobs = list(plan.left({"B": first}, []))
    assert [job.arm for job in jobs] == [arm for arm in first for _ in range(8)]
    assert {job.stage for job in jobs} == {TUNE}


# -- one rate for an arm -------------------------------------------------------------------------------------


def test_a_rate_is_the_best_mean_of_both_seeds_within_the_grid(plan):
    grid = {0.0125: 0.5, 0.025: 0.6, 0.05: 0.7, 0.1: 0.65}
    rows = tuned("B", "true_gradient", grid) + tuned("B", "excitation", {0.0125: 0.9})
    choice = plan.choice("B", "true_gradient", rows)
    assert (choice.rate, choice.missing, choice.bound) == (0.05, [], False)
    assert choice.means == pytest.approx(grid)


def test_one_seed_alone_chooses_nothing(plan):
    rows = tuned("B", "true_gradient", {0.0125: 0.5, 0.025: 0.6, 0.05: 0.7, 0.1: 0.65})
    del rows[-1]
    choice = plan.choice("B", "true_gradient", rows)
    assert choice.rate is None
    assert choice.missing == [Job("B", TUNE, "true_gradient", 0.1, 1001)]


@pytest.mark.parametrize(("best", "wanted"), [(0.0125, 0.00625), (0.1, 0.2)])
def test_a_best_rate_at_the_edge_extends_the_grid_by_a_factor_of_two(plan, best, wanted):
    grid = {rate: 0.8 if rate == best else 0.5 for rate in plan.cells["B"]["rates"]}
    choice = plan.choice("B", "true_gradient", tuned("B", "true_gradient", grid))
    assert choice.rate is None
    assert choice.missing == [Job("B", TUNE, "true_gradient", wanted, seed) for seed in SEEDS]
    settled = plan.choice("B", "true_gradient", tuned("B", "true_gradient", {**grid, wanted: 0.7}))
    assert (settled.rate, settled.bound) == (best, False)


def test_extension_ends_at_the_bounds_and_says_so(plan):
    def score(rate: float) -> float:
        return rate / 10

    grid = {rate: score(rate) for rate in plan.cells["B"]["rates"]}
    asked = []
    while (choice := plan.choice("B", "sugar", tuned("B", "sugar", grid))).rate is None:
        asked += sorted({job.rate for job in choice.missing})
        grid |= {job.rate: score(job.rate) for job in choice.missing}
    assert asked == [0.2, 0.4, 0.8, 1.6]
    assert (choice.rate, choice.bound) == (1.6, True)


def test_an_arm_that_learns_nowhere_ends_at_the_least_rate_and_still_has_one(plan):
    grid = dict.fromkeys(plan.cells["B"]["rates"], 0.1)
    while (choice := plan.choice("B", "sugar", tuned("B", "sugar", grid))).rate is None:
        grid |= {job.rate: 0.1 for job in choice.missing}
    assert (choice.rate, choice.bound) == (0.0015625, True)


# -- what comes next -----------------------------------------------------------------------------------------


def finish(plan: Plan, chosen: dict, job: Job, best: float = 0.05) -> dict:
    acc = 0.7 - abs(job.rate - best) if job.stage == TUNE else 0.6
    return {**plan.about(job), "acc": acc, "seconds": 10.0, "status": "finished"}


def test_a_cell_is_tuned_then_run_in_whole_blocks_of_one_seed_with_one_rate_for_each_arm(plan):
    chosen = plan.chosen(["B"], ["excitation_unit_rms", "random_gate"])
    best = {"true_gradient": 0.05, "excitation_unit_rms": 0.1, "random_gate": 0.0125}
    rows, order = [], []
    while (job := next(plan.left(chosen, rows), None)) is not None:
        rows.append(finish(plan, chosen, job, best[job.arm]))
        order.append(job)
    stages = [job.stage for job in order]
    assert stages == sorted(stages, reverse=True)
    assert len({job.key for job in order}) == len(order)
    finals = [job for job in order if job.stage == FINAL]
    assert [(job.seed, job.arm) for job in finals] == [(seed, arm) for seed in range(8) for arm in chosen["B"]]
    assert {(job.arm, job.rate) for job in finals} == set(best.items())
    assert stages.count(TUNE) == 8 + 10 + 10  # two of the arms had their best at an edge
    assert not any(plan.count(chosen, rows).values())


def test_no_final_run_comes_before_all_arms_of_the_cell_have_their_rate(plan):
    chosen = plan.chosen(["B", "A"], ["excitation_unit_rms"])
    rows = [
        finish(plan, chosen, job)
        for job in plan.left(chosen, [])
        if (job.cell, job.arm) != ("B", "excitation_unit_rms")
    ]
    assert {(job.cell, job.stage) for job in plan.left(chosen, rows)} == {("B", TUNE), ("A", FINAL)}


def test_arms_asked_for_later_join_blocks_that_are_there(plan):
    few, more = plan.chosen(["B"], ["sugar"]), plan.chosen(["B"], ["sugar", "leaky"])
    rows = []
    while (job := next(plan.left(few, rows), None)) is not None:
        rows.append(finish(plan, few, job))
    assert {job.arm for job in plan.left(more, rows)} == {"leaky"}


def test_what_is_left_does_not_depend_on_the_order_in_which_runs_came(plan):
    chosen = plan.chosen(["B", "A"], ["excitation_unit_rms"])
    jobs = list(plan.left(chosen, []))
    dice = random.Random(0)
    for _ in range(5):
        rows = [finish(plan, chosen, job) for job in dice.sample(jobs, dice.randrange(len(jobs)))]
        shuffled = dice.sample(rows, len(rows))
        assert list(plan.left(chosen, rows)) == list(plan.left(chosen, shuffled))
        done = {Job.of(row) for row in rows}
        assert not done & set(plan.left(chosen, rows))


# -- what is asked for ---------------------------------------------------------------------------------------


def test_by_default_all_cells_that_need_no_gpu_are_run_with_all_their_arms(plan):
    chosen = plan.chosen(None, None)
    assert list(chosen) == ["B", "A", "G", "C", "D", "E", "F"]
    assert all(arms == plan.cells[cell]["arms"] for cell, arms in chosen.items())
    assert plan.chosen(["A"], ["sugar"]) == {"A": ["true_gradient", "sugar"]}


@pytest.mark.parametrize(
    ("cells", "arms", "said"),
    [
        (["Z"], None, r"^--cells=Z: .*allowed: A, B, C"),
        (["B"], ["exitation"], r"^--arms=exitation: .*excitation"),
        (["A"], ["excitation_channel"], r"^--arms=excitation_channel: none of the cells A has this arm\.$"),
    ],
)
def test_an_unknown_cell_or_arm_is_one_sentence(plan, cells, arms, said):
    with pytest.raises(SoftgateError, match=said):
        plan.chosen(cells, arms)


# -- what makes a run what it is -----------------------------------------------------------------------------


def test_every_recipe_of_the_plan_composes_and_is_another(plan, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    seen = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # Every cell with the baseline, every arm in cell B: they do not depend on each other.
        for cell, arm in [*((cell, plan.baseline) for cell in plan.cells), *(("B", arm) for arm in plan.arms)]:
            job = Job(cell, FINAL, arm, 0.05, 3)
            given = words(plan, job, tmp_path)
            cfg = TrainConfig.read(OmegaConf.to_container(compose("train", overrides=given), resolve=True))
            assert cfg.trainer.max_epochs == plan.epochs(cell)
            assert (cfg.seed, cfg.optim.lr, cfg.data.val_split) == (3, 0.05, None)
            assert cfg.trainer.limit_val_batches == 0, "no test image is looked at in training"
            assert (cfg.data.fraction_seed, cfg.data.label_noise_seed) == (3, 3)
            tune = words(plan, Job(cell, TUNE, arm, 0.05, 3), tmp_path)
            assert "data.val_split=0.2" in tune
            assert not any("limit_val" in word for word in tune)
            plain = {**cfg.plain, "name": None, "surrogate": str(cfg.surrogate.to_dict())}
            seen.append((cell, arm, repr(sorted(plain.items()))))
    assert len({recipe for *_, recipe in seen}) == len(seen) - 1, "cell B with the baseline stands there twice"


def test_the_digest_of_a_run_changes_with_its_recipe_and_with_nothing_else(plan):
    before = {(cell, arm): plan.identity(cell, arm) for cell in plan.cells for arm in plan.cells[cell]["arms"]}
    assert len(set(before.values())) == len(before)

    def after(change) -> set[tuple[str, str]]:
        other = Plan()
        other.given = copy.deepcopy(other.given)
        change(other.given)
        return {at for at, identity in before.items() if other.identity(*at) != identity}

    assert not after(lambda given: given["arms"].update(new=["surrogate=none"]))
    assert not after(lambda given: given["cells"]["B"]["arms"].append("new"))
    assert after(lambda given: given["arms"].update(sugar=["surrogate=nelu"])) == {
        (c, a) for c, a in before if a == "sugar"
    }
    assert after(lambda given: given["cells"]["B"].update(rates=[0.1, 0.2, 0.4, 0.8])) == {
        at for at in before if at[0] == "B"
    }
    assert after(lambda given: given["seeds"].update(tune=[1, 2])) == set(before)
    assert after(lambda given: given["measures"].update(seed=1)) == set(before)


def test_the_digest_takes_in_the_configs_that_a_cell_builds_on(plan, tmp_path):
    for path in plan.folder.glob("*.yaml"):
        text = path.read_text()
        changed = text.replace("max_epochs: 20", "max_epochs: 21").replace("max_epochs: 30", "max_epochs: 31")
        (tmp_path / path.name).write_text(changed if path.stem == "base" else text)
    other = Plan(cells=tmp_path)
    for cell in plan.cells:
        assert other.identity(cell, plan.baseline) != plan.identity(cell, plan.baseline)
