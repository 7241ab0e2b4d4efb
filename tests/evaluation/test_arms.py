"""Which runs make which arm of a comparison, and what its name says."""

import yaml

import finished_sweep as finished
from softgate.evaluation import runs as collection
from softgate.training.config_differences import ABSENT_GROUPS


def read(*directories):
    runs, left = collection.read(directories, "last")
    assert left == []
    return runs


def test_arms_are_named_after_what_differs_and_nothing_else(images, tmp_path):
    data = finished.options(images)
    a = [finished.run(tmp_path / f"a{s}", data, "none", s, lr=0.1) for s in (0, 1)]
    b = [finished.run(tmp_path / f"b{s}", data, "sugar", s, lr=0.1) for s in (0, 1)]
    c = finished.run(tmp_path / "c", data, "sugar", 0, lr=0.2)
    d = finished.run(tmp_path / "d", finished.options(images, fraction=0.1, fraction_seed=3), "none", 0, lr=0.1)
    names = [run.arm for run in collection.sort(read(*a, *b), [], [])]
    assert names == ["none", "none", "sugar", "sugar"]
    assert [run.arm for run in collection.sort(read(*a), [], [])] == ["none", "none"]
    named = [run.arm for run in collection.sort(read(*a, *b, c), [], [])]
    assert named[0] == "none, optim.lr=0.1"
    assert named[-2:] == ["sugar, optim.lr=0.1", "sugar, optim.lr=0.2"]
    at = collection.sort(read(a[0], d), ["data.fraction"], [])
    assert [(run.arm, run.condition) for run in at] == [("none", "data.fraction=1"), ("none", "data.fraction=0.1")]
    for path in tmp_path.glob("*/.hydra/hydra.yaml"):
        path.unlink()
    assert [run.arm for run in collection.sort(read(*a, *b), [], [])] == ["hard", "hard", "bsilu", "bsilu"]


def test_settings_of_a_rule_that_differ_are_in_the_name(images, tmp_path, monkeypatch):
    data = finished.options(images)
    hot = finished.RULES["excitation"] | {"gate": {"name": "sigmoid", "temperature": 0.6}}
    first = finished.run(tmp_path / "a", data, "excitation", 0)
    monkeypatch.setitem(finished.RULES, "excitation", hot)
    runs = read(
        first,
        finished.run(tmp_path / "b", data, "excitation", 0),
        finished.run(tmp_path / "c", data, "none", 0),
    )
    names = [run.arm for run in collection.sort(runs, [], [])]
    assert names == ["excitation, gate.temperature=0.3", "excitation, gate.temperature=0.6", "none"]


def test_what_training_does_beside_a_rule_is_in_the_name_where_it_is_on(images, tmp_path):
    data, off = finished.options(images), ABSENT_GROUPS["train"]
    given = {"a": {}, "b": {"noise": 0.1}, "c": {"adversarial": off["adversarial"] | {"radius": 0.5}}}
    for name, options in given.items():
        config = finished.run(tmp_path / name, data, "none", 0) / "config.yaml"
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"train": off | options}))
    before = finished.run(tmp_path / "before", data, "none", 1)  # of a time without such options
    runs = read(*(tmp_path / name for name in given), before)
    names = [run.arm for run in collection.sort(runs, [], [])]
    assert sorted(names) == ["none", "none", "none, adversarial.radius=0.5", "none, noise=0.1"]
    far = off["adversarial"] | {"radius": 0.5, "norm": "linf"}
    config = finished.run(tmp_path / "d", data, "none", 0) / "config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"train": off | {"adversarial": far}}))
    names = [run.arm for run in collection.sort(read(*(tmp_path / name for name in "acd")), [], [])]
    balls = [f"none, adversarial.norm={norm}, adversarial.radius=0.5" for norm in ("l2", "linf")]
    assert names == ["none", *balls]


def test_where_data_are_kept_makes_no_arm_and_other_seeds_are_named(images, tmp_path):
    kept = finished.run(tmp_path / "a", finished.options(images, cache_dir="/scratch", fraction_seed=0), "none", 0)
    other = finished.run(tmp_path / "b", finished.options(images, cache_dir=None, fraction_seed=3), "none", 0)
    runs = collection.sort(read(kept, other), [], [])
    assert {run.arm for run in runs} == {"none"}
    (line,) = collection.without_doubles(runs, [])[1]
    assert "data.fraction_seed=3 where this has 0 (runs are paired by seed)" in line
