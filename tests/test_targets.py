"""Other people's code by its dotted name: honoured where it is typed, refused where it only stands in a file."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from configs import TINY
from softgate import targets
from softgate.cli.words import for_hydra
from softgate.errors import SoftgateError
from softgate.training import strangers
from softgate.training.checkpoints import restore
from softgate.training.networks import TargetNetwork
from softgate.training.optim import build_optimizer, build_schedule
from softgate.training.optim_config import read_optim

CONF = Path(__file__).parents[1] / "conf"

OWN = """
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torchmetrics import Metric


class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        if width < 1:
            raise ValueError("width must be positive")
        self.conv, self.relu = nn.Conv2d(3, width, 3, 2), nn.ReLU()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def headless(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())


def no_network():
    return 3


class Count(Callback):
    def __init__(self, file="count.txt"):
        self.file, self.epochs = file, 0

    def on_train_epoch_end(self, trainer, module):
        self.epochs += 1
        with open(self.file, "a") as out:
            out.write(f"{self.epochs} {trainer.current_epoch}\\n")

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


class Share(Metric):
    def __init__(self, of=0):
        super().__init__()
        self.of = of
        self.add_state("hits", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits, labels):
        self.hits += (logits.argmax(1) == self.of).sum()
        self.seen += len(labels)

    def compute(self):
        return self.hits / self.seen
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A file of the user's where the command is typed; nothing is trusted or typed yet."""
    monkeypatch.setattr(targets, "_own", set())
    monkeypatch.setattr(targets, "_typed", set())
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    yield
    sys.modules.pop("mine", None)


# -- the words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["model._target_=m.Net", "model.width=3"], ["model=target", "++model._target_=m.Net", "++model.width=3"]),
        (["model=mine", "model._target_=m.Net"], ["model=mine", "++model._target_=m.Net"]),
        (["callbacks.a._target_=m.A", "callbacks.a.x=1"], ["++callbacks.a._target_=m.A", "++callbacks.a.x=1"]),
        (["+callbacks.a._target_=m.A", "callbacks.a.x=1"], ["+callbacks.a._target_=m.A", "++callbacks.a.x=1"]),
        (["metrics.f1={_target_: m.F1}"], ["++metrics.f1={_target_: m.F1}"]),
        (["surrogate.gate={name: leaky}"], ["~surrogate.gate", "++surrogate.gate={name: leaky}"]),
        (
            ["surrogate.gate.slope=.1", "surrogate.gate.name=leaky"],
            ["~surrogate.gate", "++surrogate.gate.slope=.1", "++surrogate.gate.name=leaky"],
        ),
        (["readout.pool.temperature=1", "seed=1"], ["++readout.pool.temperature=1", "seed=1"]),
        (["model=resnet18", "model.weights=x"], ["model=resnet18", "model.weights=x"]),
    ],
)
def test_no_word_needs_hydras_marks(typed, given):
    assert for_hydra(typed) == given


def test_a_gate_may_be_put_in_anothers_place_with_settings_of_its_own(typed, tmp_path):
    words = ["surrogate.gate.name=leaky", "surrogate.gate.slope=0.2", "readout.pool={name: hard}"]
    status, said = typed("train.py", *TINY, *words, "callbacks=none", "hydra.run.dir=out")
    assert (status, said) == (0, "")
    rule = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert rule["surrogate"]["gate"] == {"slope": 0.2, "name": "leaky"}
    assert rule["readout"]["pool"] == {"name": "hard"}
    status, said = typed("train.py", *TINY, "surrogate.gate.name=leaky", "surrogate.gate.temperature=1")
    assert status == 2
    assert "leaky has no such setting; it takes slope" in said


# -- a run of one's own -----------------------------------------------------------------------------------


def test_a_run_of_ones_own_network_optimiser_metric_and_callback(typed, tmp_path):
    words = [
        *("model._target_=mine.Net", "model.width=6", "optim._target_=torch.optim.Adam", "optim.lr=0.01"),
        *("callbacks.count._target_=mine.Count", "metrics.share._target_=mine.Share", "metrics.share.of=1"),
        *(
            "callbacks.checkpoint.monitor=val/share",
            "callbacks.checkpoint.mode=min",
            "callbacks.grids.every_n_epochs=0",
        ),
    ]
    status, said = typed("train.py", *TINY, *words, "hydra.run.dir=out")
    assert (status, said) == (0, "")
    assert (tmp_path / "count.txt").read_text().split("\n")[:-1] == ["1 0", "2 1"]
    assert "val/share" in (tmp_path / "out" / "metrics.csv").read_text()
    saved = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["model"] == {"_target_": "mine.Net", "width": 6, "name": "Net"}
    assert saved["callbacks"]["Count"] == {"epochs": 2}
    assert saved["optimizer_states"][0]["param_groups"][0]["betas"] == (0.9, 0.999)

    targets._typed.clear()
    status, said = typed("train.py", "resume=out", "trainer.max_epochs=3")
    assert status == 2
    assert "mine.Net; if you trust it, add trust=[mine]" in said
    status, said = typed("train.py", "resume=out", "trainer.max_epochs=3", "trust=[mine]")
    assert (status, said) == (0, "")
    assert (tmp_path / "count.txt").read_text().split("\n")[:-1] == ["1 0", "2 1", "3 2"]

    targets._typed.clear()
    targets._own.clear()
    checkpoint = tmp_path / "out" / "checkpoints" / "best.ckpt"
    with pytest.raises(SoftgateError, match=r"best\.ckpt: it names code to import, mine\.Net; .*trust=\[mine\]"):
        restore(checkpoint)
    targets.trust("mine")
    module, _ = restore(checkpoint)
    assert module.net.conv.out_channels == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model._target_=mine.Nett"], "mine has no 'Nett'. Did you mean Net?"),
        (["model._target_=yours.Net"], "there is no module 'yours', here or installed"),
        (["model._target_=Net"], "a dotted name is needed"),
        (
            ["model._target_=mine.Net", "model.widht=3"],
            "model.widht: mine.Net takes no such argument; its arguments: width",
        ),
        (["model._target_=mine.Net", "model.width=0"], "ValueError: width must be positive (mine.py, line "),
        (["model._target_=mine.Count"], "no subclass of torch's Module"),
        (["model._target_=mine.no_network"], "it returned int; torch's Module is needed"),
        (["model._target_=mine.headless"], "logits (1, 10) are needed"),
        (
            ["model._target_=mine.Net", "model.weights=DEFAULT"],
            "there is no such file; a target's come from one",
        ),
        (["optim._target_=torch.optim.Adam", "optim.lrr=1"], "optim.lrr: torch.optim.Adam takes no such argument"),
        (["optim._target_=mine.Net"], "no subclass of torch's Optimizer"),
        (["optim.scheduler=linear"], "optim.scheduler=linear: cosine, null or a _target_"),
        (["optim.scheduler._target_=torch.optim.lr_scheduler.StepLR"], "optim.scheduler.step_size is not set"),
        (["metrics.f1=3"], "metrics.f1=3: a _target_ with its arguments is needed"),
        (["metrics.acc._target_=mine.Share"], "val/acc is there already"),
        (["metrics.share._target_=mine.Net"], "no subclass of torchmetrics's Metric"),
        (["callbacks.a._target_=mine.Net"], "no subclass of pytorch_lightning's Callback"),
        (["callbacks.a={x: 1}"], "callbacks.a"),
        (["logger.a._target_=mine.Net"], "no subclass of pytorch_lightning's Logger"),
        (["trainer.plugins=[{_target_: mine.Nett}]"], "mine has no 'Nett'"),
        (["trust=mine"], "trust=mine: a list of package names is needed"),
    ],
)
def test_a_target_that_does_not_fit_is_one_sentence(typed, words, message):
    status, said = typed("train.py", *TINY, *words)
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_file_that_raises_is_named_with_its_line(typed, tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    status, said = typed("train.py", *TINY, "model._target_=broken.Net")
    assert status == 2
    assert "broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 2)" in said


# -- optimisers and schedules -----------------------------------------------------------------------------


def test_a_scheduler_of_ones_own_and_none_at_all():
    net = nn.Linear(2, 2)
    plan = {"_target_": "torch.optim.RMSprop", "lr": 0.1}
    optimizer = build_optimizer(net, read_optim(plan))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert build_schedule(optimizer, read_optim({**plan, "scheduler": None}), 10) == {}
    own = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.3}
    made = build_schedule(optimizer, read_optim({**plan, "scheduler": own, "interval": "step"}), 10)["lr_scheduler"]
    assert made["scheduler"].total_steps == 10
    assert made["interval"] == "step"
    own = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "patience": 2}
    made = build_schedule(optimizer, read_optim({**plan, "scheduler": own, "monitor": "val/acc"}), 10)["lr_scheduler"]
    assert made["monitor"] == "val/acc"


# -- whose it may be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["os.system", "torch.hub.load", "torch.load", "torchvision.models.resnet18", "mine.Net", "builtins.eval"]
)
def test_a_file_names_no_code_and_no_function(target):
    with pytest.raises(SoftgateError, match=r"trust=\["):
        targets.check_trusted({"a": [{"_target_": target}]}, "runs=x.ckpt: it")
    assert "mine" not in sys.modules


def test_a_class_of_a_known_package_and_what_is_typed_or_trusted_may_be_in_a_file():
    targets.check_trusted({"_target_": "torch.nn.Linear"}, "x")
    targets.note_typed({"model": {"_target_": "mine.Net", "part": {"_target_": "mine.Part"}}})
    targets.check_trusted({"_target_": "mine.Net"}, "x")
    targets.check_trusted({"_target_": "mine.Part"}, "x")
    targets.check_trusted({"_target_": "other.Net"}, "x", ["other"])


def test_a_nested_target_of_a_file_is_refused_too():
    with pytest.raises(SoftgateError, match=r"os\.system"):
        targets.check_trusted({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system"}]}, "x")


def test_words_of_a_run_may_name_targets_that_are_typed_again_or_trusted(tmp_path):
    file, words = tmp_path / "overrides.yaml", ["model=target", "++model._target_=mine.Net", "++model.width=3"]
    with pytest.raises(SoftgateError, match=r"mine\.Net; if you trust it"):
        strangers.check_words(words, file, CONF)
    strangers.check_words(words, file, CONF, ["trust=[mine]"])
    with pytest.raises(SoftgateError, match=r"option that a file may set|interpolation"):
        strangers.check_words([*words, "++model.secret=${oc.env:HOME}"], file, CONF, ["trust=[mine]"])
    with pytest.raises(SoftgateError, match="no option that a file may set"):
        strangers.check_words(["++model.breadth=3"], file, CONF)
    assert "mine" not in sys.modules


def test_a_network_is_read_with_its_arguments():
    read = TargetNetwork.read({"_target_": "mine.Net", "width": 3})
    assert read.plain_target == {"_target_": "mine.Net", "width": 3}
    assert read.called == "Net"
