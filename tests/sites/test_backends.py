"""Forward gradient injection: the same rules without an autograd Function, bit-equal values and equal gradients."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import block_networks
import reference
import site_networks
import softgate as sg

SEMANTIC = sg.Surrogate.semantic()
RULES = {
    "excitation": sg.Surrogate(),
    "a mix": sg.Surrogate(mix=0.3),
    "unit_rms": sg.Surrogate(gain="unit_rms"),
    "channel": sg.Surrogate(scale="channel"),
    "softmax_full": sg.Surrogate(sg.gates.Softsign(0.2), sg.pools.SoftmaxFull(0.5)),
    "random": sg.Surrogate(sg.gates.Random()),
}
QUICK = ("squeezenet1_1", "shufflenet_v2_x0_5")
RELU_NETWORKS = (*QUICK, "resnet18", "vgg11_bn", "googlenet", "mnasnet0_5", "densenet121")
BLOCK_RULES = {
    "semantic": SEMANTIC,
    "a mix": sg.Surrogate.semantic(mix=0.4),
    "warm": sg.Surrogate.semantic(attention=sg.attentions.ValuePath(0.5)),
    "two passes": sg.Surrogate.semantic(attention=sg.attentions.TwoPass(2.0)),
}


def both(model, x, rule):
    """Logits, input and parameter gradients by either backend."""
    found = []
    for backend in ("functions", "fgi"):
        with sg.attach(model, rule, backend=backend):
            found.append(block_networks.gradients(model, x))
    return found


def assert_alike(functions, injected):
    assert torch.equal(injected[0], functions[0])
    assert reference.distance(injected[1], functions[1]) < 1e-12
    for name, grad in functions[2].items():
        other = injected[2][name]
        assert (grad is None) == (other is None), name
        assert grad is None or reference.distance(other, grad) < 1e-12, name


def relu_network(name):
    torch.manual_seed(0)
    settings = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=5, **settings)
    if name == "vgg11_bn":
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 5)
    return model.double().eval()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RELU_NETWORKS]
)
def test_networks_of_relus_and_poolings_have_the_same_gradients(name):
    model, x = relu_network(name), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_alike(*both(model, x, sg.Surrogate()))


@pytest.mark.parametrize("name", block_networks.NETWORKS)
def test_networks_of_blocks_have_the_same_gradients(name):
    assert_alike(*both(block_networks.build(name), block_networks.images(), SEMANTIC))


@pytest.mark.parametrize("rule", BLOCK_RULES)
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_every_rule_of_blocks_has_the_same_gradients(name, rule):
    assert_alike(*both(block_networks.build(name), block_networks.images(), BLOCK_RULES[rule]))


class Kinds(nn.Module):
    """Every kind of activation and pooling, in place too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.LazyLinear(5)
        self.kinked = nn.ModuleList([nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Hardtanh(-1, 2)])
        self.prelu = nn.PReLU(4)

    def forward(self, x):
        x = self.first(x)
        total = sum(layer(x.clone()) for layer in self.kinked) + self.prelu(x) + x.clamp(min=0)
        pooled = (
            F.max_pool2d(total, 3, 2, 1),
            F.max_pool2d(total, 2, 3, ceil_mode=True),
            F.adaptive_max_pool2d(total, 2),
        )
        return self.last(torch.cat([total.amax((2, 3)), *(part.flatten(1) for part in pooled)], 1))


@pytest.mark.parametrize("rule", RULES)
def test_every_kind_and_every_rule_has_the_same_gradients(rule):
    torch.manual_seed(0)
    model, x = Kinds().double(), torch.randn(3, 3, 14, 14, dtype=torch.float64)
    model(x)
    sg.calibrate(model, [x], sg.Surrogate(scale="channel"))
    assert_alike(*both(model.eval(), x, RULES[rule]))


@pytest.mark.parametrize("spelling", site_networks.SPELLINGS)
def test_every_spelling_of_a_relu_has_the_same_gradients(spelling):
    model = site_networks.Spelled(site_networks.SPELLINGS[spelling]).eval()
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_alike(*both(model, x, sg.Surrogate()))


def test_nothing_in_the_graph_is_a_function_of_softgates():
    model, x = block_networks.build("vit"), block_networks.images()
    with sg.attach(model, SEMANTIC, backend="fgi"):
        todo, seen = [model(x.requires_grad_()).grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            assert not hasattr(node, "_forward_cls"), node
            todo += [upstream for upstream, _ in node.next_functions]


@pytest.mark.parametrize("name", ["convnext", "mobilenet"])
def test_forward_mode_gives_the_surrogate_derivative(name):
    model, x = block_networks.build(name), block_networks.images()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    with sg.attach(model, SEMANTIC, backend="fgi"):
        found = torch.func.jvp(lambda x: model(x)[:, 1].sum(), (x,), (direction,))[1]
        pulled = torch.func.grad(lambda x: model(x)[:, 1].sum())(x)
    assert float(found) == pytest.approx(float((pulled * direction).sum()), rel=1e-10)
    assert reference.distance(pulled, sg.pullback(model, x, 1, SEMANTIC)) < 1e-12


@pytest.mark.parametrize("name", ["convnext", pytest.param("efficientnet", marks=pytest.mark.slow)])
def test_an_exported_program_has_the_rule(name):
    model, x = block_networks.build(name), block_networks.images()
    with sg.attach(model, SEMANTIC, backend="fgi"):
        program = torch.export.export(model, (x,))
        expected = block_networks.gradients(model, x)
    found = block_networks.gradients(program.module(), x)
    assert torch.equal(found[0], expected[0])
    assert reference.distance(found[1], expected[1]) < 1e-12
    with (
        sg.attach(model, SEMANTIC),
        pytest.raises(sg.SoftgateError, match=r"which puts it into what torch\.export makes"),
    ):
        torch.export.export(model, (x,))


def test_what_it_cannot_do_is_refused_in_a_sentence():
    model, x = relu_network("squeezenet1_1"), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with (
        sg.attach(model, sg.Surrogate(gain="matched"), backend="fgi"),
        pytest.raises(sg.SoftgateError, match=r"surrogate.gain=matched: backend=fgi takes raw and unit_rms"),
    ):
        model(x.requires_grad_())
    with pytest.raises(sg.SoftgateError, match=r"attach: backend=injection.*fgi, functions"):
        sg.attach(model, sg.Surrogate(), backend="injection")
