"""The folded copy: same logits and pullbacks, the original untouched."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import grids
from softgate.explainers import folding
from softgate.explainers.folding import fold

RULE = sg.Surrogate()


def lived_in(model: nn.Module) -> nn.Module:
    """The model in float64 with running statistics and affine settings that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.bias.data, -0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model.double()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 0), ("vgg11_bn", 0), ("densenet121", 62), ("googlenet", 0), ("squeezenet1_1", 0)]
)
@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
def test_pullbacks_of_the_folded_copy_are_those_of_the_original(name, left, rule):
    torch.manual_seed(0)
    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = lived_in(torchvision.models.get_model(name, num_classes=10, **extra)).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    folded = fold(model, x)
    assert norms(folded) == left
    expected, found = sg.pullback(model, x, [1, 7], rule), sg.pullback(folded, x, [1, 7], rule)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_original_is_left_as_it_was_and_the_copy_is_frozen():
    model = lived_in(torchvision.models.resnet18(num_classes=10)).train()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    folded = fold(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(module.training for module in folded.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_copy_of_an_attached_model_is_attached_and_the_original_keeps_its_rule():
    model = lived_in(torchvision.models.resnet18(num_classes=10)).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = sg.pullback(model, x, 3, RULE)
    sites = sg.attach(model, sg.Surrogate(mix=0.5))
    folded = fold(model, x)
    assert norms(folded) == 0
    assert (sg.pullback(folded, x, 3, RULE) - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert sites.rule == sg.Surrogate(mix=0.5)


class Block(nn.Module):
    """A convolution and a BatchNorm; subclasses use them in ways that cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def features(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        return self.head(F.relu(self.features(x)).mean((2, 3)))


class ReadTwice(Block):
    def features(self, x):
        z = self.conv(x)
        return self.norm(z) + z


class CalledTwice(Block):
    def features(self, x):
        return self.norm(self.conv(x)) + self.conv(x)


class NormTwice(Block):
    def features(self, x):
        return self.norm(self.norm(self.conv(x)))


class Between(Block):
    def features(self, x):
        return self.norm(F.relu(self.conv(x)))


class ReadsWeights(Block):
    def features(self, x):
        return super().features(x) * self.norm.weight.mean()


class ConvolvesAgain(Block):
    """The hooks do not see that the weights are used a second time; the logits do."""

    def features(self, x):
        return super().features(x) + F.conv2d(x, self.conv.weight)


@pytest.mark.parametrize("kind", [ReadTwice, CalledTwice, NormTwice, Between, ReadsWeights, ConvolvesAgain])
def test_what_cannot_be_folded_is_left_and_right(kind):
    torch.manual_seed(0)
    model, x = lived_in(kind()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    copied = fold(model, x)
    assert norms(copied) == 1
    torch.testing.assert_close(sg.pullback(copied, x, 2, RULE), sg.pullback(model, x, 2, RULE))


def test_a_network_that_draws_in_eval_mode_leaves_the_random_state_alone():
    class Draws(Block):
        def features(self, x):
            return F.dropout(super().features(x), training=True)

    model, x = lived_in(Draws()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = torch.get_rng_state()
    fold(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plain_block_is_folded():
    model, x = lived_in(Block()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert norms(fold(model, x)) == 0


def test_a_model_that_cannot_be_copied_is_read_out_as_it_is():
    model = Block()
    model.cache = model.conv.weight * 2  # not a leaf: deepcopy refuses it
    assert fold(model, torch.randn(1, 3, 8, 8)) is model


@pytest.fixture
def no_collector():
    """Python's collector of cycles off: what is freed is freed by the last reference."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("case", ["folded", "not trusted", "code that fails", "a read-out that fails"])
def test_copies_for_a_grid_are_gone_when_it_is_read(monkeypatch, no_collector, case):
    made: list[weakref.ref] = []

    def copied(model: nn.Module) -> nn.Module:
        found = copy.deepcopy(model)
        made.extend(weakref.ref(module) for module in found.modules())
        return found

    def fails(*given: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(folding, "copy", SimpleNamespace(deepcopy=copied))
    if case == "not trusted":
        monkeypatch.setattr(folding, "TOLERANCE", -1.0)
    if case == "code that fails":
        monkeypatch.setattr(folding, "_pairs", fails)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 3, 8, 8)
    model(x)
    with sg.attach(model, RULE):
        if case == "a read-out that fails":
            with pytest.raises(RuntimeError, match="out of memory"):
                grids.read(model, x, [0, 1], [0, 1], {"hard": fails})
        else:
            grids.read(model, x, [0, 1], [0, 1], {"hard": None, "soft": RULE})
    assert len(made) >= 12
    assert [ref() for ref in made if ref() is not None] == []
