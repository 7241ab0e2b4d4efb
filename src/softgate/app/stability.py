"""Path stability of recorded runs, as `evaluate.py paths=full` measures it, and what one pair of moments says."""

from __future__ import annotations

from collections.abc import Callable

from softgate.app.library import Library
from softgate.errors import require
from softgate.evaluation import paths
from softgate.evaluation.config import PathsConfig
from softgate.evaluation.reports.path_results import Stability, matrices
from softgate.evaluation.reports.paths import measures
from softgate.figures.paths import labelled
from softgate.rounding import rounded
from softgate.surrogate.rule import Surrogate
from softgate.tables import Table


def recorded(library: Library) -> list[str]:
    """The runs that have a recording of the gates, and a checkpoint to tell their network."""
    names = paths.RECORDED.values()
    return [
        label
        for label, run in library.runs.items()
        if any((run.place / name / "header.json").is_file() for name in names) and run.has_checkpoint
    ]


def measure(
    library: Library, label: str, options: PathsConfig, rule: Surrogate, progress: Callable[[int, int], None]
) -> Stability:
    """Swaps and agreement of gates of one run; takes minutes where nobody asked for the same before.

    Args:
        library: Of the runs.
        label: The run.
        options: Of which images and moments.
        rule: Of the soft gates.
        progress: Called with the number of passes done and to do; what it raises ends the measurement.

    Raises:
        SoftgateError: If the run has no whole recording with weights, or the rule no gates.
    """
    paths.check(rule)
    run = library.run(label)
    place = run.place / paths.RECORDED[options.probe]

    def make() -> Stability:
        require(run.has_checkpoint, f"run {label}: it has no checkpoint, which tells what network was recorded.")
        network = library.network(label, run.checkpoint().stem)
        recording = paths.opened(place, options.probe, network.net)
        trained = network.trained or Surrogate.none()
        return paths.stability(label, trained, network.net, recording, options, rule, progress)

    header = place / "header.json"
    changed = header.stat().st_mtime_ns if header.is_file() else 0
    return library.measured.get((run.place, changed, repr(options), repr(rule)), make)


def epochs(one: Stability) -> list[str]:
    """The names of its moments."""
    return labelled([point.epoch for point in one.swaps.points])


def numbers(one: Stability, s: int, t: int) -> list[Table]:
    """What a pair of moments says, and what the gates of s say of the last network, controls among them."""
    names = epochs(one)
    pair = [[name, rounded(float(values[s, t]))] for name, values in matrices(one).items()]
    into = [[name, rounded(float(values[s]))] for name, values in measures(one).items()]
    last = names[-1]
    return [
        Table(["measure", "value"], pair, f"network of epoch {names[t]} with the gates of epoch {names[s]}"),
        Table(["measure", "value"], into, f"the last network, of epoch {last}, with the gates of epoch {names[s]}"),
    ]


def within(options: PathsConfig, probe: str, images: int, moments: int) -> PathsConfig:
    """The options with what the page chose."""
    return options.model_copy(update={"probe": probe, "images": images, "moments": moments})
