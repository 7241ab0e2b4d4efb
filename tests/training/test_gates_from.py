"""`gates_from=`: weights of a recorded epoch trained on with the gates of a frozen network, and what is refused."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import softgate as sg
from configs import TINY, composed, configured
from softgate import SoftgateError
from softgate.paths import Recording
from softgate.training import build, checkpoints
from softgate.training.optim import warmup_cosine
from softgate.training.train import train
from trained import equal

SHORT = ("model=plain8", "surrogate=none", "callbacks=none", "optim.warmup=0", "optim.lr=0.01")
RECORDED = ("callbacks.paths.recordings=2", "callbacks.paths.images=20", "callbacks.paths.first=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recorded")
    train(composed(*TINY, *SHORT, *RECORDED, directory=directory))
    return directory


def words(run, *more, epoch=1):
    return (*TINY, *SHORT, f"gates_from.run={run}", f"gates_from.epoch={epoch}", *more)


def last(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_recorded_weights_are_trained_on_with_the_gates_that_were_asked_for(run, tmp_path):
    recording = Recording(run / "paths")
    first, middle, final = (recording.weights(point)["net"] for point in recording.points)
    for gates, frozen in (("epoch", middle), ("last", final), ("random", None), ("own", None)):
        config = configured(*words(run, f"gates_from.gates={gates}"))
        state = torch.get_rng_state()
        module = build.module(config, build.data(config))
        begun = module.net.state_dict()
        assert equal(middle, begun)
        if gates == "own":
            assert module.gates is None
            continue
        kept = module.gates.state_dict()
        assert equal(kept, frozen) if frozen else not equal(kept, first)
        if gates == "random":
            torch.set_rng_state(state)
            again = build.module(config, build.data(config))
            assert equal(kept, again.gates.state_dict())
        x = torch.randn(3, 3, 16, 16)
        other = build.networks.build(module.architecture, 10)
        other.load_state_dict(kept)
        expected = sg.paths.run(module.net, x, sg.paths.record(other, x))
        assert torch.equal(module(x), expected)


def test_the_rate_goes_on_from_that_epoch_and_as_many_epochs_are_trained_as_were_left(run, tmp_path, capsys):
    train(composed(*words(run), directory=tmp_path))
    said = capsys.readouterr().out
    assert "trained on with the gates of the network frozen there" in said
    assert "from epoch 1 to 2" in said
    assert "evaluate.py" not in said
    found = last(tmp_path)
    assert found["global_step"] == 3  # of six steps, three lie before epoch 1
    whole = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.01)
    rate = warmup_cosine(whole, 6, 0.0, done=3)
    assert [round(f, 6) for f in (rate.lr_lambdas[0](0), rate.lr_lambdas[0](3))] == [0.5, 0.0]
    assert not equal(found["state_dict"], last(run)["state_dict"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"


def test_a_training_step_is_one_of_the_gated_network(run, tmp_path):
    config = configured(*words(run, "gates_from.gates=last"))
    module = build.module(config, build.data(config))
    module.log = lambda *args, **kwargs: None
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    module.train()
    loss = module.training_step((x, y), 0)
    gates = module.gates.gates(x)
    assert torch.equal(loss, F.cross_entropy(sg.paths.run(module.net, x, gates), y))  # no BatchNorm in plain8
    module.eval()
    module.validation_step((x, y), 0)
    assert float(module.val_loss.compute()) == pytest.approx(float(loss.detach()))


def test_it_goes_on_bit_for_bit_where_it_was_interrupted_and_checkpoints_have_the_gates(run, tmp_path):
    more = ("trainer.max_epochs=3", "optim.scheduler=null")
    train(composed(*words(run, *more), directory=tmp_path / "whole"))
    train(composed(*words(run, *more[1:]), "trainer.max_epochs=2", directory=tmp_path / "parts"))
    train(composed(*words(run, *more), "resume=true", directory=tmp_path / "parts"))
    whole, parts = (last(tmp_path / name) for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 6
    assert equal(whole["state_dict"], parts["state_dict"])
    assert equal(whole["softgate_gates"], Recording(run / "paths").weights(Recording(run / "paths").points[1])["net"])
    path = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    module = build.SoftgateModule.load_from_checkpoint(path)
    assert equal(module.gates.state_dict(), whole["softgate_gates"])
    with pytest.raises(SoftgateError, match="trained with the gates of another"):
        checkpoints.restore(path)
    with pytest.raises(SoftgateError, match=r"another config; different: gates_from\.gates \(epoch there, last here\)"):
        train(composed(*words(run, *more, "gates_from.gates=last", "resume=true"), directory=tmp_path / "parts"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("gates_from.run=nowhere",), "gates_from.run=nowhere: it holds no recording"),
        (("gates_from.run=null",), "gates_from.epoch=1: of which run"),
        (("gates_from.epoch=null",), "set gates_from.epoch"),
        (("gates_from.gates=mine",), "gates_from.gates=mine: there is no such name; allowed: epoch, last, own, random"),
        (("surrogate=excitation",), "set surrogate=none"),
        (("compile=true",), "compile=true"),
        (("train.noise=0.1",), r"gates_from\.gates=\w+: with the gates of another network there is no noise 0\.1"),
        (("callbacks.grids.every_n_epochs=1",), r"callbacks\.grids\.every_n_epochs=1: it looks at"),
        (("callbacks.paths.recordings=2",), r"callbacks\.paths\.recordings=2: it looks at"),
        (("trainer.max_epochs=1",), "after gates_from.epoch"),
        (("trainer.max_steps=9",), "max_steps=-1"),
        (("model=resnet18", "model.weights=IMAGENET1K_V1", "model.new_head=true"), "model.weights=null is needed"),
    ],
)
def test_what_cannot_work_is_refused_before_data_is_read(run, monkeypatch, more, said):
    monkeypatch.setattr(build, "data", lambda config: pytest.fail("read"))
    with pytest.raises(SoftgateError, match=said):
        configured(*words(run, *more))


def test_what_the_recording_cannot_give_is_refused(run, tmp_path):
    def refused(said, *asked):
        config = configured(*asked)
        with pytest.raises(SoftgateError, match=said):
            build.module(config, build.data(config))

    refused("gates_from.epoch=0.5: not recorded; one of 0, 1, 2 is needed", *words(run, epoch=0.5))
    refused("another architecture", *words(run, "model=plain20"))
    bare = tmp_path / "bare"
    shutil.copytree(run / "paths", bare / "paths")
    header = json.loads((bare / "paths" / "header.json").read_text())
    (bare / "paths" / "header.json").write_text(json.dumps(header | {"run": "another"}))
    refused("belongs to another recording", *words(bare))
    train(composed(*TINY, *SHORT, *RECORDED, "callbacks.paths.weights=false", directory=tmp_path / "light"))
    refused("weights are needed", *words(tmp_path / "light"))
    refused("these are the initial weights of the run itself", *words(run, "gates_from.gates=random", *OWN_SEED))


OWN_SEED = ("gates_from.seed=0",)
