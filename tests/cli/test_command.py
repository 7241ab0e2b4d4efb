"""From configs to runs: what is checked before anything is loaded, how mistakes are phrased, what is restored."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import softgate
from configs import CONF, ROOT, TINY, composed, container
from softgate import SoftgateError, files
from softgate.cli import command, exits
from softgate.evaluation import evaluate
from softgate.evaluation.runs import find_checkpoint
from softgate.training import build
from softgate.training import summary as report
from softgate.training.train import train

CONFIGS = sorted(CONF.rglob("*.yaml"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    train(composed(*TINY, "trainer.max_epochs=1", directory=directory))
    return directory


# -- the config files ---------------------------------------------------------------------------------


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
            cfg = container(f"{group}={path.stem}", directory=Path("x"))
            if cfg["trainer"]["accelerator"] == "gpu" and not torch.cuda.is_available():
                cfg["trainer"]["accelerator"] = "cpu"
            build.check(cfg)


@pytest.mark.parametrize("name", ["imagenette"])
def test_experiments_compose(name):
    assert container(f"experiment={name}", directory=Path("x"))["data"]["name"] == name


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
        if job["seed"] == "0" and job.get("optim.lr", "0.2") in ("0.0125", "0.2"):
            cfg = container(words, *(f"{key}={value}" for key, value in job.items()), directory=Path("x"))
            build.check(cfg)
            rules.append(cfg["surrogate"] | {"lr": cfg["optim"]["lr"]})
    assert len(rules) >= 4
    assert all(rules.count(rule) == 1 for rule in rules)


@pytest.mark.parametrize("surrogate", ["random_gate", "shuffled_gate", "excitation_matched", "excitation_unit_rms"])
def test_controls_train_with_everything_that_watches_a_run(surrogate, tmp_path):
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

    import pytorch_lightning as pl

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


# -- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("surrogate.gate.temperature=0", r"surrogate\.gate\.temperature=0: a finite number > 0"),
        ("surrogate.gate.temperature=nan", r"surrogate\.gate\.temperature=nan"),
        ("surrogate.gate.name=sigmod", r"surrogate\.gate\.name=sigmod.*Did you mean 'sigmoid'"),
        ("surrogate.mix=2", r"surrogate\.mix=2: a number from 0 to 1"),
        ("readout.gain=loud", r"readout: surrogate\.gain=loud"),
        ("ema=2", r"ema=2: null or a decay"),
        ("seed=-1", r"seed=-1"),
        ("compile=maybe", r"compile=maybe: true or false"),
        ("model.name=resnet81", r"model\.name=resnet81.*Did you mean 'resnet18'"),
        ("trainer.max_epochs=0", r"trainer\.max_epochs=0"),
        ("callbacks.grids.every_n_epochs=x", r"callbacks\.grids\.every_n_epochs=x"),
        ("plugins=[no_such_module]", r"plugins: no_such_module cannot be imported"),
        ("seed=99999999999", r"seed=99999999999"),
        ("trainer.limit_train_batches=0", r"trainer\.limit_train_batches=0: there is nothing to train on"),
        ("trainer.max_epochs=-1", r"trainer\.max_epochs=-1.*max_steps or max_time"),
        ("surrogate.sites.kinds=[relus]", r"surrogate\.sites\.kinds=relus.*Did you mean 'relu'"),
        ("surrogate.sites.depth=[1,0]", r"surrogate\.sites\.depth=\[1, 0\]: two numbers"),
        ("surrogate.schedule.mix=1", r"surrogate\.schedule\.mix=1: a dict such as"),
        ("surrogate.schedule.mix={start: 0, end: 1}", r"surrogate\.schedule\.mix=.*it lacks until"),
        ("surrogate.schedule.on={until: -3}", r"surrogate\.schedule\.on: begin=0\.0, until=-3"),
        ("surrogate.scale=layer", r"surrogate\.scale=layer.*allowed: channel, global"),
        ("callbacks.guard.max_loss=-1", r"callbacks\.guard\.max_loss=-1: null or a number > 0"),
        ("callbacks.guard.every_n_steps=x", r"callbacks\.guard\.every_n_steps=x"),
        ("callbacks.diagnostics.images=1", r"callbacks\.diagnostics\.images=1: a whole number >= 2"),
        ("seed=true", r"seed=True: a whole number"),
        ("callbacks.grids=null", r"callbacks\.grids=None: it has options under it"),
        ("callbacks.paths=3", r"callbacks\.paths=3: it has options under it"),
        ("sweep.resume=true", r"sweep\.resume=true: it is for sweeps"),
        ("sweep.resume=1", r"sweep\.resume=1: true or false"),
        ("optim.lr=fast", r"optim\.lr=fast: a number > 0"),
        ("data.batch_size=0", r"data\.batch_size=0: a whole number >= 1"),
        ("model.stem=tiny", r"model\.stem=tiny.*allowed: auto, cifar"),
        ("model.num_classes=ten", r"model\.num_classes=ten: a whole number >= 1"),
        ("model.new_head=1", r"model\.new_head=1: true or false"),
        ("model.weights=IMAGENET", r"model\.weights=IMAGENET: no such file, and resnet18 has only IMAGENET1K_V1"),
        ("trainer.max_epochs=true", r"trainer\.max_epochs=True: a whole number >= 1"),
        ("trainer.limit_train_batches=foo", r"trainer\.limit_train_batches=foo: a whole number >= 0, a share"),
        ("trainer.limit_val_batches=1.5", r"trainer\.limit_val_batches=1\.5: a whole number >= 0, a share"),
        ("trainer.accumulate_grad_batches=0", r"trainer\.accumulate_grad_batches=0: a whole number >= 1"),
        ("trainer.gradient_clip_algorithm=l2", r"trainer\.gradient_clip_algorithm=l2: norm or value or null"),
        ("trainer.deterministic=1", r"trainer\.deterministic=1: true or false or null or warn"),
        ("trainer.precision=8", r"trainer\.precision=8.*allowed: 16-mixed"),
        ("trainer.strategy=dpp", r"trainer\.strategy=dpp.*Did you mean 'ddp'"),
        ("trainer.accelerator=gpus", r"trainer\.accelerator=gpus.*Did you mean 'gpu'"),
        ("trainer.devices=0", r"trainer\.devices=0: a whole number >= 1"),
        ("trainer.devices=abc", r"trainer\.devices=abc: a whole number >= 1"),
        ("trainer.devices=[]", r"trainer\.devices=\[\]: a whole number >= 1"),
        ("+surogate=none", r"option=surogate.*Did you mean 'surrogate'"),
    ],
)
def test_a_wrong_value_is_one_sentence_before_any_data_is_loaded(word, message, monkeypatch):
    monkeypatch.setattr(build, "ImageData", None)
    with pytest.raises(SoftgateError, match=message):
        train(composed(*TINY, word, directory=Path("unused")))


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SoftgateError, match=r"trainer\.accelerator=gpu: this machine has no usable GPU"):
        build.check(container("trainer=gpu", directory=Path("x")))


def test_lightnings_own_refusals_are_one_sentence(tmp_path):
    cfg = container(*TINY, "trainer.plugins=[nonsense]", directory=tmp_path)
    with pytest.raises(SoftgateError, match="trainer: Found invalid type for plugin nonsense"):
        build.trainer(cfg, tmp_path)


def test_num_classes_must_fit_the_data(tmp_path):
    cfg = container(*TINY, "model.num_classes=7", directory=tmp_path)
    with pytest.raises(SoftgateError, match=r"model\.num_classes=7: the data has 10 classes"):
        build.module(cfg, build.data(cfg))


def test_a_network_the_rule_does_not_cover_is_refused_and_trains_without_one(tmp_path):
    words = (*TINY, "model.name=mobilenet_v3_small", "data.size=32")
    cfg = container(*words, directory=tmp_path)
    with pytest.raises(softgate.UnreachableSites, match="hardswish"):
        build.module(cfg, build.data(cfg))
    plain = container(*words, "surrogate=none", directory=tmp_path)
    assert build.module(plain, build.data(plain)).rule.mix == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.max_epoch=3"], ["trainer.max_epoch: there is no such option", "Did you mean trainer.max_epochs"]),
        (
            ["model=resnet81"],
            ["model=resnet81: there is no such choice; allowed:", "densenet121", "Did you mean model=resnet18"],
        ),
        (["surrogate.gate.temperature=["], ["surrogate.gate.temperature=[: cannot be read as KEY=VALUE"]),
        (["surrogate.schedule.mix={start: 0, end: 2, until: 5}"], ["surrogate.schedule.mix: 2: a number from 0 to 1"]),
        (["schedule=warm"], ["schedule=warm: there is no such choice; allowed: ", "Did you mean schedule=warmup"]),
        (["seed=0,1"], ["seed=0,1: several values make a sweep; add -m"]),
        (["hydra.launcher.njobs=2"], ["allowed under hydra.launcher: grace, jobs_per_gpu, n_jobs.", "n_jobs?"]),
        (["surrogate.schedule.mix.end=2"], ["allowed under surrogate.schedule: mix, on, temperature."]),
        (
            ["name=a=b[1]"],
            ["cannot be read as KEY=VALUE", """Quote a value that has such marks twice: 'name="a=b[1]"'."""],
        ),
        (["logger=[wandb,tensor_board]"], ["logger=tensor_board: there is no", "Did you mean 'tensorboard'"]),
        (["logger=null"], ["logger=null: one of its choices is needed: csv, tensorboard, wandb"]),
        (["readout=normal"], ["surrogate=normal: there is no such choice", "Did you mean surrogate=normal_cdf"]),
        (["data=folder"], ["data.root=data: there is no such folder"]),
    ],
)
def test_a_mistyped_command_ends_with_one_sentence_and_status_2(words, said, tmp_path, typed):
    status, errors = typed("train.py", *words)
    assert status == exits.MISTAKE
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    for part in said:
        assert part in lines[0]
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("*.ckpt"))


def test_a_mistyped_command_is_as_short_in_a_process_of_its_own(tmp_path):
    line = [sys.executable, str(ROOT / "train.py"), "trainer.max_epoch=3"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == exits.MISTAKE
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_a_command_leaves_the_environment_as_it_was(monkeypatch, before):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    if before is None:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    else:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    command.run(lambda: None, str(CONF), "train")
    assert os.environ.get("HYDRA_FULL_ERROR") == before


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        command.run(broken, str(CONF), "train")


def test_ctrl_c_is_status_130(monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command.run(interrupted, str(CONF), "train")
    assert ended.value.code == exits.INTERRUPTED


# -- evaluation ---------------------------------------------------------------------------------------


def evaluated(directory: Path, *words: str) -> dict:
    return evaluate.evaluate(composed(*words, name="evaluate", directory=directory))


def test_a_run_and_its_checkpoint_evaluate_alike(run, tmp_path):
    by_run = evaluated(tmp_path / "a", f"runs={run}")
    by_file = evaluated(tmp_path / "b", f"runs='{run}/checkpoints/best.ckpt'")
    assert by_run == by_file
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == by_run
    assert (tmp_path / "a" / "grid.png").stat().st_size > 1000
    scores = by_run["runs"][0]
    assert scores["images"] == 359
    assert 0 <= scores["ece"] <= 1


def test_evaluation_agrees_with_a_plain_loop(run, tmp_path):
    scores = evaluated(tmp_path, f"runs={run}")["runs"][0]
    module, options = evaluate.restore(run / "checkpoints" / "best.ckpt")
    data = build.ImageData(options)
    data.setup("validate")
    module.eval()
    with torch.no_grad():
        pairs = [(module.net(x), y) for x, y in data.val_dataloader()]
    logits, labels = (torch.cat(t) for t in zip(*pairs, strict=True))
    assert scores["acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert scores["acc5"] == pytest.approx(top5, abs=1e-6)
    confidence, predicted = logits.softmax(1).max(1)
    bins = (confidence * 15).ceil().clamp(1, 15)
    ece = sum(
        (bins == b).float().mean()
        * ((predicted == labels)[bins == b].float().mean() - confidence[bins == b].mean()).abs()
        for b in bins.unique()
    )
    assert scores["ece"] == pytest.approx(float(ece), abs=1e-5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("runs=null", "runs is not set"),
        ("runs=nowhere", "runs=nowhere: there is no such file or directory"),
        ("checkpoint=first", "checkpoint=first.*allowed: best, last"),
        ("accelerator=tpu", "accelerator=tpu"),
        ("readout.mix=3", r"readout: surrogate\.mix=3"),
        ("grid.targets=11", r"grid\.targets=11: a whole number from 5 to 10"),
        ("grid.rows=11", r"grid\.rows=11: the data has 10 classes"),
        ("grid.kinds=[row]", r"grid\.kinds=row.*Did you mean 'raw'"),
        ("grid.scale=big", r"grid\.scale=big"),
        ("grid.explainers=[smothgrad]", r"grid\.explainers=smothgrad.*Did you mean 'smoothgrad'"),
        ("grid.chunk=0", r"grid\.chunk=0"),
        ("grid.steps=0", r"grid\.steps=0"),
        ("grid.radius=-1", r"grid\.radius=-1"),
        ("model=resnet18", r"runs and model: only one of them"),
    ],
)
def test_a_wrong_evaluation_is_one_sentence(run, tmp_path, word, message):
    with pytest.raises(SoftgateError, match=message):
        evaluated(tmp_path, f"runs={run}", word)


NETTE = ["tench", "church", "golf ball"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for k, name in enumerate(NETTE):
        for i in range(2):
            path = root / "val" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 60 + 20 * k).convert("RGB").save(path)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


def test_a_network_of_a_thousand_classes_is_read_out_on_data_of_three(photographs, weights, tmp_path):
    words = (
        "data=folder",
        f"data.root={photographs}",
        "data.size=32",
        "model=squeezenet1_1",
        f"model.weights={weights}",
    )
    more = ("grid.kinds=[raw,ascent]", "grid.explainers=[guided_backprop]", "grid.steps=1")
    (found,) = evaluated(tmp_path, *words, *more)["runs"]
    raw = torch.load(tmp_path / "grid.pt", weights_only=True)
    assert sorted(raw["labels"]) == [0, 497, 574]  # tench, church, golf ball
    assert raw["targets"][:4] == [*raw["labels"], 9]  # and ostrich
    assert len(raw["targets"]) == 6
    assert raw["guided_backprop"].shape == raw["soft"].shape == (3, 6, 3, 32, 32)
    assert torch.load(tmp_path / "ascent.pt", weights_only=True)["kind"] == "ascent"
    for name in ("grid.png", "ascent.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert 0 <= found["acc"] <= found["acc_among_data_classes"] <= 1


def test_weights_of_another_network_are_refused_before_anything_is_drawn(photographs, weights, tmp_path):
    words = ("data=folder", f"data.root={photographs}", "data.size=32", "model=squeezenet1_1")
    for given, said in ((weights, "not the weights of resnet18"), ("nowhere.pth", "no such file")):
        with pytest.raises(SoftgateError, match=said):
            evaluated(tmp_path, *words, f"model.weights={given}", "models=[squeezenet1_1,resnet18]")
    assert not list(tmp_path.rglob("*.png"))


def test_the_paper_figures_in_one_go(photographs, weights, tmp_path):
    words = ("experiment=paper_figures", "data=folder", f"data.root={photographs}", "data.size=32")
    evaluated(tmp_path, *words, "models=[squeezenet1_1]", f"model.weights={weights}", "grid.steps=2", "grid.targets=4")
    blocks = {1: (True, False), 2: (True, True), 3: (True, False), 4: (False, True)}
    for k in blocks:
        assert (tmp_path / f"figure{k}.png").stat().st_size > 1000
        raw = torch.load(tmp_path / f"figure{k}-squeezenet1_1.pt", weights_only=True)
        assert ("soft" in raw, "hard" in raw) == {
            1: (True, False),
            2: (True, True),
            3: (True, False),
            4: (False, True),
        }[k]
        assert raw["settings"]["steps"] == (5 if k == 1 else 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=squeezenet1_1",), "data is not chosen"),
        (("data=folder", "model=inception_v3"), r"data\.size=32: model=inception_v3 does not take images of that size"),
        (("data=folder", "model=squeezenet1_1", "grid.targets=4"), r"grid\.targets=4: a whole number from 3 to 3"),
        (("data=folder", "models=[resnet81]", "model=resnet18"), "model.name=resnet81.*Did you mean 'resnet18'"),
        (("data=digits", "model=squeezenet1_1", "model.weights=FILE"), "'0' of the data is not one of them"),
    ],
)
def test_a_network_that_does_not_fit_its_images_is_one_sentence(photographs, weights, tmp_path, words, message):
    words = [word.replace("FILE", str(weights)) for word in words]
    if "data=folder" in words:
        words += [f"data.root={photographs}"]
    if any(word.startswith("data=") for word in words):
        words += ["data.size=32"]
    with pytest.raises(SoftgateError, match=message):
        evaluated(tmp_path, *words)


def test_published_weights_are_looked_at_in_their_own_size_unless_another_is_typed(tmp_path):
    from softgate.evaluation import networks

    words = ("model=resnet50", "model.weights=IMAGENET1K_V1", "data=imagenette")
    for more, expected in (((), 224), (("data.size=160",), 160)):
        config = OmegaConf.to_container(composed(*words, *more, name="evaluate", directory=tmp_path))
        assert networks.image_size(config, "resnet50") == expected
    config = OmegaConf.to_container(composed(*words, name="evaluate", directory=tmp_path))
    assert networks.image_size(config, "inception_v3") == 299


def test_imagenettes_classes_are_found_among_imagenets():
    from softgate import models
    from softgate.data.sources import IMAGENETTE

    expected = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert models.imagenet_indexes(list(IMAGENETTE.values())) == expected
    assert models.imagenet_classes()[9] == "ostrich"


def test_three_classes_evaluate_without_further_options(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for k, name in enumerate("abc"):
            for i in range(8):
                path = tmp_path / "images" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (80 * k, 10 * i, 0)).save(path)
    words = ("data=folder", f"data.root={tmp_path}/images", "data.size=16", "trainer.max_epochs=1")
    train(composed(*TINY, *words, directory=tmp_path / "run"))
    results = evaluated(tmp_path / "out", f"runs={tmp_path}/run")
    assert "acc5" not in results["runs"][0]
    assert (tmp_path / "out" / "grid.png").is_file()


def test_a_run_is_named_after_its_network_also_where_it_is_chosen_by_name():
    assert container("model.name=vgg16", directory=Path("x"))["name"] == "digits-vgg16-excitation"


def test_the_message_of_a_loading_process_arrives_without_its_stack_trace(capsys):
    def load(cfg: object) -> None:
        trace = "Caught SoftgateError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        raise SoftgateError(trace + "softgate.errors.SoftgateError: data.root: the image x cannot be read.")

    with pytest.raises(SystemExit) as ended:
        exits.job(load, None)
    assert ended.value.code == exits.MISTAKE
    assert capsys.readouterr().err == "error: data.root: the image x cannot be read.\n"


def test_a_damaged_a_foreign_and_an_executable_checkpoint_are_refused(run, tmp_path):
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"hyper_parameters": Path("x")}, tmp_path / "code.ckpt")
    said = {
        "cut": "not a checkpoint",
        "text": "not a checkpoint",
        "foreign": "not a checkpoint",
        "code": "it names code",
    }
    for name, words in said.items():
        with pytest.raises(SoftgateError, match=rf"runs=.*{name}\.ckpt: {words}") as caught:
            evaluate.restore(tmp_path / f"{name}.ckpt")
        assert "weights_only" not in str(caught.value)


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SoftgateError, match=r"has no checkpoints/best\.ckpt; is it a run's directory"):
        find_checkpoint(str(tmp_path), "best")


# -- reports ------------------------------------------------------------------------------------------


def test_summary_names_the_first_best_epoch():
    points = {"val/acc": [(0.0, 0.5), (1.0, 0.9), (2.0, 0.9), (3.0, 0.7)], "train/loss_step": [(0.0, 1.0)]}
    assert report.summarize(points) == {"val/acc": 0.7, "best/epoch": 1, "best/val/acc": 0.9}


def test_a_number_that_is_none_is_null_in_json(tmp_path):
    files.write_json({"a": float("nan"), "b": float("inf"), "c": 0.5}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=None) == {"a": None, "b": None, "c": 0.5}


def test_the_summary_says_when_and_with_what_a_run_was_made(run):
    summary = json.loads((run / "summary.json").read_text())
    made = summary["environment"]
    assert made["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert made["devices"] == 1
    assert made["hardware"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", summary["started"])


def test_nothing_nested_is_written_that_json_cannot_hold(tmp_path):
    files.write_json({"a": [float("nan"), {"b": float("inf")}, (1.0, None)]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, {"b": None}, [1.0, None]]}


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json({"a": 1}, path)
    files.write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_saved_config_is_complete_and_resolved(run):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["name"] == "digits-resnet18-excitation"
    assert saved["surrogate"]["gate"] == {"name": "sigmoid", "temperature": 0.3}
    assert "${" not in (run / "config.yaml").read_text()


@pytest.fixture(autouse=True)
def _forget_hydra():
    yield
    HydraConfig.instance().cfg = None
