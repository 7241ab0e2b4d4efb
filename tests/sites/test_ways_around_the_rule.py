"""Ways to run an attached network hard: methods beside forward, exports, replaced forwards. Covered, or refused."""

import copy
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import softgate as sg
from site_networks import out_of_sight

RULE = sg.Surrogate(gate=sg.gates.Sigmoid(0.5))
ATEN = torch.ops.aten


class Encoder(nn.Module):
    """An encoder with methods beside forward, which call ReLUs as modules and as functions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU()

    def encode(self, x):
        return F.relu(self.second(self.relu(self.first(x))))

    def forward_features(self, x):
        return self.encode(x)

    def count(self):
        return sum(p.numel() for p in self.parameters())

    def forward(self, x):
        return self.head(self.encode(x))


@pytest.fixture
def encoder():
    return Encoder().double()


def vectors():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def slope(function):
    x = vectors()
    return torch.autograd.grad(function(x).sum(), x)[0]


def soft_slope(net):
    """The gradient of the features under the rule, from a model whose forward is `encode`."""
    whole = copy.deepcopy(net)
    whole.head = nn.Identity()
    with sg.attach(whole, RULE):
        return slope(whole)


def test_a_method_called_forward_something_is_governed_like_forward(encoder):
    want = soft_slope(encoder)
    with sg.attach(encoder, RULE):
        assert torch.equal(slope(encoder.forward_features), want)
    assert "forward_features" not in vars(encoder)
    assert encoder.count() > 0


def test_a_method_named_to_attach_is_governed(encoder):
    want = soft_slope(encoder)
    with sg.attach(encoder, RULE, methods=["encode"]) as sites:
        assert torch.equal(slope(encoder.encode), want)
        assert torch.equal(slope(lambda x: encoder.head(encoder.encode(x))), slope(encoder))
        sites.use(None)
        assert not torch.equal(slope(encoder.encode), want)


def test_another_method_that_calls_activations_itself_is_warned_of_once_and_refused_where_strict(encoder):
    with sg.attach(encoder, RULE):
        with pytest.warns(sg.SoftgateWarning, match=r"Encoder\.encode calls relu outside .*methods=\['encode'\]"):
            encoder.encode(vectors())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder.encode(vectors())
            encoder(vectors())
            encoder.count()
    with sg.attach(encoder, RULE, strict=True), pytest.raises(sg.UnreachableSites, match="encode calls relu"):
        encoder.encode(vectors())
    with sg.attach(encoder, None), warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(vectors())


def test_a_method_of_a_part_and_modules_within_a_method_are_governed(encoder):
    whole = nn.Sequential(encoder, nn.Linear(3, 2)).double()
    want = soft_slope(encoder)
    with sg.attach(whole, RULE, methods=("encode",)):
        assert torch.equal(slope(whole[0].encode), want)


def test_methods_that_no_module_has_are_refused(encoder):
    with pytest.raises(
        sg.SoftgateError, match=r"no module has a method 'embed' of its own; there are: count, encode, forward_feat"
    ):
        sg.attach(encoder, RULE, methods=["embed"])


def test_methods_follow_copies_and_pickles(encoder):
    want = soft_slope(encoder)
    sg.attach(encoder, RULE, methods=["encode"])
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        with torch.no_grad():
            twin.first.weight.zero_()
        assert float(slope(twin.encode).abs().sum()) == 0
        sg.detach(twin)
        assert not {"encode", "count"} & set(vars(twin))
    assert torch.equal(slope(encoder.encode), want)


def test_an_export_or_a_script_trace_of_a_model_under_a_rule_is_refused(encoder):
    args = (vectors().detach(),)
    with sg.attach(encoder, RULE) as sites:
        with pytest.raises(sg.SoftgateError, match="no backward rule; detach first"):
            torch.export.export(encoder, args, strict=False)
        with pytest.raises(sg.SoftgateError, match="no backward rule; detach first"):
            torch.jit.trace(encoder, args, check_trace=False)
        sites.use(None)
        program = torch.export.export(encoder, args, strict=False)
        assert torch.equal(program.module()(*args), encoder(*args))


def test_a_trace_of_an_attached_model_refuses_to_run(encoder):
    flat = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    with sg.attach(encoder, RULE), pytest.raises(sg.SoftgateError, match=r"a torch\.fx trace has no rule"):
        fx.symbolic_trace(encoder)
    with sg.attach(flat.double(), RULE):
        traced = fx.symbolic_trace(flat)
        with pytest.raises(sg.SoftgateError, match=r"a torch\.fx trace of it"):
            traced(vectors())
    traced = fx.symbolic_trace(encoder)
    with sg.attach(traced, RULE):
        found = slope(traced)
    with sg.attach(encoder, RULE):
        assert torch.equal(found, slope(encoder))


def test_make_fx_over_forward_and_gradient_carries_the_rule(encoder):
    with sg.attach(encoder, RULE):
        x = vectors().detach()

        def both(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(encoder(x).sum(), x)[0]

        assert torch.allclose(make_fx(both)(x)(x), both(x), rtol=1e-12, atol=0)


def test_a_forward_put_in_after_attach_may_wrap_the_attached_one_and_not_leave_it_out(encoder):
    with sg.attach(encoder, RULE):
        attached, want = encoder.forward, slope(encoder)
        encoder.forward = lambda x: attached(x) * 1
        assert torch.equal(slope(encoder), want)
        encoder.first(vectors())  # a part by itself
        encoder.forward = lambda x: Encoder.forward(encoder, x)
        with pytest.raises(sg.SoftgateError, match="forward was replaced after attach"):
            encoder(vectors())


def test_scripting_an_attached_model_advises_what_works(encoder):
    with pytest.raises(sg.SoftgateError, match="attach to the module it was made of"):
        sg.attach(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), RULE)


class Twice(nn.Module):
    """A network with another branch in training, one that no rule reaches."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        out = self.relu(self.first(x))
        if float(out.detach().sum()) > 1e9:  # no symbolic trace
            return out
        return out_of_sight(F.relu, self.last(out)) if self.training else self.last(out)


def test_every_combination_of_modes_is_audited_for_itself():
    net = Twice().double().eval()
    with sg.attach(net, RULE):
        slope(net)
        net.train()
        with pytest.raises(sg.UnreachableSites):
            net(vectors())


def test_every_choice_of_trainable_parameters_is_audited_for_itself():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.relu, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)

        def forward(self, x):
            stem = self.stem(x)
            stem = out_of_sight(F.relu, stem) if float(stem.detach().sum()) < 1e9 else stem  # no symbolic trace
            return self.last(self.relu(self.first(stem)))

    net, x = Net().double(), vectors().detach()
    net.stem.requires_grad_(False)
    with sg.attach(net, RULE):
        net(x)  # no gradient flows through what is out of sight
        net.stem.requires_grad_(True)
        with pytest.raises(sg.UnreachableSites, match="outside of Python"):
            net(x)


def test_a_pool_that_is_spared_hides_no_relu():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x):
            out = self.pool(self.relu(self.conv(x)))
            return out_of_sight(F.relu, out) if float(out.detach().sum()) < 1e9 else out  # no symbolic trace

    with sg.attach(Net(), sg.Surrogate(sites=sg.Select(kinds=("relu",)))) as sites:
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        with pytest.raises(sg.UnreachableSites):
            sites.model(x)


@pytest.mark.parametrize(
    ("spared", "chosen"),
    [
        (lambda z: z.clamp(min=0), sg.Select(exclude=("spared.*",))),
        (lambda z: ATEN.gelu(z), sg.Select(kinds=("relu",))),
    ],
    ids=["clamp", "operator"],
)
def test_a_spared_call_that_the_graph_does_not_show_hides_no_relu(spared, chosen):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.spared = nn.Linear(4, 6), nn.ReLU(), Spared()

        def forward(self, x):
            out = self.spared(self.relu(self.first(x)))
            return out_of_sight(F.relu, out - 0.1) if float(out.detach().sum()) < 1e9 else out  # no symbolic trace

    class Spared(nn.Module):
        def forward(self, x):
            return spared(x)

    net = Net().double()
    with sg.attach(net, sg.Surrogate(sites=chosen)), pytest.raises(sg.UnreachableSites, match="outside of Python"):
        net(vectors())


@dataclass
class Output:
    """What some models return."""

    logits: torch.Tensor
    more: list


class Wrapped(nn.Module):
    """Returns its logits in a dataclass, and takes its images in one."""

    def __init__(self, hidden=False):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        self.hidden = hidden

    def block(self, x):
        return self.last(self.relu(x))

    def forward(self, x):
        if isinstance(x, Output):
            x = x.logits
        out = checkpoint(self.last, self.relu(self.first(x)), use_reentrant=False) if not self.hidden else None
        if self.hidden and float(x.detach().sum()) < 1e9:  # no symbolic trace
            out = out_of_sight(F.relu, self.block(self.first(x)))
        return Output(out, [])


def test_outputs_and_inputs_in_dataclasses_are_looked_through():
    x = vectors()
    with sg.attach(Wrapped(hidden=True).double(), RULE) as sites, pytest.raises(sg.UnreachableSites):
        sites.model(x)
    before = out_of_sight(F.relu, x)  # hard, but not the model's
    net = Wrapped().double()
    with sg.attach(net, RULE):
        net(Output(before, []))


def test_a_checkpointed_model_that_returns_a_dataclass_does_not_mix_rules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x):
            return Output(checkpoint(self.part, x, use_reentrant=False), [])

    net = Net().double()
    sites = sg.attach(net, RULE)
    out = net(vectors())
    sites.use(None)
    with pytest.raises(sg.SoftgateError, match="its rule was changed"):
        out.logits.sum().backward()
