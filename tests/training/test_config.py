"""The config as types: what each group refuses, in one sentence with path, value and what is allowed."""

import ast
import math
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loggers import TensorBoardLogger

from configs import ROOT, composed, container
from softgate import SoftgateError, Surrogate
from softgate.options import Options
from softgate.training import SoftgateModule, build, checkpoints
from softgate.training.config import TrainConfig
from softgate.training.train import train

PLAIN = container("logger=[csv,tensorboard,wandb]", "data=imagenette", directory=Path("x"))


def groups(model: type[Options] = TrainConfig) -> list[type[Options]]:
    """A group and those within it."""
    found = [model]
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            own = "target" in getattr(kind, "model_fields", ())  # other people's code: tests/test_targets.py
            if isinstance(kind, type) and issubclass(kind, Options) and not own:
                found += groups(kind)
    return found


GROUPS = groups()
FIELDS = [(group, name) for group in GROUPS for name in group.model_fields]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The config of the main job with one value changed."""
    plain = deepcopy(PLAIN)
    *parents, key = path.split(".")
    at = plain
    for parent in parents:
        at = at[parent]
    at[key] = value
    return plain


def path_of(group: type[Options], name: str) -> str:
    return f"{group.at}.{name}" if group.at else name


def kinds(annotation: Any) -> set[Any]:
    """The plain types that a field takes."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        parts = get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]
        return set().union(*map(kinds, parts))
    return {annotation}


NUMBERS = [(g, n) for g, n in FIELDS if kinds(g.model_fields[n].annotation) & {int, float}]
WHOLE = [(g, n) for g, n in NUMBERS if bool not in kinds(g.model_fields[n].annotation)]
NAMES = [(g, n) for g, n in WHOLE if str in kinds(g.model_fields[n].annotation)]
"""What YAML may have read as a number."""


def named(cases: list[tuple[type[Options], str]]) -> Any:
    return pytest.mark.parametrize(("group", "name"), cases, ids=[path_of(*case) for case in cases])


def test_every_group_of_the_config_is_one_of_the_types():
    expected = {
        "",
        "data",
        "data.augment",
        "model",
        "optim",
        "trainer",
        "logger",
        "logger.wandb",
        "sweep",
        "callbacks",
        "figures",
        "gates_from",
        "train",
        "train.adversarial",
    }
    expected |= {f"callbacks.{name}" for name in PLAIN["callbacks"]}
    assert {group.at for group in GROUPS} == expected


def test_the_config_of_the_main_job_is_read_and_kept_as_it_was():
    read = TrainConfig.read(PLAIN)
    assert read.plain == PLAIN
    assert list(read.plain) == list(PLAIN)
    assert repr(read.optim.plain) == repr(PLAIN["optim"])
    assert read.surrogate == Surrogate.from_dict(PLAIN["surrogate"])
    assert read.data.augment.crop_scale == tuple(PLAIN["data"]["augment"]["crop_scale"])
    with pytest.raises(Exception, match="frozen"):
        read.seed = 3


def test_a_value_keeps_its_type():
    read = TrainConfig.read(changed("optim.weight_decay", 0))
    assert repr(read.optim.plain["weight_decay"]) == repr(read.optim.weight_decay) == "0"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.at or "all")
def test_types_and_yaml_files_have_the_same_keys_and_defaults(group):
    plain = PLAIN
    for key in filter(None, group.at.split(".")):
        plain = plain[key]
    assert set(plain) == set(group.model_fields)
    usual = container("logger=wandb", directory=Path("x")) | {"data": container("data=folder")["data"]}
    for key in filter(None, group.at.split(".")):
        usual = usual[key]
    for name, field in group.model_fields.items():
        if not field.is_required() and not isinstance(field.default, Options) and group.at not in ("optim", "logger"):
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            if path_of(group, name) in ("logger.wandb.name", "logger.wandb.job_type", "data.archive"):
                continue  # YAML's are made of the run's name, or of one data set only
            if (group.at == "data" and name == "size") or group.at == "data.augment":
                continue  # without a file nothing is augmented
            assert default == usual[name], name


@cache
def attributes() -> set[str]:
    """Every attribute that some module of softgate reads."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src" / "softgate").rglob("*.py")]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("group", [g for g in GROUPS if g.at not in ("trainer", "logger.wandb")], ids=lambda g: g.at)
def test_every_key_is_read_by_somebody(group):
    # The modules of plugins are imported first, words and csv are kept for those who read files.
    assert set(group.model_fields) - attributes() <= {"plugins", "overrides", "csv"}


@given(st.data())
def test_an_unknown_key_is_refused_by_its_path_with_the_nearest_there_is(data):
    group = data.draw(st.sampled_from([group for group in GROUPS if group.at != "logger.wandb"]))
    near = data.draw(st.sampled_from(sorted(group.model_fields)))
    place = data.draw(st.integers(0, len(near)))
    key = near[:place] + data.draw(st.sampled_from("xyzq")) + near[place:]
    with pytest.raises(SoftgateError) as error:
        TrainConfig.read(changed(path_of(group, key), 1))
    said = str(error.value)
    assert said.startswith(f"{group.at}.{key}: there is no such option" if group.at else f"option={key}: there is no")
    assert all(name in said for name in group.model_fields)
    assert f"Did you mean {group.at}." in said or f"Did you mean '{near[0]}" in said or "Did you mean" not in said


def test_the_nearest_key_is_named():
    with pytest.raises(
        SoftgateError, match=r"^callbacks\.grids\.evry_n_epochs: .*mean callbacks\.grids\.every_n_epoch"
    ):
        TrainConfig.read(changed("callbacks.grids.evry_n_epochs", 1))


@named([case for case in WHOLE if case not in NAMES])
def test_a_number_is_no_bool_no_text_no_list_and_no_nan(group, name):
    path = path_of(group, name)
    for value in (True, False, "many", math.nan, math.inf, -math.inf, [1], {"a": 1}):
        with pytest.raises(SoftgateError, match=rf"^{re.escape(path)}={re.escape(str(value))}: .*\.$"):
            TrainConfig.read(changed(path, value))


@named([(g, n) for g, n in FIELDS if kinds(g.model_fields[n].annotation) == {bool}])
def test_a_switch_is_true_or_false(group, name):
    path = path_of(group, name)
    for value in (0, 1, "true", None, 1.0):
        with pytest.raises(SoftgateError, match=rf"^{re.escape(path)}={value}: true or false is needed\.$"):
            TrainConfig.read(changed(path, value))


@named([(g, n) for g, n in WHOLE if int in kinds(g.model_fields[n].annotation) and (g, n) not in NAMES])
def test_a_whole_number_is_not_below_its_range(group, name):
    with pytest.raises(SoftgateError, match=rf"^{re.escape(path_of(group, name))}=-2: "):
        TrainConfig.read(changed(path_of(group, name), -2))


@pytest.mark.parametrize("path", ["callbacks", "data", "callbacks.guard", "data.augment", "model", "trainer", "sweep"])
@pytest.mark.parametrize("value", [3, None, "x", []], ids=repr)
def test_a_group_has_options_under_it(path, value):
    with pytest.raises(
        SoftgateError, match=rf"^{path}={re.escape(str(value))}: it has options under it, such as {path}\."
    ):
        TrainConfig.read(changed(path, value))


def test_a_key_that_is_not_there_is_asked_for():
    plain = deepcopy(PLAIN)
    del plain["optim"]["lr"]
    with pytest.raises(SoftgateError, match=r"^optim\.lr is not set; give it on the command line as optim\.lr=\.\.\.$"):
        TrainConfig.read(plain)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.booleans(), inner, max_size=2),
    max_leaves=4,
)
LEAVES = [path_of(*case) for case in FIELDS if path_of(*case) not in ("plugins",)]


@given(st.sampled_from(LEAVES), JUNK)
def test_whatever_stands_at_a_key_is_taken_or_refused_in_one_sentence(path, value):
    said = ""
    try:
        TrainConfig.read(changed(path, value))
    except SoftgateError as error:
        said = str(error).replace(str(value), "")
    assert not any(word in said for word in ("pydantic", "validation error", "\n"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "callbacks.mine",
            {"every_n_epochs": 1},
            r"callbacks\.mine: .*alignment, checkpoint, diagnostics, grids",
        ),
        ("callbacks.checkpoint.every_n_steps", -1, r"every_n_steps=-1: a whole number >= 0 is needed; 0 is per epoch"),
        ("callbacks.guard.every_n_steps", -1, r"every_n_steps=-1: a whole number >= 0 is needed; 0 is off"),
        ("callbacks.grids.artifact", True, None),
        ("callbacks.grids.scale", "sell", r"callbacks\.grids\.scale=sell: .*Did you mean 'cell'"),
        (
            "data.augment.crop_scale",
            [0.9, 0.1],
            r"crop_scale=\[0\.9, 0\.1\]: two numbers, 0 < smallest <= largest <= 1",
        ),
        ("data.augment.flip", 1, r"data\.augment\.flip=1: true or false"),
        ("data.download", "yes", r"data\.download=yes: true or false"),
        ("data.mean", [0.1, math.nan, 0.1], r"data\.mean=\[0\.1, nan, 0\.1\]: three numbers are needed"),
        ("data.root", 2024, None),
        ("data.archive", "16px", r"data\.archive=16px: .*allowed: 160px, 320px, full"),
        ("optim.momentum", 1, r"optim\.momentum=1: a number >= 0 and < 1 is needed"),
        ("optim.name", "sdg", r"optim\.name=sdg: .*allowed: adamw, sgd\. Did you mean 'sgd'"),
        ("logger.csv", False, r"logger\.csv=False: metrics\.csv is always written"),
        ("logger.tensorbord", True, r"logger\.tensorbord: .*Did you mean logger\.tensorboard"),
        ("logger.wandb.projct", "x", r"logger\.wandb=projct: .*Did you mean 'project'"),
        ("logger.wandb.notes", "of mine", None),
        ("trainer.logger", True, r"trainer\.logger: there is no such option"),
        ("trainer.devices", True, r"trainer\.devices=True: a whole number >= 1"),
        ("trainer.max_time", 3, r"trainer\.max_time=3: "),
        ("surrogate.gate.temprature", 1, r"surrogate\.gate\.temprature=1: sigmoid has no such setting"),
        ("readout.mix", 2, r"readout: surrogate\.mix=2"),
        ("name", None, r"name=None: a text"),
        ("name", 3, None),
        ("ema", 0.9, None),
        ("ema", 1, r"ema=1: null or a decay between 0 and 1"),
    ],
)
def test_what_is_refused_and_what_is_not(path, value, said):
    if said is None:
        TrainConfig.read(changed(path, value))
        return
    with pytest.raises(SoftgateError, match=said):
        TrainConfig.read(changed(path, value))


def test_an_archive_is_refused_where_nobody_reads_it():
    with pytest.raises(SoftgateError, match=r"data\.archive=160px: digits has no archives to choose from"):
        TrainConfig.read(container("data=digits", "+data.archive=160px", directory=Path("x")))


def test_soft_gates_that_leave_8_bits_are_refused_as_the_config_is_read():
    words = ("callbacks=paths", "callbacks.paths.soft=true", "readout.gain=unit_rms")
    with pytest.raises(SoftgateError, match=r"leave \[0, 1\]"):
        TrainConfig.read(container(*words, directory=Path("x")))


@pytest.mark.parametrize("word", ["sweep=3", "+callbacks.mine._target_=my.Callback", "+data.foo=1", "+sweep.x=1"])
def test_a_command_says_so_before_data_is_loaded(word, monkeypatch):
    monkeypatch.setattr(build, "ImageData", None)
    with pytest.raises(SoftgateError, match=word.split("=")[0].lstrip("+").split("._")[0]):
        train(composed(word, directory=Path("unused")))


def test_tensorboard_can_be_switched_off(tmp_path):
    for on, count in ((True, 1), (False, 0)):
        config = TrainConfig.read(container("logger=tensorboard", f"logger.tensorboard={str(on).lower()}"))
        made = build.loggers(config, tmp_path)
        assert sum(isinstance(logger, TensorBoardLogger) for logger in made) == count


def test_a_checkpoint_with_a_key_that_nobody_reads_is_still_restored(tmp_path):
    module = SoftgateModule({"name": "squeezenet1_1", "stem": "small"}, Surrogate().to_dict(), ["a", "b"])
    settings = {key: module.hparams[key] for key in ("model", "surrogate", "classes")}
    options = {"name": "digits", "size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    content = {"hyper_parameters": settings, "state_dict": module.state_dict()}
    content["datamodule_hyper_parameters"] = {"options": options | {"foo": 3}}
    torch.save(content, tmp_path / "old.ckpt")
    assert checkpoints.restore(tmp_path / "old.ckpt")[1] == options
