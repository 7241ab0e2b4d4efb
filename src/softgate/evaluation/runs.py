"""The runs of a comparison: found, read, sorted into arms by what differs in their configs, paired by seed.

Nothing is refused here: a run that cannot take part is left out, with one line that says why.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from softgate import files
from softgate.errors import SoftgateError, printable
from softgate.evaluation.checkpoints import read_yaml, saved_config
from softgate.evaluation.config import CompareConfig
from softgate.surrogate.description import names
from softgate.training.config_differences import FREE, LENGTH, completed
from softgate.training.summary import history

Points = Sequence[tuple[float, float]]

GROUPS = ("surrogate", "model", "data", "optim", "schedule")
"""Groups whose choice names an arm."""

NOT_THE_RECIPE = (
    *(key for key in FREE if key not in LENGTH),
    *("seed", "channels_last", "experiment", "debug", "data.cache"),
    *("trainer.strategy", "trainer.logger", "trainer.enable_checkpointing"),
)
"""Keys, and groups, in which runs of one arm may differ: they change no weight, or where and how fast it is run."""


TRUE_GRADIENT = "true gradient"
"""What people call the arm of surrogate=none."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        directory: Where it lies.
        label: The shortest end of its path that no other run shares.
        config: `config.yaml`.
        summary: `summary.json`.
        points: `metrics.csv`: metric to (epoch, value).
        choices: Group to choice, where Hydra left them.
        overrides: The words that were typed or swept.
        sweep: The words of the sweep that it is a job of, if it is of one.
        arm: What distinguishes it from runs of other arms, in words.
        condition: The values of the keys under which arms are compared, in words; empty where they do not vary.
    """

    directory: Path
    label: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    points: Mapping[str, Points]
    choices: Mapping[str, str]
    overrides: Sequence[str]
    sweep: Sequence[str]
    arm: str = ""
    condition: str = ""

    @property
    def seed(self) -> int:
        """What pairs it with runs of other arms."""
        return int(self.config["seed"])

    @property
    def called(self) -> str:
        """The arm's name for people: surrogate=none is the true gradient."""
        head, comma, rest = self.arm.partition(", ")
        known = head in ("none", "hard") and not (self.config.get("surrogate") and softens(self))
        return f"{TRUE_GRADIENT}{comma}{rest}" if known else self.arm

    @property
    def command(self) -> str:
        """What makes this run again."""
        return command("train.py", self.overrides)

    @property
    def sweep_command(self) -> str | None:
        """What makes the whole sweep again."""
        words = [word for word in self.sweep if not word.startswith(("sweep.resume=", "hydra.sweep.dir="))]
        return command("train.py", ["-m", *words]) if words else None


def softens(run: Run) -> bool:
    """Whether a run was trained with anything but the true gradient."""
    rule = run.config.get("surrogate") or {}
    hard = all(rule.get(part, {}).get("name") == "hard" for part in ("gate", "pool")) and not names(rule)[1:]
    return not hard and rule.get("mix", 1) != 0


def command(script: str, words: Iterable[str]) -> str:
    """A command line that can be pasted into a shell."""
    return " ".join(["uv run", script, *map(shlex.quote, words)])


def read(paths: Sequence[Path], which: str) -> tuple[list[Run], list[str]]:
    """Reads runs, and says of each that cannot be compared why.

    Args:
        paths: Their directories.
        which: The checkpoint that is compared, best or last.

    Returns:
        The finished ones, and a line for each of the others.
    """
    found, left = [], []
    for path, label in zip(paths, labels(paths), strict=True):
        summary, config = files.read_json(path / "summary.json"), saved_config(path)
        if not summary:
            there = (path / "summary.json").is_file()
            why = "its summary.json is damaged" if there else "it has no summary.json, it did not finish"
            left.append(f"{label}: {why}.")
        elif summary.get("status", "finished") != "finished":
            left.append(f"{label}: it is {summary['status']}, not finished.")
        elif not (path / "checkpoints" / f"{which}.ckpt").is_file():
            left.append(f"{label}: it has no checkpoints/{which}.ckpt.")
        elif not isinstance(config.get("seed"), int):
            left.append(f"{label}: its config has no seed.")
        elif not _fits(_Summary, summary):
            left.append(f"{label}: its summary.json is damaged.")
        elif not _fits(_Config, config):
            left.append(f"{label}: its config.yaml is damaged.")
        else:
            try:
                found.append(_read(path, label, config, summary))
            except SoftgateError:
                left.append(f"{label}: its metrics.csv is damaged.")
    return found, left


class _Environment(BaseModel):
    python: str
    platform: str
    packages: dict[str, str | None]
    commit: str | None = None
    hardware: str
    devices: int = 1
    cores: int
    threads: int


class _Summary(BaseModel):
    status: str = "finished"
    seconds: float | None = None
    started: str | None = None
    environment: _Environment | None = None


class _Rule(BaseModel):
    gate: dict[str, Any] = {}
    pool: dict[str, Any] = {}


class _Data(BaseModel):
    fraction: float = 1.0


class _Config(BaseModel):
    surrogate: _Rule | None = None
    data: _Data | None = None


def _fits(kind: type[BaseModel], given: Mapping[str, Any]) -> bool:
    """Whether what a report reads of a file is what a run writes."""
    try:
        kind.model_validate(given, strict=True)
    except ValidationError:
        return False
    return True


def never_started(paths: Sequence[Path]) -> list[str]:
    """A line for each job that its sweep's table knows and that has no directory, where all others of it are asked for.

    Args:
        paths: The runs' directories.
    """
    left = []
    given = {path.resolve() for path in paths}
    for sweep in dict.fromkeys(path.resolve().parent for path in paths):
        try:
            with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            where = [sweep / files.as_given(row["directory"]) for row in rows]
            begun = [path for path in where if path.is_dir()]
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            continue
        if given >= set(begun):
            jobs = [row["job"] for row, path in zip(rows, where, strict=True) if path not in begun]
            left += [f"job {job} of {sweep.name}: it never started." for job in jobs]
    return left


def read_run(path: Path) -> Run | None:
    """A run by itself, finished or not, under its directory's name; None where it cannot be read."""
    summary, config = files.read_json(path / "summary.json"), saved_config(path)
    if (
        not summary
        or not isinstance(config.get("seed"), int)
        or not (_fits(_Summary, summary) and _fits(_Config, config))
    ):
        return None
    try:
        return _read(path, path.name, config, summary)
    except SoftgateError:
        return None


def _read(path: Path, label: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> Run:
    config = completed(config)  # or a new option would set older runs apart
    metrics = path / "metrics.csv"
    points = history(metrics) if metrics.is_file() else {}
    choices = _within(path / ".hydra" / "hydra.yaml", "hydra", "runtime", "choices")
    words = _words(read_yaml(path / ".hydra" / "overrides.yaml"))
    task = _words(_within(path.parent / "multirun.yaml", "hydra", "overrides", "task"))
    return Run(path, label, config, summary, points, choices if isinstance(choices, dict) else {}, words, task)


def _within(path: Path, *keys: str) -> Any:
    """What stands in a YAML file under one key within the other; None where nothing does."""
    found = read_yaml(path)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _words(found: Any) -> list[str]:
    """The words of a command, as a report can show them for somebody to type again."""
    return [printable(str(word)).replace("\n", " ") for word in found] if isinstance(found, list) else []


def labels(paths: Sequence[Path]) -> list[str]:
    """For each directory the shortest end of its path that no other one shares, as one word."""
    parts = [path.absolute().parts for path in paths]
    names: list[str] = []
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(part.strip("/") for part in each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def sort(runs: Sequence[Run], within: Sequence[str], tuned: Sequence[str]) -> list[Run]:
    """Gives every run the name of its arm, and its condition.

    Args:
        runs: The runs.
        within: Keys of the config, such as data.fraction: arms are compared at the same value.
        tuned: Keys of which every arm has its best value chosen; they do not make arms.

    Returns:
        The runs with `arm` and `condition`.
    """
    flat = [flatten(run.config) for run in runs]
    apart = (*NOT_THE_RECIPE, *within, *tuned)
    recipes = [{k: v for k, v in each.items() if not _under(k, apart) and not _is_seed(k)} for each in flat]
    groups = [
        g for g in GROUPS if len({_choice(run, g) for run in runs}) > 1 and not any(_under(k, (g,)) for k in within)
    ]
    named = groups or ["surrogate"]
    heads = [", ".join(_named(run, g) for g in named) for run in runs]
    everywhere = {key for key in _varying(recipes) if not _under(key, groups)}
    arms = []
    for recipe, head in zip(recipes, heads, strict=True):
        alike = [other for other, name in zip(recipes, heads, strict=True) if name == head]
        keys = sorted(everywhere | _varying(alike))
        keys = [key for key in keys if not _idle(key, recipe)]
        arms.append(", ".join([head, *(f"{_short(key)}={shown(recipe.get(key))}" for key in keys)]))
    moving = [key for key in within if len({shown(each.get(key)) for each in flat}) > 1]
    conditions = [", ".join(f"{key}={shown(each.get(key))}" for key in moving) for each in flat]
    return [replace(run, arm=a, condition=c) for run, a, c in zip(runs, arms, conditions, strict=True)]


def without_doubles(runs: Sequence[Run], tuned: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Keeps the newest of runs of one arm with the same seed; the others are named."""
    found: dict[tuple[Any, ...], Run] = {}
    left = []
    for run in sorted(runs, key=lambda run: str(run.summary.get("started", ""))):
        flat = flatten(run.config)
        key = (run.arm, run.condition, run.seed, *(shown(flat.get(k)) for k in tuned))
        if key in found:
            older = flatten(found[key].config)
            seeds = [k for k in flat if k != "seed" and _is_seed(k) and flat[k] != older.get(k)]
            others = "".join(f", {k}={flat[k]} where this has {older.get(k)} (runs are paired by seed)" for k in seeds)
            left.append(f"{found[key].label}: {run.label} is a newer run of {run.called} with seed {run.seed}{others}.")
        found[key] = run
    kept = set(map(id, found.values()))
    return [run for run in runs if id(run) in kept], left


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; lists and numbers as they are."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def require_known(options: CompareConfig, runs: Sequence[Run]) -> None:
    """Raises `SoftgateError` for names under `compare` that no run's config has."""
    known = {key for run in runs for key in flatten(run.config)}
    for option, keys in (("within", options.within), ("tune", options.tune)):
        for key in keys:
            whole = option == "within" and any(each.startswith(f"{key}.") for each in known)
            if known and key not in known and not whole:
                near = get_close_matches(key, sorted(known), n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise SoftgateError(f"compare.{option}={key}: no run has such an option.{hint}")


def _idle(key: str, recipe: Mapping[str, Any]) -> bool:
    """Whether an option of `train.` does nothing in a run, and makes no part of its arm's name."""
    attack = "train.adversarial."
    off = key.startswith("train.") and not recipe.get(key)
    return off or (key.startswith(attack) and not recipe.get(f"{attack}radius"))


def _short(key: str) -> str:
    return key.removeprefix("surrogate.").removeprefix("train.")


def _choice(run: Run, group: str) -> str:
    """A group's choice; where Hydra's own record is gone, what names it in the config."""
    if group in run.choices:
        return str(run.choices[group])
    part = run.config.get(group) or {}
    if group == "surrogate" and isinstance(part, Mapping):
        return "+".join(names(part))
    return str(part.get("name", "")) if isinstance(part, Mapping) else str(part)


def _named(run: Run, group: str) -> str:
    choice = _choice(run, group)
    return choice if group == "surrogate" else f"{group}={choice}"


def _varying(recipes: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {key for recipe in recipes for key in recipe}
    return {key for key in keys if len({shown(recipe.get(key)) for recipe in recipes}) > 1}


def _under(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2].endswith("seed")


def shown(value: Any) -> str:
    """A value of a config as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)
