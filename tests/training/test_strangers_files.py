"""A run's directory that somebody else made: nothing in it runs, leads out of it, or reaches further than data do."""

from pathlib import Path

import pytest

from configs import CONF, composed
from softgate import files
from softgate.errors import SoftgateError
from softgate.training import resume, strangers
from softgate.training.config import TrainConfig

FILE = Path("o/.hydra/overrides.yaml")


def refused(word: str) -> str:
    with pytest.raises(SoftgateError) as error:
        strangers.check_words(["seed=1", word], FILE, CONF)
    said = str(error.value)
    assert str(FILE) in said
    assert word in said
    return said


# -- the words that a run began with ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        *(
            "hydra.searchpath=[file:///x]",
            "+hydra.searchpath=[file:///x]",
            "hydra/launcher=basic",
            "+hydra/callbacks=x",
        ),
        *(
            "++hydra.callbacks.a={_target_: os.system}",
            "hydra.job.env_set={A: b}",
            "hydra.job.chdir=true",
            "hydra=null",
        ),
        *("~hydra.job_logging", "hydra/job_logging@x=y", "hydra.output_subdir=null", "hydra.sweeper.x=1"),
    ],
)
def test_hydra_itself_takes_nothing_from_a_file(word):
    assert "no file says how a command is run" in refused(word)


@pytest.mark.parametrize("word", ["--config-dir=/x", "-cd=/x", "--config-path", "-m", "-h", "", "a b", "="])
def test_a_flag_in_a_file_is_no_word(word):
    refused(word)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "+x=${oc.env:HOME}",
            "name=${oc.env:HOME}",
            "name='${oc.env:HOME}'",
            "name=a-${oc.env:HOME}",
            "seed=${now:%S}",
        ),
        *(
            r"name=$\{oc.env\:HOME\}",
            r"data.root=a$\{oc.env\:HOME\}",
            "name='${${seed}:HOME}'",
            "name='$${seed}{oc.env:X}'",
        ),
        *("model={name: '${oc.env:HOME}'}", "logger.wandb.tags=[a,'${oc.env:HOME}']", "hydra.run.dir=${oc.env:HOME}"),
        *("hydra.sweep.subdir=${oc.env:HOME}", "name=${oc.decode:x}"),
    ],
)
def test_no_resolver_is_called_from_a_file(word):
    assert "calls a resolver" in refused(word)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "plugins=[outputs.theirs.payload]",
            "+plugins=[x]",
            "++plugins=[x]",
            "plugins.0=x",
            "plugins=x",
            "plugins=a,b",
        ),
        *("~plugins", "plugins=${name}"),
    ],
)
def test_a_plugin_that_is_named_in_a_file_only_is_not_imported(word):
    said = refused(word)
    assert f"type {word.lstrip('+~')} yourself" in said


@pytest.mark.parametrize(
    "word",
    [
        *(
            "+x=1",
            "nothing.there=1",
            "trainer.nothing=1",
            "+trainer.callbacks._target_=x",
            "+_target_=os.system",
            "a/b=c",
        ),
        *("surrogate.gate._target_=x", "+surrogate.gate={_target_: os.system}", "+trainer.max_time={_target_: x}"),
        *("+logger.wandb.settings={x_executable: /x}", "+logger.wandb.mode=online", "logger.wandb={settings: {a: b}}"),
        *("+callbacks.mine._target_=x", "surrogate.a b=1", "+defaults=[x]", "trainer.devices=[{_target_: x}]"),
    ],
)
def test_only_options_that_are_known_come_from_a_file(word):
    refused(word)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "data=../../outputs/theirs/x",
            "data=/tmp/x",
            "data=nothing",
            "data=.",
            "logger=[csv,../x]",
            "data={name: x}",
        ),
        *("data@hydra.callbacks=digits", "surrogate@_global_=none", "data@optim=digits", "data=glob(*)", "data=a,b"),
        *("+data=pkg://evil", "experiment=generalization/../../../x", "data=digits.yaml", "data=null"),
    ],
)
def test_a_group_has_a_choice_of_the_project(word):
    refused(word)


def test_what_people_type_passes():
    words = [
        *("data=imagenette", "model=resnet18", "surrogate@readout=normal_cdf", "experiment=generalization/digits"),
        *(
            "logger=[tensorboard,wandb]",
            "+trainer.min_epochs=1",
            "++seed=3",
            "~trainer.max_time",
            "data.root=/data/a b",
        ),
        *("name=${data.name}-${seed}", "name='a,b=c'", "surrogate.gate.temperature=0.5", "optim.lr=1e-3", "ema=null"),
        *(
            "+surrogate.schedule.mix={start: 0, end: 1}",
            "trainer.devices=[0,1]",
            "logger.wandb.tags=[a,b]",
            "debug=limit",
        ),
        *(
            "model.weights=runs/a.ckpt",
            "callbacks.grids.classes=2",
            "hydra.run.dir=o",
            "sweep.name=x",
            "schedule=anneal",
        ),
    ]
    strangers.check_words(words, FILE, CONF)


@pytest.mark.slow
def test_every_option_of_every_choice_is_known():
    leaves = set()
    for group in ("data", "model", "surrogate", "schedule", "optim", "logger", "callbacks", "experiment"):
        for path in (CONF / group).rglob("*.yaml"):
            choice = path.relative_to(CONF / group).with_suffix("")
            if choice.name not in ("default", "paper_figures", "target"):
                words = {"torchvision": "data.name=Flowers102", "timm": "model.name=resnet26"}
                named = [words[choice.name]] if choice.name in words else []
                plain = composed(f"{group}={choice}", *named, directory=Path("x"))
                leaves |= {*strangers._paths("", _plain(plain))}
    assert len(leaves) > 100
    unknown = [path for path in leaves if path and not strangers._is_option(path.lstrip("."))]
    assert not unknown
    assert {path.split(".")[1] for path in leaves if path} == {*TrainConfig.model_fields}


def _plain(config):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config)


def test_the_command_refuses_in_one_sentence_and_runs_nothing(typed, tmp_path):
    theirs = tmp_path / "outputs" / "theirs"
    (theirs / ".hydra").mkdir(parents=True)
    (theirs / "payload.py").write_text("import pathlib; pathlib.Path('evil').touch()")
    files.write("- plugins=[outputs.theirs.payload]\n", theirs / ".hydra" / "overrides.yaml")
    for word in ("resume=outputs/theirs", "resume=true hydra.run.dir=outputs/theirs"):
        status, said = typed("train.py", *word.split())
        assert status == 2
        assert said == (
            "error: outputs/theirs/.hydra/overrides.yaml: plugins=[outputs.theirs.payload] is not taken from a file "
            "of a run: it would import Python modules; if you trust them, "
            "type plugins=[outputs.theirs.payload] yourself.\n"
        )
    assert not (tmp_path / "evil").exists()
    words = ["resume=outputs/theirs", "plugins=[mine]"]
    assert resume.complete(words, False, CONF)[0] == "plugins=[mine]"  # what is typed is the person's own


def test_words_that_are_no_list_of_text_are_refused(tmp_path):
    for content in ("{a: b}", "text", "[", "\x00", "!!python/object/apply:os.system [touch evil]"):
        files.write(content, made(tmp_path / FILE))
        with pytest.raises(SoftgateError, match="is it a run's directory"):
            resume.complete([f"resume={tmp_path / 'o'}"], False, CONF)
    files.write("- {plugins: [x]}\n- [a]\n", tmp_path / FILE)
    with pytest.raises(SoftgateError, match="is not taken from a file"):
        resume.complete([f"resume={tmp_path / 'o'}"], False, CONF)


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# -- links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints", "checkpoints/last.ckpt", ".hydra/hydra.yaml", "wandb"])
@pytest.mark.parametrize("target", ["{home}/mine", "{up}mine", "/nowhere/at/all", "{home}/o/../mine"])
def test_a_run_with_a_link_that_leads_out_of_it_does_not_go_on(tmp_path, name, target):
    files.write("- seed=1\n", made(tmp_path / FILE))
    (tmp_path / "mine").mkdir()
    up = "../" * (1 + name.count("/"))
    made(tmp_path / "o" / name).symlink_to(target.format(home=tmp_path, up=up))
    with pytest.raises(SoftgateError, match=rf"resume=.*: .*{name} is a link that leads out of the directory, to "):
        resume.complete([f"resume={tmp_path / 'o'}"], False, CONF)
    (tmp_path / FILE).unlink()
    with pytest.raises(SoftgateError, match="leads out of the directory"):
        resume.complete(["resume=true", f"hydra.run.dir={tmp_path / 'o'}"], False, CONF)


def test_links_within_a_run_and_those_of_wandb_are_fine(tmp_path):
    files.write("- seed=1\n", made(tmp_path / FILE))
    (tmp_path / "o" / "latest").symlink_to("checkpoints/last.ckpt")
    made(tmp_path / "o" / "wandb" / "run-1" / "logs" / "x").parent.joinpath("core.log").symlink_to("/nowhere")
    assert resume.complete([f"resume={tmp_path / 'o'}"], False, CONF)[0] == "seed=1"
