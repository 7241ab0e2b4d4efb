"""Networks with smooth activations in the commands: what is refused in a sentence, and what a run says and leaves."""

import csv

import pytest
import torch

from softgate.cli.words import for_hydra

SMALL = (
    *("data=digits", "data.size=8", "model.width=0.1", "model.depth=0.1", "optim=adamw"),
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1"),
)


@pytest.mark.parametrize("rule", ["excitation", "sugar"])
def test_a_rule_for_relus_is_refused_in_one_sentence_that_names_what_covers_them(rule, typed):
    status, said = typed("train.py", "model=convnext_tiny", f"surrogate={rule}", *SMALL)
    said = said.splitlines()
    assert status == 2
    assert len(said) == 1
    assert "gelu" in said[0]
    assert "surrogate=semantic" in said[0]
    assert "surrogate.activation=self_gate" in said[0]


def test_recordings_of_smooth_gates_are_refused_in_one_sentence(typed):
    status, said = typed("train.py", "model=convnext_tiny", "surrogate=semantic", "callbacks=paths", *SMALL)
    assert status == 2
    assert said.count("\n") == 1
    assert "callbacks.paths.recordings=" in said
    assert "(gelu)" in said


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("surrogate.attention=two_pass", ["~surrogate.attention", "++surrogate.attention.name=two_pass"]),
        ("surrogate.activation.silu=1", ["++surrogate.activation.silu=1"]),
        ("readout.activation=own", ["~readout.activation", "++readout.activation.name=own"]),
        ("surrogate.gate=leaky", ["~surrogate.gate", "++surrogate.gate.name=leaky"]),
        ("surrogate.gate={name: leaky}", ["~surrogate.gate", "++surrogate.gate={name: leaky}"]),
        ("surrogate.norm=own", ["surrogate.norm=own"]),
    ],
)
def test_a_part_of_a_rule_can_be_given_by_its_name_alone(word, expected):
    assert for_hydra([word]) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softgate.SoftgateWarning")  # the hard read-out of these has no representation
@pytest.mark.parametrize("rule", ["none", "semantic"])
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0"])
def test_training_reads_out_soft_and_goes_on_bit_for_bit(name, rule, typed, tmp_path):
    constant = ("optim.scheduler=null", "optim.warmup=0")  # a cosine depends on how long the run is
    words = ("train.py", f"model={name}", f"surrogate={rule}", *SMALL, *constant, "callbacks=alignment")
    words += ("callbacks.alignment.images=20", "callbacks.alignment.few=2", "callbacks.alignment.draws=2")
    words += ("callbacks.alignment.dear_epochs=0",)
    assert typed(*words, "trainer.max_epochs=2", "hydra.run.dir=whole")[0] == 0
    assert typed(*words, "trainer.max_epochs=1", "hydra.run.dir=parts")[0] == 0
    assert typed("train.py", "resume=parts", "trainer.max_epochs=2")[0] == 0
    whole, parts = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert (tmp_path / "whole" / "grids" / "epoch=001.png").is_file()
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        head = next(csv.reader(file))
    assert {"align/hard/noise_cosine", "align/soft/noise_cosine", "align/soft/representation"} <= set(head), head
    assert "align/hard/representation" not in head
