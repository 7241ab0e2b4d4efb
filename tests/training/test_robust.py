"""Noise, adversarial images and the gradient penalty in training: the formulas, and runs that have them."""

import signal
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from configs import TINY, composed, configured
from runs_alike import assert_alike
from softgate.errors import SoftgateError, Stopped
from softgate.training import SoftgateModule, build
from softgate.training.robust import Robust
from softgate.training.robust_config import RobustConfig
from softgate.training.train import train

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double()


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std, torch.arange(count) % 5


def robust(**options: Any) -> Robust:
    return Robust(options, MEAN, STD, 8)


def in_pixels(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (MEAN, STD))
    return x * std + mean


@pytest.mark.parametrize("rule", [None, sg.Surrogate()], ids=["none", "excitation"])
def test_the_penalty_is_the_mean_of_each_images_squared_gradient_in_pixels(rule):
    model, (x, labels) = network(norm=False), batch()
    with sg.attach(model, rule):
        leaf = x.clone().requires_grad_()
        found = robust(gradient_penalty=1.0).penalty(F.cross_entropy(model(leaf), labels), leaf)
        slow = 0.0
        for image, label in zip(x, labels, strict=True):
            one = in_pixels(image[None]).requires_grad_()
            mean, std = (torch.tensor(v, dtype=one.dtype).view(-1, 1, 1) for v in (MEAN, STD))
            loss = F.cross_entropy(model((one - mean) / std), label[None])
            slow += float(torch.autograd.grad(loss, one)[0].square().sum()) / len(x)
    assert float(found) == pytest.approx(slow, rel=1e-12)


def test_the_penaltys_gradient_is_that_of_finite_differences():
    model, (x, labels) = network(norm=False), batch()
    weights = [p for p in model.parameters() if p.requires_grad]

    def value() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return robust(gradient_penalty=1.0).penalty(F.cross_entropy(model(leaf), labels), leaf)

    exact = torch.autograd.grad(value(), weights, allow_unused=True)
    for weight, slope in zip(weights, exact, strict=True):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=weight.dtype)
        ends, step = [], 1e-6
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step * direction)
            ends.append(float(value()))
            with torch.no_grad():
                weight.sub_(sign * step * direction)
        expected = (ends[0] - ends[1]) / (2 * step)
        along = 0.0 if slope is None else float((slope * direction).sum())  # the first bias moves no derivative
        assert along == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_adversarial_images_lie_in_the_ball_raise_the_loss_and_leave_the_network_alone(norm):
    model, (x, labels) = network(), batch()
    sites = sg.attach(model.train(), sg.Surrogate(scale="channel"))
    model(x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    asked = robust(adversarial={"norm": norm, "radius": 0.4 if norm == "l2" else 0.05})
    torch.manual_seed(3)
    found = asked.images(x, labels, model, sites)
    moved, pixels = (in_pixels(found) - in_pixels(x)).flatten(1), in_pixels(found)
    assert pixels.min() >= -1e-12
    assert pixels.max() <= 1 + 1e-12
    far = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)
    radius = 0.4 * (8 * 8 / 32**2) ** 0.5 if norm == "l2" else 0.05  # given for 3 x 32 x 32
    assert far.max() <= radius * (1 + 1e-9)
    assert far.min() > radius / 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert F.cross_entropy(model(found), labels) > F.cross_entropy(model(x), labels) + 0.01


def test_the_ascent_follows_the_true_gradient_unless_that_of_training_is_asked_for():
    model, (x, labels) = network(), batch()
    soft, hard = {}, {}
    for found, rule in ((soft, sg.Surrogate()), (hard, None)):
        sites = sg.attach(model, rule)
        for whose in ("true_gradient", "training"):
            torch.manual_seed(3)
            options = {"radius": 0.4, "rule": whose, "steps": 3}
            found[whose] = robust(adversarial=options).images(x, labels, model, sites)
        sites.detach()
    assert torch.equal(soft["true_gradient"], hard["true_gradient"])
    assert torch.equal(hard["training"], hard["true_gradient"])
    assert not torch.equal(soft["training"], soft["true_gradient"])


def test_labels_may_be_shares_of_classes():
    model, (x, labels) = network(), batch()
    sites = sg.attach(model, None)
    found = []
    for given in (labels, F.one_hot(labels, 5).double()):
        torch.manual_seed(3)
        found.append(robust(adversarial={"radius": 0.4}).images(x, given, model, sites))
    torch.testing.assert_close(*found)


def test_noise_has_its_deviation_in_pixels_of_every_channel():
    x = torch.zeros(64, 3, 32, 32)
    torch.manual_seed(0)
    found = Robust({"noise": 0.25}, MEAN, STD, 32).images(x, torch.zeros(64).long(), nn.Identity(), None)
    deviations = found.std((0, 2, 3)) * torch.tensor(STD)
    torch.testing.assert_close(deviations, torch.full((3,), 0.25), rtol=0.02, atol=0)


ALL = ("train.noise=0.05", "train.adversarial.radius=0.5", "train.adversarial.steps=2", "train.gradient_penalty=0.1")
QUICK = (*TINY, "callbacks=none", "model=squeezenet1_1", "data.size=32", "trainer.limit_val_batches=1", *ALL)


def test_a_run_with_all_of_it_goes_on_bit_for_bit_and_logs_its_penalty(tmp_path, monkeypatch):
    train(composed(*QUICK, directory=tmp_path / "whole"))

    def stopped(self: SoftgateModule, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, index)

    original = SoftgateModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(SoftgateModule, "training_step", stopped)
        with pytest.raises(Stopped):
            train(composed(*QUICK, directory=tmp_path / "parts"))
    train(composed(*QUICK, "resume=true", directory=tmp_path / "parts"))
    assert_alike(tmp_path / "whole", tmp_path / "parts")
    assert "train/gradient_penalty" in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[0]


def test_what_is_off_changes_nothing_and_leaves_no_trace_in_a_checkpoint():
    cfg = configured(*TINY)
    module = build.module(cfg, build.data(cfg))
    assert module.robust is None
    assert "robust" not in module.hparams
    assert not RobustConfig().on


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.noise=-1"], r"train\.noise=-1: a number >= 0 is needed"),
        (["train.gradient_penalty=x"], r"train\.gradient_penalty=x: a number >= 0 is needed"),
        (["train.adversarial.radius=-0.5"], r"train\.adversarial\.radius=-0\.5: a number >= 0 is needed"),
        (["train.adversarial.radius=1", "train.adversarial.norm=l3"], r"train\.adversarial\.norm=l3.*l2"),
        (["train.adversarial.radius=1", "train.adversarial.steps=0"], r"train\.adversarial\.steps=0: a whole number"),
        (["train.adversarial.radius=1", "train.adversarial.rule=soft"], r"train\.adversarial\.rule=soft.*training"),
        (["train.adversarial.steps=3"], r"train\.adversarial\.steps=3: .* set train\.adversarial\.radius too"),
        (["train.gradient_penalty=1", "compile=true"], r"train\.gradient_penalty=1: a compiled network"),
    ],
)
def test_wrong_options_are_one_sentence_before_any_data_is_loaded(words, said):
    with pytest.raises(SoftgateError, match=said):
        configured(*TINY, *words)
