"""The callback `alignment`: bit-identical training, stable keys, and the values its metrics have by themselves."""

import csv
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

import softgate as sg
from configs import TINY, composed, configured
from softgate import SoftgateError, metrics
from softgate.explainers import Pullback
from softgate.explainers.noise import draws
from softgate.training import build
from softgate.training.callbacks import AlignmentCurves
from softgate.training.callbacks.alignment import log_spaced
from softgate.training.callbacks.config import AlignmentConfig
from softgate.training.checkpoints import restore
from softgate.training.summary import alignment_panels, history
from softgate.training.train import train

SMALL = (
    *TINY,
    "callbacks=alignment",
    "callbacks.grids.every_n_epochs=0",
    "callbacks.alignment.images=20",
    "callbacks.alignment.few=3",
    "callbacks.alignment.draws=2",
    "callbacks.alignment.dear_epochs=0",
)
CHEAP = {
    "representation", "kernel_agreement", "kernel_agreement_within", "noise_cosine", "max_sensitivity",
    "total_variation", "high_frequency", "spectral_slope", "data_alignment", "mean_alignment", "target_specificity",
    "input_specificity", "pullback_accuracy",
}  # fmt: skip


def weights(directory: Path) -> dict:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("aligned")
    train(composed(*SMALL, directory=directory))
    return directory


def test_training_is_bit_identical_with_and_without(run, tmp_path):
    train(composed(*TINY, "callbacks=none", directory=tmp_path))
    on, off = weights(run), weights(tmp_path)
    assert on.keys() == off.keys()
    assert all(torch.equal(on[key], off[key]) for key in on)


def test_every_epoch_has_every_cheap_metric_hard_and_soft_with_its_interval(run):
    points = history(run / "metrics.csv")
    for readout in ("hard", "soft"):
        for key in CHEAP:
            for end in ("", "_low", "_high"):
                assert [epoch for epoch, _ in points[f"align/{readout}/{key}{end}"]] == [0, 1], key
    with (run / "metrics.csv").open() as file:
        assert {c.split("/")[2].removesuffix("_low").removesuffix("_high")
                for c in next(csv.reader(file)) if c.startswith("align/")} == CHEAP  # fmt: skip
    assert [epoch for epoch, seconds in points["alignment/seconds"] if seconds > 0] == [0, 1]
    assert points["align/hard/representation"][-1][1] < 1e-3 < points["align/soft/representation"][-1][1]


def test_curves_have_a_panel_for_each_metric_with_both_read_outs(run):
    panels = alignment_panels(history(run / "metrics.csv"))
    assert set(panels) == CHEAP
    assert all(list(lines) == ["hard", "soft"] for lines in panels.values())
    assert all(len(line.low) == 2 for lines in panels.values() for line in lines.values())
    with Image.open(run / "curves.png") as picture:
        assert picture.height > 3 * 200  # rows of four


def test_the_terminal_shows_the_run_and_leaves_alignment_to_the_files(tmp_path, capsys):
    summary = train(composed(*SMALL, "trainer.max_epochs=1", directory=tmp_path))
    assert "align/soft/noise_cosine" in summary
    shown = capsys.readouterr().out
    assert "val acc" in shown
    assert "align/" not in shown


@pytest.fixture(scope="module")
def measured():
    cfg = configured(*SMALL)
    data = build.data(cfg)
    pl.seed_everything(0, verbose=False)
    module = build.module(cfg, data)
    callback = AlignmentCurves(cfg.readout, AlignmentConfig(every_n_epochs=1, images=20, few=3, draws=2, dear_images=4))
    callback.prepare(data, module)
    return module, data, callback, callback.measure(module, dear=True)


def test_shared_passes_give_what_each_metric_gives_by_itself(measured):
    module, data, callback, found = measured
    x, labels = data.sample(20, 314)
    x = x.contiguous(memory_format=torch.channels_last)
    rule = callback.rules["soft"]
    explain = Pullback(rule, centred=True)
    alone = metrics.NoiseCosine(explain, count=2, seed=314)
    alone.update(module.net, x[:3], labels[:3])
    assert found["align/soft/noise_cosine"] == pytest.approx(float(alone.compute()), rel=1e-4)
    copies = torch.stack([explain(module.net, x[:3] + n, labels[:3]) for n in 0.02 * draws(x[:3], 2, 314)])
    expected = metrics.max_sensitivity(explain(module.net, x[:3], labels[:3]), copies).mean()
    assert found["align/soft/max_sensitivity"] == pytest.approx(float(expected), rel=1e-3)
    smooth = metrics.TotalVariation()
    smooth.update(explain(module.net, x, labels))
    assert found["align/soft/total_variation"] == pytest.approx(float(smooth.compute()), rel=1e-4)
    every = torch.stack([explain(module.net, x[:3], torch.full((3,), c)) for c in range(10)], 1)
    specific = metrics.TargetSpecificity()
    specific.update(every)
    assert found["align/soft/target_specificity"] == pytest.approx(float(specific.compute()), rel=1e-4)


def test_dear_metrics_are_measured_where_they_are_due(measured):
    *_, found = measured
    for key in (
        "randomization_head",
        "grid_pointing",
        "deletion",
        "infidelity",
        "counterfactual_flip",
    ):
        assert not math.isnan(found[f"align/soft/{key}"]), key
    assert log_spaced(5, 100) == {0, 2, 9, 31, 99}
    assert log_spaced(0, 100) == set()
    assert log_spaced(1, 100) == {99}
    assert log_spaced(5, 2) == {0, 1}


def test_a_sample_takes_the_classes_in_turn_and_is_the_same_each_time(measured):
    _, data, *_ = measured
    x, labels = data.sample(25, 1)
    assert sorted(labels[:10].tolist()) == list(range(10))
    assert labels.bincount().tolist() == [3] * 5 + [2] * 5
    assert torch.equal(x, data.sample(25, 1)[0])
    assert not torch.equal(x, data.sample(25, 2)[0])
    assert len(data.sample(10**6, 0)[1]) == len(data.val_listing)
    means = data.class_means()
    assert means.shape == (10, *x.shape[1:])


def test_a_model_without_affine_reading_is_measured_without_it(measured):
    module, data, *_ = measured
    callback = AlignmentCurves(sg.Surrogate(), AlignmentConfig(every_n_epochs=1, images=10, few=2, draws=1))
    net, module.net = module.net, _Normed()
    try:
        with pytest.warns(sg.SoftgateWarning, match="LayerNorm"):
            callback.prepare(data, module)
        found = callback.measure(module)
    finally:
        module.net = net
    assert "align/soft/noise_cosine" in found
    assert "align/soft/representation" not in found


class _Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 14, 14]), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("callbacks.alignment.images=1", "images=1"),
        ("callbacks.alignment.every_n_epochs=-1", "every_n_epochs=-1"),
        ("callbacks.alignment.evaluator=nowhere.ckpt", "evaluator=nowhere.ckpt"),
    ],
)
def test_wrong_options_are_one_sentence_before_any_data_is_loaded(override, named):
    with pytest.raises(SoftgateError, match=named):
        configured(*SMALL, override)


def test_an_evaluator_judges_counterfactuals_by_what_classes_are_called(run, tmp_path):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    original, _ = restore(run / "checkpoints" / "last.ckpt")
    classes = content["hyper_parameters"]["classes"]
    for key in ("net.fc.weight", "net.fc.bias"):
        content["state_dict"][key] = content["state_dict"][key].flip(0)
    made = {}
    for name, called in (("judge", classes[::-1]), ("stranger", ["x", *classes[1:]])):
        content["hyper_parameters"]["classes"] = called
        torch.save(content, tmp_path / f"{name}.ckpt")
        cfg = configured(*SMALL, f"callbacks.alignment.evaluator={tmp_path}/{name}.ckpt")
        (made[name],) = [c for c in build.callbacks(cfg, run) if isinstance(c, AlignmentCurves)]
    images = build.data(cfg)
    module = build.module(cfg, images)
    made["judge"].prepare(images, module)
    x, _ = images.sample(4, 0)
    with torch.no_grad():
        torch.testing.assert_close(made["judge"].evaluator(x), original.net.eval()(x))
    with pytest.raises(
        SoftgateError, match=r"evaluator=.*stranger\.ckpt: 9 of 10 classes are found in the evaluator by n"
    ):
        made["stranger"].prepare(images, module)
