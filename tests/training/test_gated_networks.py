"""`model=dgn`: a gated network is trained, resumed, evaluated and swept as any other; what is refused."""

import re

import pytest
import torch

import softgate as sg
from configs import TINY, composed, configured, container
from softgate import SoftgateError
from softgate.evaluation.networks import align
from softgate.models import GatedConfig, GatedNetwork, Gating
from softgate.training import build, checkpoints
from softgate.training.config import TrainConfig
from softgate.training.networks import title
from softgate.training.train import train
from trained import equal

SHORT = ("model.width=0.25", "model.depth=0.5", "callbacks=none", "optim.lr=0.01", "trainer.limit_val_batches=1")
DGN = ("model=dgn", "model.base=mlp")


@pytest.fixture(scope="module")
def relu(tmp_path_factory):
    directory = tmp_path_factory.mktemp("relu")
    train(composed(*TINY, "model=mlp", *SHORT, directory=directory))
    return directory


def weights(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def part(state, name):
    return {key.removeprefix(f"net.{name}."): value for key, value in state.items() if key.startswith(f"net.{name}.")}


def begun(*words):
    config = configured(*TINY, *words)
    torch.manual_seed(0)
    return build.module(config, build.data(config))


@pytest.mark.filterwarnings("ignore:GatedNetwork selects or bends data:softgate.SoftgateWarning")  # its soft gates
def test_a_decoupled_network_trains_both_of_its_networks(tmp_path, capsys):
    words = (*TINY, *DGN, *SHORT, "callbacks=default", "callbacks.grids.film=false", "callbacks.grids.early=false")
    summary = train(composed(*words, directory=tmp_path))
    assert summary["status"] == "finished"
    assert "dgn of mlp (decoupled, soft gates, beta 4)" in capsys.readouterr().out
    assert list((tmp_path / "grids").glob("*.png"))
    module, _ = checkpoints.restore(tmp_path / "checkpoints" / "last.ckpt")
    assert isinstance(module.net, GatedNetwork)
    first = begun(*DGN, *SHORT).net.state_dict()
    moved = {key for key, value in module.net.state_dict().items() if not torch.equal(value, first[key])}
    assert {key for key in first if not key.startswith("feature.fc")} == moved
    assert equal({f"net.{key}": value for key, value in module.net.state_dict().items()}, weights(tmp_path))


def test_features_of_a_trained_network_stay_what_its_last_checkpoint_has(relu, tmp_path):
    fixed = ("model.regime=fixed_learnt", f"model.feature_weights={relu}")
    train(composed(*TINY, *DGN, *SHORT, *fixed, directory=tmp_path))
    theirs = {key.removeprefix("net."): value for key, value in weights(relu).items()}
    assert equal(part(weights(tmp_path), "feature"), theirs)
    assert not equal(part(weights(tmp_path), "value"), theirs)
    module, _ = checkpoints.restore(tmp_path / "checkpoints" / "last.ckpt")
    trained, _ = checkpoints.restore(relu / "checkpoints" / "last.ckpt")
    x = torch.randn(3, 3, 16, 16)
    module.net.value.load_state_dict(theirs)
    assert torch.equal(module.eval()(x), trained.eval()(x))
    assert torch.equal(sg.pullback(module.net, x, 1, sg.Surrogate()), sg.pullback(trained.net, x, 1, sg.Surrogate()))


def test_a_resumed_run_ends_as_one_that_was_not_broken_off(tmp_path):
    words = (*TINY, "model=dlgn", "model.base=mlp", *SHORT, "surrogate=none", "optim.scheduler=null", "optim.warmup=0")
    train(composed(*words, directory=tmp_path / "whole"))
    train(composed(*words, "trainer.max_epochs=1", directory=tmp_path / "parts"))
    middle = weights(tmp_path / "parts")
    train(composed(*words, "resume=true", directory=tmp_path / "parts"))
    assert equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert not equal(middle, weights(tmp_path / "whole"))


@pytest.mark.parametrize("dependent", [False, True])
def test_values_begin_with_weights_of_their_own_or_those_of_the_features(dependent):
    how = "dependent" if dependent else "independent"
    net = begun(*DGN, *SHORT, "model.regime=fixed_random", f"model.value_weights={how}").net
    assert equal(net.feature.state_dict(), net.value.state_dict()) == dependent
    assert not any(p.requires_grad for p in net.feature.parameters())


@pytest.mark.parametrize("base", ["resnet20", "vgg11", "densenet121", "timm/resnet26"])
@pytest.mark.slow
def test_any_network_of_relus_is_a_base(base):
    library = ("model.library=timm",) if "/" in base else ()
    words = ("model=dlgn", f"model.base={base.rpartition('/')[2]}", *library, "data.size=32", "surrogate=none")
    module = begun(*words)
    module.net(torch.randn(2, 3, 32, 32)).sum().backward()
    untrained = {name for name, p in module.net.named_parameters() if p.requires_grad and p.grad is None}
    assert untrained == set()


def test_classes_in_another_order_are_those_of_the_value_networks_last_layer():
    config = configured(*TINY, *DGN, *SHORT, "model.regime=fixed_random")
    data = build.data(config)
    module = build.module(config, data).eval()
    x, features = torch.randn(2, 3, 16, 16), module.net.feature.state_dict()
    before, kept = module(x), {key: value.clone() for key, value in features.items()}
    module.classes = module.classes[::-1]
    assert align(module, data, "a run")
    assert torch.allclose(module(x), before.flip(1), rtol=1e-4, atol=1e-6)
    assert equal(kept, module.net.feature.state_dict())


def test_a_network_says_what_its_gates_are():
    gated = Gating(gating="linear", value_input="ones").model_dump()
    assert title({"name": "vgg11", "gated": gated}) == "dlgn of vgg11 (decoupled, soft gates, beta 4, values fed ones)"
    assert title({"name": "vgg11"}) == "vgg11"
    fixed = begun(*DGN, *SHORT, "model.regime=fixed_random").architecture
    assert title(fixed) == "dgn of mlp (fixed_random, hard gates)"


def test_the_yaml_files_say_what_the_types_say():
    plain = container(*DGN, directory=None)["model"]
    assert set(plain) == set(GatedConfig.model_fields)
    for name, field in GatedConfig.model_fields.items():
        assert field.is_required() or plain[name] == field.default, name
    linear = container("model=dlgn", "model.base=mlp", directory=None)["model"]
    assert {key for key in plain if plain[key] != linear[key]} == {"gating", "name"}
    assert GatedConfig.read(plain).gating_options == Gating().model_dump()
    assert configured(*DGN).name == "digits-dgn-mlp-excitation"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.base=resnet21",), "model.base=resnet21: there is no such name"),
        (("model.base=mlp", "model.gates=hard"), "model.gates=hard: a step has no gradient"),
        (("model.base=mlp", "model.regime=random"), "model.regime=random: there is no such name; allowed: decoupled"),
        (
            ("model.base=mlp", "model.gating=affine"),
            "model.gating=affine: there is no such name; allowed: linear, relu",
        ),
        (("model.base=mlp", "model.value_input=noise"), "model.value_input=noise: there is no such name"),
        (("model.base=mlp", "model.beta=-1"), "model.beta=-1: a number > 0 is needed"),
        (("model.base=mlp", "model.regime=fixed_learnt"), "model.regime=fixed_learnt: whose gates?"),
        (
            ("model.base=mlp", "model.feature_weights=x"),
            "model.feature_weights=x: they are for model.regime=fixed_learnt, not decoupled",
        ),
        (
            ("model.base=mlp", "model.regime=fixed_learnt", "model.feature_weights=nowhere"),
            "model.feature_weights=nowhere: no such file",
        ),
        (("model.base=mlp", "model.new_head=true"), "model.new_head=True: a gated network has none"),
        (("model.base=mlp", "model.classes=data"), "model.classes=data: a gated network has the data's"),
        (("model.base=mlp", "model.weights=IMAGENET1K_V1"), "model.weights=IMAGENET1K_V1: no such file"),
        (("model.base=resnet20", "model.width=0.5"), "model.width=0.5: resnet20 has none; these have:"),
        (("model.base=mlp", "compile=true"), "compile=True: a gated network"),
        (("model.base=mlp", "surrogate=semantic"), "surrogate: it holds gates constant"),
        (
            ("model.base=mlp", "model.gating=linear"),
            "surrogate: a network of linear gating with soft gates has no ReLU",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_as_the_config_is_read(words, said):
    with pytest.raises(SoftgateError, match=f"^{re.escape(said)}") as error:
        TrainConfig.read(container("model=dgn", *words, directory=None))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("vit_b_16", "model.base=vit_b_16: gated network: the network has gelu"),
        ("mobilenet_v2", "model.base=mobilenet_v2: gated network: the network has relu6"),
        ("vgg11", "data.size=16: model.base=vgg11 does not take such images"),
    ],
)
def test_a_base_that_no_gated_network_can_be_made_of_is_refused(base, said):
    with pytest.raises(SoftgateError, match=f"^{re.escape(said)}"):
        begun("model=dgn", f"model.base={base}", "data.size=16")


def test_feature_weights_of_another_architecture_are_refused(relu, tmp_path):
    fixed = ("model.regime=fixed_learnt", f"model.feature_weights={relu}")
    with pytest.raises(SoftgateError, match=r"^model\.feature_weights=.*not the weights of plain8: .* names or shapes"):
        begun("model=dgn", "model.base=plain8", *fixed)
    with pytest.raises(SoftgateError, match=r"not the weights of mlp: .* such as hidden\.4\.bias"):
        begun("model=dgn", "model.base=mlp", *fixed)
    (tmp_path / "x.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SoftgateError, match=r"^model\.feature_weights=.*x\.pt: not a file of plain tensors"):
        begun(*DGN, fixed[0], f"model.feature_weights={tmp_path / 'x.pt'}")
