"""Whether two configs make the same run: which options may differ between the parts of one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
"""When a run ends; a finished one may be given more."""

FREE = (
    *LENGTH,
    *("resume", "sweep", "name", "print_config", "plugins", "logger", "callbacks", "readout", "compile"),
    *("trust", "metrics", "print_model", "figures"),
    *("surrogate.strict", "data.root", "data.num_workers", "data.cache_dir", "data.download", "data.test"),
    *("trainer.min_epochs", "trainer.min_steps", "trainer.accelerator", "trainer.log_every_n_steps"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.num_sanity_val_steps"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.check_val_every_n_epoch", "trainer.val_check_interval", "trainer.inference_mode"),
    *("trainer.profiler", "trainer.detect_anomaly", "trainer.benchmark", "trainer.deterministic"),
    *("trainer.enable_autolog_hparams", "trainer.model_registry", "trainer.plugins"),
)
"""Options, or groups of them, that may differ from the run's: they decide where and how long, not what is learnt."""


SINCE: Mapping[str, Mapping[str, Any]] = {
    "data": {
        **{"channels": 3, "classes": None, "val_split": None, "val_seed": 0, "test": None},
        **{"label_noise": 0.0, "label_noise_seed": 0},
    },
    "model": {"classes": None, "library": "torchvision", "width": 1.0, "depth": 1.0},
    "surrogate": {"activation": {"name": "own"}, "norm": "own", "attention": {"name": "own"}, "product": "own"},
    "optim": {"scheduler": "cosine", "interval": "epoch", "monitor": "val/loss"},
}
"""Options that came after 0.1.0, and what runs from before had in their place."""

ABSENT_GROUPS: Mapping[str, Mapping[str, Any]] = {
    "gates_from": {"run": None, "epoch": None, "gates": "epoch", "seed": 314},
    "train": {
        **{"noise": 0.0, "gradient_penalty": 0.0},
        "adversarial": {"radius": 0.0, "norm": "l2", "steps": 7, "rule": "true_gradient"},
    },
}
"""Whole groups that came after it, likewise."""

ABSENT = "not set"


def completed(config: Any) -> Any:
    """A run's config, with the options that came after it was written."""
    if not isinstance(config, Mapping):
        return config
    since = {group: {**new, **config[group]} for group, new in SINCE.items() if isinstance(config.get(group), Mapping)}
    return {**copy.deepcopy(ABSENT_GROUPS), **config, **since}


def differences(before: Any, now: Any, free: Iterable[str] = ()) -> dict[str, tuple[Any, Any]]:
    """The keys, with dots, that two configs differ in, with both values; those of `free` are left out."""
    old, new = (dict(_leaves(completed(config))) for config in (before, now))
    found = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in sorted({*old, *new})}
    names = tuple(free)
    return {key: pair for key, pair in found.items() if pair[0] != pair[1] and not _within(key, names)}


def as_long(before: Any, now: Any) -> bool:
    """Whether two configs end a run at the same moment; a key that is not set is null."""
    differ = differences(before, now)
    pairs = [pair for key, pair in differ.items() if _within(key, LENGTH)]
    return all({ABSENT: None}.get(str(a), a) == {ABSENT: None}.get(str(b), b) for a, b in pairs)


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(node) if isinstance(node, (list, tuple)) else node
