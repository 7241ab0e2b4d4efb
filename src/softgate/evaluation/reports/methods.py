"""How a comparison was made: in words for its page, and as a paragraph on methods, for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softgate.evaluation.compare import Comparison
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.generalization.planning import POWER
from softgate.evaluation.generalization.statistics import LEVEL
from softgate.evaluation.reports import sentences
from softgate.evaluation.runs import NOT_THE_RECIPE, Run, flatten, softens
from softgate.surrogate.description import BLOCKS
from softgate.surrogate.rule import Surrogate
from softgate.tables import Table

LONG = ("max_epochs", "max_steps", "max_time")
WEIGHTS = (
    *("precision", "devices", "num_nodes", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("limit_train_batches", "overfit_batches", "sync_batchnorm", "deterministic"),
)
"""Options of the Trainer that weights depend on."""

SAID = ("data.name", "data.size", "model.name", "optim.interval", "optim.monitor")
"""Options that the first sentence says, or that a scheduler of one's own alone looks at."""

OFF: Sequence[Any] = (None, False, -1, 0, "", "auto", [], {})
"""Values of the Trainer's options that do nothing."""


def methods(found: Comparison) -> str:
    """A paragraph with every setting that a reader needs to do it again, ready to be put into a paper.

    Args:
        found: The comparison, with its arms under the names that people read.
    """
    parts = [*_training(found), *_measuring(found), _statistics(found), _software(found)]
    return " ".join(filter(None, parts))


def _training(found: Comparison) -> list[str]:
    shared, data = _shared(found), found.data
    groups = {name: _settings(shared, name) for name in ("data", "model", "optim")}
    name, size = shared.get("model.name"), shared.get("data.size")
    pixels = f" at {size} × {size} pixels" if size else ""
    said = [
        f"We trained {name or 'networks'} on {data['name']} ({sentences.counted(len(data['classes']), 'class', 'es')})"
        f"{pixels}, {sentences.counted(len(found.runs), 'run')} in all."
    ]
    said += [f"Arms: {'; '.join(f'{arm} ({_rule(run)})' for arm, run in _first(found).items())}."]
    if len({run.condition for run in found.runs}) > 1:
        said.append(f"Arms were compared at {'; '.join(found.conditions)}.")
    said.append(_seeds(found))
    every = sorted({length for run in found.runs if (length := _length(run))})
    said += [f"Training lasted {' or '.join(every)}."] if every else []
    titles = {"data": "Data", "model": "Network", "optim": "Optimisation"}
    said += [f"{titles[group]}: {words}." for group, words in groups.items() if words]
    trainer = [
        f"{key} {shared[f'trainer.{key}']}"
        for key in WEIGHTS
        if not any(shared.get(f"trainer.{key}") is one or shared.get(f"trainer.{key}") == one for one in OFF)
    ]
    said += [f"Training: {', '.join(trainer)}."] if trainer else []
    said += [f"Weights were averaged exponentially with decay {shared['ema']}."] if shared.get("ema") else []
    return [*said, *found.tuned]


def _shared(found: Comparison) -> dict[str, Any]:
    """The options that all runs have with one value."""
    flat = [flatten(run.config) for run in found.runs]
    return {k: v for k, v in flat[0].items() if all(k in each and each[k] == v for each in flat)}


def _settings(shared: Mapping[str, Any], group: str) -> str:
    """A group's options as words, without those that change nothing."""
    free = [key.partition(".")[2] for key in NOT_THE_RECIPE if key.startswith(f"{group}.")]
    known = {key.removeprefix(f"{group}."): value for key, value in shared.items() if key.startswith(f"{group}.")}
    return ", ".join(
        f"{key.replace('_', ' ').replace('.', ' ')} {_value(value)}"
        for key, value in known.items()
        if value not in (None, [], {}) and key not in free and f"{group}.{key}" not in SAID
    )


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_value, value))
    return {"True": "on", "False": "off"}.get(str(value), f"{value:g}" if isinstance(value, float) else str(value))


def _first(found: Comparison) -> dict[str, Run]:
    """A run of every arm."""
    return {arm: next(run for run in found.runs if run.arm == arm) for arm in found.arms}


def _rule(run: Run) -> str:
    """The rule of the backward pass in words."""
    rule = run.config.get("surrogate")
    if not rule:
        return "rule not recorded"
    if not softens(run):
        return "hard gates, hard max pooling: the gradient of the network itself"
    parts = []
    blocks = [(name, f"{name} rule") for name in BLOCKS if isinstance(rule.get(name), Mapping)]
    for name, title in (("gate", "gate"), ("pool", "max pooling"), *blocks):
        part = dict(rule.get(name) or {})
        if part.get("name") == "own":
            continue
        arguments = ", ".join(f"{key} {_value(value)}" for key, value in part.items() if key != "name")
        parts.append(f"{title} {part.get('name')}" + (f" with {arguments}" if arguments else ""))
    later = {"strict": False, "schedule.temperature": None, "schedule.mix": None, "norm": "own", "product": "own"}
    usual = flatten(Surrogate().to_dict()) | later
    said = tuple(f"{name}." for name in ("gate", "pool", *BLOCKS))
    others = {key: value for key, value in flatten(rule).items() if not key.startswith(said)}
    other = [f"{key} {_value(value)}" for key, value in others.items() if value not in (None, usual.get(key), [], {})]
    return ", ".join([*parts, *other])


def _seeds(found: Comparison) -> str:
    by_arm = {arm: sorted({run.seed for run in found.runs if run.arm == arm}) for arm in found.arms}
    same = len(set(map(tuple, by_arm.values()))) == 1
    counted = {arm: f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" for arm, seeds in by_arm.items()}
    said = f"{counted[found.baseline]} in every arm" if same else "; ".join(f"{a}: {s}" for a, s in counted.items())
    data = [run.config.get("data") or {} for run in found.runs]
    drawn = all(
        one.get("fraction", 1) < 1 and one.get("fraction_seed") == run.seed
        for one, run in zip(data, found.runs, strict=True)
    )
    return f"Seeds: {said}" + ("; each seed also drew the training images." if drawn else ".")


def _length(run: Run) -> str:
    trainer = run.config.get("trainer") or {}
    ends = {key: trainer.get(key) for key in LONG if trainer.get(key) not in (None, -1)}
    words = {"max_epochs": "{} epochs", "max_steps": "at most {} steps", "max_time": "at most {} (DD:HH:MM:SS)"}
    said = [words[key].format(end) for key, end in ends.items()]
    return ", ".join("1 epoch" if one == "1 epochs" else one for one in said)


def _measuring(found: Comparison) -> list[str]:
    epoch = "last" if found.options.checkpoint == "last" else "best"
    titles = sentences.listed([MEASURES[key].title for key in found.keys])
    return [
        f"Networks of the {epoch} epoch were measured in evaluation mode under the true gradient, all on the same "
        f"{sentences.measured(found)}: {titles}.",
        sizes(found),
    ]


def _statistics(found: Comparison) -> str:
    level, margin, base = found.options.level, found.options.equivalence, sentences.the(found.baseline)
    alpha = f"{100 * (1 - level):g} %"
    equal = (
        f" Arms were called equivalent where the two one-sided tests at {alpha}, corrected likewise, ruled out a "
        f"difference of {margin:g} percentage points of {MEASURES[PRIMARY].title} or more."
    )
    return (
        f"Differences from {base} were paired by seed and by image, with seeds and images both taken as random: "
        f"{100 * level:g} % intervals and two-sided p rest on Student's t over seeds with the variance of the choice "
        f"of images added. Claims are made on {MEASURES[PRIMARY].title} at {alpha} after Holm's correction over arms."
        f"{'' if margin is None else equal} Detectable differences are at a power of {100 * POWER:g} %."
    )


def _software(found: Comparison) -> str:
    kinds = versions(found)
    with_what = kinds[0].rpartition(" (")[0] if len(kinds) == 1 else "; ".join(kinds)  # of one kind, whose is clear
    return f"Software and hardware: {with_what}. Training took {hours(found):.3g} device-hours."


def hours(found: Comparison) -> float:
    """Device-hours of training, over all runs."""
    seconds = [float(run.summary.get("seconds") or 0) for run in found.runs]
    devices: list[int] = [(run.summary.get("environment") or {}).get("devices", 1) for run in found.runs]
    return sum(s * d for s, d in zip(seconds, devices, strict=True)) / 3600


def how(found: Comparison) -> str:
    """How claims are made, and what the charts show."""
    level, margin = found.options.level, found.options.equivalence
    equal = (
        f"An arm is called equivalent where its {2 * level - 1:.0%} interval lies within ±{margin or 0:g} pp of top-1 "
        f"and p of a difference as large, so corrected too, is at most {1 - level:.2g}: that arms are not told apart "
        f"does not say that they are alike. "
    )
    return (
        f"Each arm minus {sentences.the(found.baseline)}, paired by seed and by image. An arm is called better "
        f"or worse only where its {level:.0%} interval excludes 0 and p, after Holm's correction over the arms of that "
        f"measure, is at most {1 - level:.2g}. {'' if margin is None else equal}"
        f"Intervals are for other seeds and other images: Student's t over seeds, with the chance that lies in the "
        f"choice of images added; measures without a value for each image (ECE, gap, sharpness) vary over seeds only. "
        f"Claims rest on {MEASURES[PRIMARY].title}; the other measures say where a difference lies. Marks below a line "
        f"are seeds; red is told apart. Detectable: the least true difference that these seeds find 4 times in 5. "
        f"pp: percentage points."
    )


def ahead(found: Comparison) -> str:
    """What the table of other seeds says."""
    return (
        f"Of {MEASURES[PRIMARY].title}: the standard deviation of one seed's difference, the least true difference "
        f"that these seeds find four times in five, and how many seeds find one of half a point, a point and two "
        f"points as often. In brackets what the {LEVEL:.0%} chi-square interval of that deviation makes of each: few "
        f"seeds know it badly. No number: these images are too few, and more seeds do not lessen the chance that lies "
        f"in their choice."
    )


def sizes(found: Comparison) -> str:
    """On how many images, and how hard."""
    options = found.options
    corruptions, attack = options.corruptions, options.attack
    severities = ", ".join(map(str, corruptions.severities))
    families = ", ".join(corruptions.families)
    radii = [f"Linf {attack.linf}"] if attack.linf is not None else []
    radii += [f"L2 {attack.l2} at 32 px"] if attack.l2 is not None else []
    few = options.sharpness.images
    sizes = ""
    if families and severities:
        sizes += f"Corrupted: {families}, severities {severities}, {corruptions.images or 'all'} images. "
    if radii:
        sizes += (
            f"Attacks: {attack.steps} steps, {sentences.counted(attack.restarts, 'restart')}, "
            f"{attack.images or 'all'} images, {', '.join(radii)}. "
        )
    if few != 0:
        sizes += f"Sharpness: {few or 'all'} training images. "
    return sizes.rstrip()


def recipe(found: Comparison) -> Table:
    """What all runs share."""
    beside = ("callbacks", "readout", "hydra")
    rows = [[key, str(value)] for key, value in _shared(found).items() if not key.startswith(beside)]
    return Table(["key", "value"], rows)


def versions(found: Comparison) -> list[str]:
    """What runs and the report were made with, each kind once."""
    kinds: dict[str, list[str]] = {}
    for label, made in [
        *((run.label, run.summary.get("environment")) for run in found.runs),
        ("this report", found.environment),
    ]:
        kinds.setdefault(_made_with(made), []).append(label)
    return [f"{kind} ({_several(names)})" for kind, names in kinds.items()]


def _made_with(made: Mapping[str, Any] | None) -> str:
    if not made:
        return "not recorded"
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items() if version)
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    where = f"{made['devices']} × {made['hardware']}, {made['cores']} cores, {made['threads']} threads"
    return f"Python {made['python']}, {packages}{commit}; {made['platform']}; {where}"


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
