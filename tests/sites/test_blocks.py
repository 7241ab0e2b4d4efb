"""Networks with smooth activations, normalisations, attention and gated products: against the slow reference.

Whole networks of torchvision, and every spelling of a block that people write.
"""

import warnings
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import reference
import reference_blocks
import softgate as sg
from block_networks import NETWORKS, build, gradients, images
from softgate.explainers.representation import read

SEMANTIC = sg.Surrogate.semantic()
EXACT = sg.Surrogate.semantic(activation=sg.activations.SelfGate(silu=1.0))
"""Under which a network without ReLUs and poolings is its own affine reading."""

SITES = {
    "vit": {"layer_norm": 5, "attention": 2, "gelu": 2},
    "swin": {"layer_norm": 11, "attention": 4, "gelu": 4},
    "convnext": {"layer_norm": 6, "gelu": 3},
    "efficientnet": {"silu": 49, "product": 16},
    "mobilenet": {"hardswish": 19, "relu": 14, "product": 9},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_agree_with_the_reference(name):
    model, x = build(name), images()
    bare = gradients(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sg.attach(model, SEMANTIC) as sites:
            soft = gradients(model, x)
            assert sites.unaffected == []
    with reference_blocks.patched(), reference.patched(partial(reference.normal_cdf, temperature=0.6), 0.3):
        slow = gradients(model, x)
    assert torch.equal(soft[0], bare[0])
    assert reference.distance(soft[1], slow[1]) < 1e-10
    for key, part in slow[2].items():
        found = soft[2][key]
        assert reference.distance(found, torch.zeros_like(found) if part is None else part) < 1e-10, key
    assert reference.distance(soft[1], bare[1]) > 1e-3
    counts = {kind: sites.count(kind) for kind in {site.kind for site in sites}}
    assert counts == SITES[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_with_all_selections_held_the_network_is_affine(name):
    """f = <v, x> + constants; where no ReLU is softened, f is the logit itself."""
    model, x = build(name), images()
    found = read(model, x, [0, 3], EXACT)
    assert reference.distance(found.represented, sg.representation(model, x, [0, 3], EXACT)) < 1e-12
    if name != "mobilenet":
        assert reference.distance(found.represented, found.logit) < 1e-10
    # affine in the image: run with the gates held, a line between two images is a line between their logits
    gates = sg.paths.record(model, x[:1], EXACT) if name != "swin" else None
    if gates is not None and name != "vit":
        other = images(4)[2:3]
        ends = [sg.paths.run(model, image, gates) for image in (x[:1], other)]
        middle = sg.paths.run(model, (x[:1] + 3 * other) / 4, gates)
        assert reference.distance(middle, (ends[0] + 3 * ends[1]) / 4) < 1e-10


def test_a_rule_for_relus_alone_refuses_them_by_name_and_says_what_covers_them():
    with pytest.raises(sg.UnreachableSites, match=r"gelu.*surrogate.activation=self_gate covers silu, gelu"):
        sg.attach(build("convnext"), sg.Surrogate())
    model = build("efficientnet")
    with sg.attach(model, None) as sites:
        sites.use(sg.Surrogate())
        with pytest.raises(sg.UnreachableSites, match="silu"):
            gradients(model, images())
        sites.use(SEMANTIC)
        gradients(model, images())


def test_presets_without_a_rule_for_blocks_leave_them_alone():
    """A network of ReLUs with GroupNorm has the gradient that it had, and no site more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).double()
    x = images()
    model(x)
    with sg.attach(model, sg.Surrogate()) as sites:
        plain = gradients(model, x)
        assert [site.kind for site in sites] == ["relu"]
    with reference.patched(partial(reference.sigmoid, temperature=0.3), 0.3):
        assert reference.distance(plain[1], gradients(model, x)[1]) < 1e-12


class Spelled(nn.Module):
    """A layer between two linear ones, of images [B, 1, 4, 6] whose rows are tokens."""

    def __init__(self, inside):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(24, 3)
        self.gate, self.value = nn.Linear(6, 6), nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.inside = inside

    def forward(self, x):
        x = self.first(x[:, 0])
        return self.last(self.inside(self, x).flatten(1))


def by_hand(net, x):
    weights = (net.gate(x) @ x.transpose(-2, -1) / 3).softmax(dim=-1)
    return F.dropout(weights, 0.5, training=False) @ net.value(x)


def einsum(net, x):
    weights = torch.softmax(torch.einsum("bie,bje->bij", net.gate(x), x), -1)
    return torch.einsum("bij,bje->bie", weights, net.value(x))


def talking_heads(net, x):
    weights = (net.gate(x) @ x.mT / 3).softmax(-1).unsqueeze(1)
    mixed = F.conv2d(weights, torch.full((1, 1, 1, 1), 0.7, dtype=x.dtype))
    return (F.linear(mixed, torch.eye(4, dtype=x.dtype)) @ net.value(x).unsqueeze(1)).squeeze(1)


def grn(net, x):
    norms = net.value(x).norm(p=2, dim=1, keepdim=True)
    return x + x * (norms / (norms.mean(-1, keepdim=True) + 1e-6))


ATTENTION = {
    "F.scaled_dot_product_attention": lambda net, x: F.scaled_dot_product_attention(net.gate(x), x, net.value(x)),
    "nn.MultiheadAttention": lambda net, x: net.attention(x, x, x, need_weights=False)[0],
    "nn.MultiheadAttention with weights": lambda net, x: net.attention(x, x, x)[0],
    "x.softmax @ v": by_hand,
    "einsum": einsum,
    "torch.dropout by name": lambda net, x: (
        torch.dropout((net.gate(x) @ x.mT).softmax(-1), p=0.5, train=False) @ net.value(x)
    ),
    "heads that talk": talking_heads,
    "F.softmax, torch.bmm": lambda net, x: torch.bmm(F.softmax(torch.bmm(x, x.mT), dim=2), net.value(x)),
}
PRODUCTS = {
    "x * sigmoid": lambda net, x: net.value(x) * torch.sigmoid(net.gate(x)),
    "sigmoid * x": lambda net, x: net.gate(x).sigmoid() * net.value(x),
    "x *= gate": lambda net, x: net.value(x).mul_(torch.sigmoid(net.gate(x))),
    "gate of a mean": lambda net, x: x * F.hardsigmoid(net.gate(x.mean(1))).unsqueeze(1).expand_as(x),
    "silu by hand": lambda net, x: x * torch.sigmoid(x),
    "mish by hand": lambda net, x: x * torch.tanh(F.softplus(x)),
    "glu": lambda net, x: F.glu(torch.cat([net.value(x), net.gate(x)], -1)),
    "swiglu": lambda net, x: F.silu(net.gate(x)) * net.value(x),
    "geglu": lambda net, x: net.value(x) * F.gelu(net.gate(x)),
    "reglu": lambda net, x: net.value(x) * F.relu(net.gate(x)),
    "square of a silu": lambda net, x: net.value(F.silu(net.gate(x)) ** 2),
    "torch.square": lambda net, x: torch.square(F.gelu(net.gate(x))),
    "gelu times itself": lambda net, x: (lambda y: y * y)(F.gelu(net.gate(x))),
    "a gate squared": lambda net, x: net.value(x) * torch.sigmoid(net.gate(x)).pow(2),
    "a gate times itself": lambda net, x: net.value(x) * (lambda gate: gate * gate)(torch.sigmoid(net.gate(x))),
    "a gate with a mask": lambda net, x: net.value(x) * (torch.sigmoid(net.gate(x)) * torch.arange(6)),
    "1 + tanh": lambda net, x: net.value(x) * (1 + torch.tanh(net.gate(x))),
    "global response": grn,
    "rms by hand": lambda net, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    "x / std": lambda net, x: x / (x.std(-1, keepdim=True) + 1e-6),
    "1 / std": lambda net, x: x * (1 / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)),
    "softmax over branches": lambda net, x: (torch.stack([x, net.value(x)]) * net.gate(x).softmax(-1)).sum(0),
}
NORMS = {
    "nn.LayerNorm": lambda net, x: F.layer_norm(x, (6,)),
    "torch.layer_norm by name": lambda net, x: torch.layer_norm(x, (6,), cudnn_enable=False),
    "F.rms_norm": lambda net, x: F.rms_norm(x, (6,)),
    "F.group_norm": lambda net, x: F.group_norm(x, 2),
    "F.instance_norm": lambda net, x: F.instance_norm(x),
}
SPELLINGS = {**ATTENTION, **PRODUCTS, **NORMS}


def spelled(name):
    torch.manual_seed(0)
    return Spelled(SPELLINGS[name]).double().eval()


def rows(count=3):
    return torch.randn(count, 1, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_a_site_and_leaves_the_network_affine(name):
    net, x = spelled(name), rows()
    bare = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sg.attach(net, EXACT) as sites:
            assert torch.equal(net(x), bare)
    family = "attention" if name in ATTENTION else "product" if name in PRODUCTS else None
    assert any(site.kind == family if family else site.kind.endswith("norm") for site in sites), sites.report()
    found = read(net, x, 1, EXACT)
    assert reference.distance(found.represented, found.logit) < 1e-10


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_another_temperature_is_found_in_every_spelling(name, temperature):
    """All spellings of one attention have one gradient: that of the fused function at that temperature."""
    net, x = spelled(name), rows()
    rule = sg.Surrogate.semantic(attention=sg.attentions.ValuePath(temperature))
    pulled = sg.pullback(net, x, 0, rule)
    assert reference.distance(pulled, sg.pullback(net, x, 0, EXACT)) > 1e-4
    # refused unless the network, run with its weights at that temperature held, has that gradient
    assert reference.distance(read(net, x, 0, rule).pullback, pulled) < 1e-12


def test_a_hand_written_and_a_fused_attention_have_the_same_gradient():
    def fused(net, x):
        return F.scaled_dot_product_attention(net.gate(x), x, net.value(x), scale=1 / 3)

    for attention in (sg.attentions.ValuePath(), sg.attentions.ValuePath(0.4), sg.attentions.TwoPass(0.4)):
        rule, x = sg.Surrogate.semantic(attention=attention), rows()
        found = []
        for inside in (by_hand, fused):
            torch.manual_seed(0)
            net = Spelled(inside).double().eval()
            with sg.attach(net, rule):
                found.append(gradients(net, x)[1])
        assert reference.distance(*found) < 1e-12


def test_a_gate_of_a_parameter_keeps_its_gradient():
    """A learnt gate that does not depend on the image is a weight, not a selection."""
    net = spelled("x * sigmoid")
    net.inside = lambda net, x: F.layer_norm(net.value(x) * torch.sigmoid(net.gate.bias), (6,))
    x = rows()
    with sg.attach(net, SEMANTIC):
        soft = gradients(net, x)
    with mock.patch.object(F, "layer_norm", reference_blocks.layer_norm):
        slow = gradients(net, x)
    assert reference.distance(soft[2]["gate.bias"], slow[2]["gate.bias"]) < 1e-12
    net.inside = lambda net, x: F.layer_norm(net.value(x) * torch.sigmoid(2 * net.gate.bias), (6,))
    with sg.attach(net, SEMANTIC):
        soft = gradients(net, x)
    with mock.patch.object(F, "layer_norm", reference_blocks.layer_norm):
        slow = gradients(net, x)
    assert reference.distance(soft[2]["gate.bias"], slow[2]["gate.bias"]) < 1e-12


SCALES = {
    "bias": lambda net: net.gate.bias.view(1, 1, -1),
    "1 + bias": lambda net: 1 + net.gate.bias,
    "exp(bias)": lambda net: net.gate.bias.exp(),
    "normed weight": lambda net: net.gate.weight[0] / net.gate.weight[0].norm(),
    "a mask of the data's shape": lambda net: torch.bernoulli(torch.full_like(net.scaled, 0.7)),
    "a drawn mask": lambda net: net.scaled.new_empty(net.scaled.shape).bernoulli_(0.7) / 0.7,
    "whole numbers": lambda net: net.scaled.detach().round().long(),
    "detached": lambda net: net.scaled.detach().exp(),
    "its data": lambda net: net.scaled.data.exp(),
}


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
@pytest.mark.parametrize("name", SCALES)
def test_a_scale_gates_nothing(name, activation):
    """What is made of parameters, and masks made of data, are constants: the activation is the data there."""
    net, x = spelled("x * sigmoid"), rows()

    def scaled(net, x):
        net.scaled = getattr(F, activation)(net.value(x))
        return F.layer_norm(net.scaled * SCALES[name](net), (6,))

    net.inside = scaled
    torch.manual_seed(1)
    with sg.attach(net, SEMANTIC) as sites:
        soft = gradients(net, x)
        assert not any(site.kind == "product" for site in sites)
    torch.manual_seed(1)
    with reference_blocks.patched(), reference.patched(partial(reference.normal_cdf, temperature=0.6), 0.3):
        slow = gradients(net, x)
    assert reference.distance(soft[1], slow[1]) < 1e-12
    for key in ("gate.bias", "gate.weight", "value.weight"):
        if slow[2][key] is not None:
            assert reference.distance(soft[2][key], slow[2][key]) < 1e-12, key


def test_data_that_needs_no_gradient_is_gated_in_training_as_in_a_look():
    """A gate on the image itself, which has no gradient in training and has one in a look."""
    net, x = spelled("x * sigmoid"), rows()
    net.first, net.inside = nn.Identity(), lambda net, x: F.layer_norm(x * net.gate(x).sigmoid(), (6,))
    for image in (x, x.clone().requires_grad_()):
        with sg.attach(net, SEMANTIC) as sites:
            out = net(image)
            assert [site.kind for site in sites] == ["product", "layer_norm"]
            with torch.no_grad():
                assert torch.equal(net(image), out)
        grads = torch.autograd.grad(out.sum(), net.gate.weight, allow_unused=True)[0]
        assert grads is None or not grads.any()  # the gate is a constant


MASK = torch.tensor([1.0, 0.0, 0.5, 0.0, 2.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("activation", [F.silu, F.gelu, F.relu])
def test_what_is_multiplied_by_a_mask_keeps_its_gradient(activation):
    """A mask gates the data; the activation is the data, not the gate of the mask."""
    net, x = spelled("x * sigmoid"), rows()
    net.inside = lambda net, x: net.value(activation(net.gate(x)) * MASK)
    net.value = nn.Linear(6, 6, bias=False).double()
    folded = Spelled(lambda net, x: net.value(activation(net.gate(x)))).double()
    folded.value = nn.Linear(6, 6, bias=False).double()
    folded.load_state_dict(net.state_dict())
    with torch.no_grad():
        folded.value.weight.mul_(MASK)
    assert reference.distance(sg.pullback(net, x, 1, SEMANTIC), sg.pullback(folded, x, 1, SEMANTIC)) < 1e-12
    with sg.attach(net, SEMANTIC, backend="fgi"):
        tangent = torch.randn_like(x)
        moved = torch.func.jvp(net, (x,), (tangent,))[1]
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent))).tangent
        pulled = torch.autograd.functional.vjp(net, x, torch.ones_like(moved))[1]
    expected = float((pulled * tangent).sum())
    assert [float(moved.sum()), float(dual.sum())] == pytest.approx([expected] * 2, rel=1e-10)


def test_the_square_of_a_relu_is_gated_by_its_own_value():
    """StarReLU, s relu(z)^2 + b: forward as it is, backward s relu(z) gate(z)."""
    net, x = spelled("x * sigmoid"), rows()
    net.inside = lambda net, x: 0.9 * F.relu(net.gate(x)) ** 2 - 0.4
    with sg.attach(net, SEMANTIC, strict=True):
        soft = gradients(net, x)
    assert torch.equal(soft[0], net(x))

    def by_the_formula(net, x):
        z = net.gate(x)
        held = z.relu() * reference_blocks.phi(z / 0.6)
        return reference_blocks.injected(0.9 * z * held.detach(), 0.9 * z.relu() ** 2 - 0.4)

    net.inside = by_the_formula
    slow = gradients(net, x)
    assert reference.distance(soft[1], slow[1]) < 1e-12
    net.inside = lambda net, x: F.layer_norm(x, (6,)) + net.value(x) ** 2  # of what gates nothing
    with pytest.raises(sg.SoftgateError, match="not known to be linear"):
        read(net, x, 0, EXACT)


def test_a_norm_by_hand_has_the_gradient_of_the_function():
    x, found = rows(), []
    for inside in (PRODUCTS["rms by hand"], lambda net, x: F.rms_norm(x, (6,), eps=1e-6)):
        torch.manual_seed(0)
        net = Spelled(inside).double().eval()
        with sg.attach(net, SEMANTIC):
            found.append(gradients(net, x)[1])
    assert reference.distance(*found) < 1e-12


def test_a_sigmoid_that_gates_nothing_is_told_of():
    net = spelled("x * sigmoid")
    net.inside = lambda net, x: torch.sigmoid(net.gate(F.layer_norm(x, (6,))))
    with sg.attach(net, SEMANTIC) as sites, pytest.warns(sg.SoftgateWarning, match="sigmoid in"):
        gradients(net, rows())
    assert sites.unaffected == ["sigmoid in (model)"]


def test_nothing_stays_on_the_tensors_that_a_network_returns():
    net = spelled("x * sigmoid")
    net.last = nn.Sigmoid()
    with sg.attach(net, SEMANTIC, strict=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert vars(net(rows())) == {}


def test_training_with_dropped_attention_weights_is_exact_on_the_value_path_and_refused_elsewhere():
    torch.manual_seed(0)
    net, x = Spelled(ATTENTION["nn.MultiheadAttention"]).double().train(), rows()
    net.attention.dropout = 0.5
    with sg.attach(net, EXACT):
        torch.manual_seed(1)
        soft = gradients(net, x)
    torch.manual_seed(1)
    assert torch.equal(soft[0], gradients(net, x)[0])
    assert soft[2]["attention.in_proj_weight"][:12].abs().max() == 0  # queries and keys
    assert soft[2]["attention.in_proj_weight"][12:].any()
    with (
        sg.attach(net, sg.Surrogate.semantic(attention=sg.attentions.TwoPass(0.5))),
        pytest.raises(sg.SoftgateError, match=r"dropped with probability 0\.5"),
    ):
        net(x)


def test_names_choose_blocks_too_and_a_pattern_that_matches_none_is_refused():
    model, x = build("vit"), images()
    some = sg.Surrogate.semantic(sites=sg.Select(names=("*attention*", "*mlp*")))
    bare = gradients(model, x)[1]
    with sg.attach(model, some) as sites:
        chosen = gradients(model, x)[1]
        every = sites.use(SEMANTIC) and gradients(model, x)[1]
        with pytest.raises(sg.SoftgateError, match="no call site matches"):
            sites.use(sg.Surrogate.semantic(sites=sg.Select(names=("*no_such*",))))
    assert reference.distance(chosen, every) > 1e-3
    assert reference.distance(chosen, bare) > 1e-3
    with sg.attach(model, sg.Surrogate.semantic(sites=sg.Select(kinds=("layer_norm",)))):
        norms = gradients(model, x)[1]
    with mock.patch.object(F, "layer_norm", reference_blocks.layer_norm):
        assert reference.distance(norms, gradients(model, x)[1]) < 1e-12


def test_depth_is_refused_where_blocks_are_governed():
    with pytest.raises(sg.SoftgateError, match="depth counts activations and poolings"):
        sg.Surrogate.semantic(sites=sg.Select(depth=(0.0, 0.5)))


@pytest.mark.parametrize("option", ["norm", "product"])
def test_an_unknown_choice_is_refused_by_name(option):
    with pytest.raises(sg.SoftgateError, match=f"surrogate.{option}=held"):
        sg.Surrogate(**{option: "held"})


def test_a_mix_has_no_constants_to_hold():
    with pytest.raises(sg.SoftgateError, match=r"mix=0.5.*mix=1 only"):
        sg.representation(build("vit"), images(), 0, sg.Surrogate.semantic(mix=0.5))
    with pytest.raises(sg.SoftgateError, match="only ValuePath holds the weights"):
        sg.representation(build("vit"), images(), 0, sg.Surrogate.semantic(attention=sg.attentions.TwoPass()))


def test_the_rule_goes_through_plain_data_and_a_schedule_warms_every_part():
    rule = sg.Surrogate.semantic(schedule=sg.Schedule(temperature=sg.Ramp(3.0, 1.0, 5)))
    assert sg.Surrogate.from_dict(rule.to_dict()) == rule
    first = rule.at(0)
    assert first.activation == sg.activations.SelfGate(3.0, 1.6 * 3, 3.0)
    assert first.attention == sg.attentions.ValuePath(3.0)
    assert "activation" not in sg.Surrogate().to_dict()


@pytest.mark.parametrize(
    "name", ["convnext", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "swin", "efficientnet"))]
)
def test_compiled_networks_have_the_gradients_of_eager_ones(name):
    torch._dynamo.reset()
    model, x = build(name), images()
    with sg.attach(model, SEMANTIC):
        eager = gradients(model, x)
        compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), x)
    assert torch.equal(compiled[0], eager[0])
    assert reference.distance(compiled[1], eager[1]) < 1e-12
