"""How often verdicts are wrong, and how often they find what is there: benchmarks/verdicts.py in small."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def verdicts():
    """The module of benchmarks/verdicts.py."""
    spec = importlib.util.spec_from_file_location("benchmark_verdicts", BENCHMARKS / "verdicts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    sys.path.insert(0, str(BENCHMARKS))  # what benchmarks share
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("place", [1, 3])
def test_a_null_is_told_apart_in_one_sweep_of_twenty_and_not_in_next_to_none(verdicts, seeds, place):
    """Where images matter, and where nothing does but chance: a floor under the seeds' variance makes it .00 to .02."""
    shares, *_ = verdicts.swept(verdicts.REGIMES[place], seeds, 800, 0.0, 500, arms=1)
    assert 0.025 <= shares["alone"] <= 0.08
    assert 0.92 <= shares["covered"] <= 0.975


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.15), (5, 0.45)])
def test_a_point_is_found_as_often_as_by_the_paired_t_test_where_images_do_not_matter(verdicts, seeds, least):
    shares, *_ = verdicts.swept(verdicts.REGIMES[0], seeds, 3925, 0.01, 200, arms=1)
    assert shares["alone"] >= max(least, shares["by_t_alone"] - 0.01)
    assert shares["equivalent"] <= 0.1  # a point is the margin itself


def test_of_eight_arms_any_is_told_apart_by_chance_as_often_as_one_alone(verdicts):
    shares, *_ = verdicts.swept(verdicts.REGIMES[1], 3, 400, 0.0, 400)
    assert 0.02 <= shares["any_null"] <= 0.085


def test_without_the_images_as_a_sample_claims_would_be_too_frequent(verdicts):
    shares, *_ = verdicts.swept(verdicts.REGIMES[2], 10, 400, 0.0, 300, arms=1)
    assert shares["by_t_alone"] > 0.12 > shares["alone"]
