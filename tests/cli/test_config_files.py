"""The config files: every choice composes, is commented and passes the checks."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import softgate
from configs import CONF, TINY, composed, container
from softgate.evaluation import evaluate
from softgate.training.config import TrainConfig
from softgate.training.train import train

CONFIGS = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(CONF)))
def test_every_key_has_a_one_line_comment(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    if "help" in path.parts:
        return
    for line in lines:
        key = re.match(r"\s*(- )?[\w/@]+:\s*(\S.*)?$", line)
        if key and (value := key[2]) and not line.strip().startswith("- override"):
            assert " # " in value, f"{path.name}: {line.strip()}"


@pytest.mark.parametrize("group", ["model", "surrogate", "schedule", "data", "trainer", "logger", "callbacks", "optim"])
def test_every_choice_of_every_group_composes_and_passes_the_checks(group):
    for path in (CONF / group).glob("*.yaml"):
        if path.stem != "default":
            named = {
                "model/target": "model._target_=torch.nn.Flatten",
                "optim/target": "optim._target_=torch.optim.Rprop",
                "data/torchvision": "data.name=Flowers102",
                "data/target": "data._target_=torch.initial_seed",
                "model/timm": "model.name=resnet26",
                "model/dgn": "model.base=mlp",
                "model/dlgn": "model.base=mlp surrogate=none",
            }
            more = named.get(f"{group}/{path.stem}", "").split()
            cfg = container(f"{group}={path.stem}", *more, directory=Path("x"))
            if cfg["trainer"]["accelerator"] == "gpu" and not torch.cuda.is_available():
                cfg["trainer"]["accelerator"] = "cpu"
            TrainConfig.read(cfg)


@pytest.mark.parametrize(("name", "data"), [("imagenette", "imagenette"), ("whitebox", "mnist")])
def test_experiments_compose(name, data):
    found = container(f"experiment={name}", directory=Path("x"))
    assert found["data"]["name"] == data
    if found["trainer"]["accelerator"] != "gpu":
        TrainConfig.read(found)


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((CONF / "experiment" / "generalization").glob("*.yaml"))]
)
def test_every_job_of_a_generalization_preset_composes_and_passes_the_checks(name, monkeypatch):
    """The sweep of `train.py -m experiment=generalization/NAME`, as Hydra deals it out."""
    from itertools import product

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    words = f"experiment=generalization/{name}"
    composed(words, directory=Path("x"))
    params = OmegaConf.to_container(HydraConfig.get().sweeper.params)
    assert {"none", "excitation", "excitation_unit_rms", "sugar"} <= set(params["surrogate"].split(","))
    assert len(str(params["seed"]).split(",")) >= 3
    rules = []
    for values in product(*(str(choices).split(",") for choices in params.values())):
        job = dict(zip(params, values, strict=True))
        # Seeds make no other config, and of the learning rates the ends are enough.
        if job["seed"] == str(params["seed"]).split(",")[0] and job.get("optim.lr", "0.2") in ("0.0125", "0.2"):
            cfg = container(words, *(f"{key}={value}" for key, value in job.items()), directory=Path("x"))
            TrainConfig.read(cfg)
            rules.append(cfg["surrogate"] | {"lr": cfg["optim"]["lr"]})
    assert len(rules) >= 4
    assert all(rules.count(rule) == 1 for rule in rules)


@pytest.mark.parametrize("surrogate", ["random_gate", "shuffled_gate", "excitation_matched", "excitation_unit_rms"])
def test_control_rules_train_with_every_callback_that_reads_the_network(surrogate, tmp_path):
    words = (*TINY, f"surrogate={surrogate}", "trainer.max_epochs=1", "seed=3")
    summary = train(composed(*words, directory=tmp_path))
    assert summary["status"] == "finished"
    assert summary["train/loss"] > 0
    assert (tmp_path / "diagnostics.csv").is_file()
    module, _ = evaluate.restore(tmp_path / "checkpoints" / "last.ckpt")
    assert module.rule == softgate.Surrogate.from_dict(container(*words, directory=tmp_path)["surrogate"])


def test_random_gates_are_other_ones_for_every_seed_and_a_read_out_needs_no_seed(tmp_path):
    assert container("surrogate=random_gate", "seed=7", directory=Path("x"))["surrogate"]["gate"]["seed"] == 7
    cfg = container("readout=random_gate".replace("readout", "surrogate@readout"), name="evaluate", directory=tmp_path)
    assert cfg["readout"]["gate"]["seed"] == 0


def test_every_argument_of_lightnings_trainer_is_a_key():
    import inspect

    arguments = set(inspect.signature(pl.Trainer.__init__).parameters) - {
        "self",
        "logger",
        "callbacks",
        "default_root_dir",
    }
    assert set(container(directory=Path("x"))["trainer"]) == arguments


def test_help_speaks_of_options_that_exist():
    text = (CONF / "hydra" / "help" / "train.yaml").read_text()
    cfg = OmegaConf.create(container(directory=Path("x")))
    options = re.findall(r"^    ([a-z_.]+)=", text, flags=re.M)
    assert len(options) > 15
    launcher = OmegaConf.load(CONF / "hydra" / "launcher" / "processes.yaml")
    for option in options:
        if option.startswith("hydra.launcher."):
            assert option.removeprefix("hydra.launcher.") in launcher, option
            continue
        known = (CONF / option).is_dir() or OmegaConf.select(cfg, option, default="absent") != "absent"
        assert known, option


def test_a_schedule_is_chosen_as_a_group_and_changed_by_keys_and_the_read_out_has_none():
    cfg = container("schedule=warmup", "surrogate=sugar", "surrogate.schedule.mix.until=7", directory=Path("x"))
    rule = softgate.Surrogate.from_dict(cfg["surrogate"])
    assert rule.schedule == softgate.Schedule(mix=softgate.Ramp(0.0, 1.0, 7))
    assert rule.gate == softgate.gates.BSiLU()
    assert softgate.Surrogate.from_dict(cfg["readout"]) == softgate.Surrogate()
    words = ("schedule=anneal", "trainer.max_epochs=9", "surrogate.schedule.on={until: 4}")
    rule = softgate.Surrogate.from_dict(container(*words, directory=Path("x"))["surrogate"])
    assert rule.schedule.temperature == softgate.Ramp(3.0, 1.0, 9, shape="cosine")
    assert rule.schedule.on == softgate.Window(until=4)
    typed = container("surrogate.schedule.mix={start: 0, end: 1, until: 5}", directory=Path("x"))["surrogate"]
    assert softgate.Surrogate.from_dict(typed).schedule.mix == softgate.Ramp(0, 1, 5)


def test_sites_are_chosen_for_training_and_read_out_apart():
    words = ("surrogate.sites.names=[layer1.*]", "readout.sites.kinds=[relu]", "readout.scale=channel")
    cfg = container(*words, directory=Path("x"))
    assert softgate.Surrogate.from_dict(cfg["surrogate"]).sites == softgate.Select(names=("layer1.*",))
    readout = softgate.Surrogate.from_dict(cfg["readout"])
    assert (readout.sites, readout.scale) == (softgate.Select(kinds=("relu",)), "channel")
