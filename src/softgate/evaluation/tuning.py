"""`compare.tune`: every arm at one value of a key, the best by the images that its runs validated on.

One value, because that is a recipe that others can run; by the mean over seeds, so that no seed's luck decides alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from softgate import files
from softgate.data.config import DataConfig
from softgate.errors import is_number
from softgate.evaluation.config import CompareConfig
from softgate.evaluation.runs import Run, flatten, read_run, shown
from softgate.training.summary import number

Place = tuple[str, str]
"""An arm and a condition."""

Value = tuple[Any, ...]
"""Of the tuned keys."""


def diverged(paths: Sequence[Path]) -> list[Run]:
    """The runs that ended because training diverged: a value at which that happens is none to choose."""
    given = {path: files.read_json(path / "summary.json") or {} for path in paths}
    found = (read_run(path) for path, summary in given.items() if summary.get("status") == "diverged")
    return [run for run in found if run is not None]


def tune(
    runs: Sequence[Run], tuned: Sequence[str], score: str, failed: Sequence[Run] = ()
) -> tuple[list[Run], list[str]]:
    """Chooses for every arm the value with the best mean over the seeds that tried several values.

    A value that one of these seeds lacks, or at which one diverged, is not chosen while there is another.

    Args:
        runs: The runs, one for each arm, condition, value and seed.
        tuned: The keys.
        score: Of the summary, on the images that were validated; more is better.
        failed: Runs that diverged, sorted into arms too.

    Returns:
        The runs with the chosen values, and a line on each arm's choice.
    """
    if not tuned:
        return list(runs), []
    places: dict[Place, dict[Value, dict[int, Run]]] = {}
    lost: dict[Place, dict[Value, set[int]]] = {}
    for run in runs:
        places.setdefault((run.arm, run.condition), {}).setdefault(_value(run, tuned), {})[run.seed] = run
    for run in failed:
        place, value = (run.arm, run.condition), _value(run, tuned)
        if run.seed not in places.get(place, {}).get(value, {}):  # else it was run again
            lost.setdefault(place, {}).setdefault(value, set()).add(run.seed)
    chosen: list[Run] = []
    said = []
    for place, values in places.items():
        best, line = _choose(values, lost.get(place, {}), tuned, score)
        chosen += values[best].values()
        called = next(iter(values[best].values())).called
        said.append(f"{' at '.join(filter(None, (called, place[1])))}: {line}")
    return chosen, said


def _choose(
    values: Mapping[Value, Mapping[int, Run]], lost: Mapping[Value, Collection[int]], tuned: Sequence[str], score: str
) -> tuple[Value, str]:
    """The best value, and a line that says of which, by which seeds, and what to doubt."""
    tried = {value: {*values.get(value, ()), *lost.get(value, ())} for value in {**values, **lost}}
    every = sorted(set().union(*tried.values()))
    deciding = [seed for seed in every if sum(seed in seeds for seeds in tried.values()) > 1] or every
    known = {
        value: {seed: number(run.summary, score) for seed, run in by_seed.items() if seed in deciding}
        for value, by_seed in values.items()
    }
    scores = {value: [one for one in by_seed.values() if one is not None] for value, by_seed in known.items()}
    most = max(len(each) for each in scores.values())
    able = [value for value, each in scores.items() if len(each) == most]
    best = max(able, key=lambda value: sum(scores[value]) / most if most else 0.0)
    seeds = sorted(seed for seed, one in known[best].items() if one is not None)
    line = f"{_named(best, tuned)}"
    if len(tried) == 1:
        return best, f"{line}, the only value tried."
    others = "; ".join(_named(value, tuned) for value in sorted(tried, key=_order))
    by = f"by the mean over seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else "with no score"
    return best, " ".join([f"{line} of {others}, {by}.", *_doubts(best, able, tried, lost, tuned, deciding)])


def _doubts(
    best: Value,
    able: Collection[Value],
    tried: Mapping[Value, Collection[int]],
    lost: Mapping[Value, Collection[int]],
    tuned: Sequence[str],
    deciding: Sequence[int],
) -> list[str]:
    """Sentences on values that did not take part, and on a best value at the edge of what was tried."""
    lines = []
    for value in sorted(set(tried) - set(able), key=_order):
        gone = sorted(set(lost.get(value, ())) & set(deciding))
        why = f"seed {', '.join(map(str, gone))} diverged" if gone else "not every seed has a score there"
        lines.append(f"{_named(value, tuned)} was not chosen from: {why}.")
    for place, key in enumerate(tuned):
        grid = sorted({value[place] for value in tried if is_number(value[place])})
        if len(grid) > 1 and best[place] in (grid[0], grid[-1]):
            side = "above" if best[place] == grid[-1] else "below"
            lines.append(f"The best is at the edge of the grid: extend the grid, {key} {side} {shown(best[place])}.")
    return lines


def _value(run: Run, tuned: Sequence[str]) -> Value:
    flat = flatten(run.config)
    values = (flat.get(key) for key in tuned)
    return tuple(value if is_number(value) else shown(value) for value in values)


def _named(value: Value, tuned: Sequence[str]) -> str:
    return ", ".join(f"{key}={shown(one)}" for key, one in zip(tuned, value, strict=True))


def _order(value: Value) -> list[tuple[float, str]]:
    return [(float(one), "") if is_number(one) else (0.0, str(one)) for one in value]


def validated_images(run: Run) -> str:
    """Which images a run validated on, and so was chosen by, in the words of `DataConfig.measured_images`."""
    return DataConfig.model_construct(**{**run.config["data"], "test": "val"}).measured_images


def images(options: CompareConfig, runs: Sequence[Run], measured: str) -> tuple[str, list[str]]:
    """What the images that are measured may be called, and what was chosen by which.

    Args:
        options: Of the comparison.
        runs: Those that are compared.
        measured: Which images are measured, in the words of `DataConfig.measured_images`.

    Returns:
        "test images" where nothing was chosen by them, and lines for the reader; none where nothing was chosen.
    """
    what = [*options.tune, *(["the epoch of every run"] if options.checkpoint == "best" else [])]
    if not what:
        return "test images", []
    chose, by = " and ".join(what), dict.fromkeys(map(validated_images, runs))
    if measured not in by:
        line = f"What chose {chose}: {' and '.join(by)}. What is measured: {measured}, by which nothing was chosen."
        return "test images", [line]
    warning = (
        f"What chose {chose} is what is measured: {measured}. These are no test images, and figures are too good by "
        f"the luck of that choice; train with data.val_split=0.2, and other images choose."
    )
    return f"validation images, which also chose {chose}", [warning]
