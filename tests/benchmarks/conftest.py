"""What several tests of the study share."""

import pytest
from generalization_study import runs
from generalization_study.plan import Plan


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Runs on digits of 16 px, a few batches each: everything else is the study's."""
    more = ("data=digits", "data.size=16", "data.batch_size=8", "data.cache_dir=false", "trainer.max_epochs=2")
    small = (*more, "trainer.limit_train_batches=3", "data.fraction=0.05", "model=plain8")
    words = runs.words
    monkeypatch.setattr(runs, "words", lambda *given: [*words(*given), *small])
    plan = Plan()
    for name, value in {
        "attack": "images",
        "corruptions": "images",
        "sharpness": "images",
        "diagnosis": "images",
    }.items():
        plan.given["measures"][name][value] = 10
    plan.given["measures"]["alignment"] = {"count": 4, "noisy": 2}
    plan.given["mechanism"] |= {"moments": 3, "first": 0.3, "images": 20, "noise": {"batches": 3, "size": 4}}
    plan.given["mechanism"] |= {"sharpness": {"images": 4, "iterations": 2}, "alignment": {"count": 4, "noisy": 1}}
    return plan, runs.Runner(plan, tmp_path, tmp_path / "work")
