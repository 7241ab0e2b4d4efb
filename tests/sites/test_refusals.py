"""What cannot be gated is refused by name, and the model stays as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from site_networks import (
    RULE,
    SPELLINGS,
    Branching,
    Net,
    Spelled,
    assert_close,
    footprint,
    gradients,
    images,
    soft_gradients,
    vectors,
)


@torch.jit.script
def hidden_relu(x):
    return torch.relu(x) * 2


class Hidden(nn.Module):
    """One ReLU in sight, and one inside of a scripted function."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.relu = nn.Linear(6, 8).double(), nn.Linear(8, 4).double(), nn.ReLU()

    def forward(self, x):
        return self.last(self.relu(hidden_relu(self.first(x))))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.GELU(), ["1 (gelu)"]),
        (nn.SiLU(), ["1 (silu)"]),
        (nn.Hardshrink(), ["1 (hardshrink)"]),
        (nn.ELU(inplace=True), ["1 (elu)"]),
        (nn.Hardswish(), ["1 (hardswish)"]),
        (nn.MaxPool1d(2), ["1 (max_pool1d)"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_activations_without_a_rule_are_refused_by_name_when_attaching(layer, said):
    class First(nn.Module):
        def forward(self, x):
            return x[0] if isinstance(x, tuple) else x

    model = nn.Sequential(nn.ReLU(), layer, First())
    before = footprint(model)
    with pytest.raises(sg.UnreachableSites) as error:
        sg.attach(model, RULE)
    for words in ["Sequential", *said]:
        assert words in str(error.value)
    assert footprint(model) == before


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (torch.selu, "selu"),
        (lambda x: F.max_pool1d(x[None], 2), "max_pool1d"),
    ],
)
@pytest.mark.parametrize("traceable", [True, False])
def test_functions_without_a_rule_are_refused_by_name_at_once_or_at_the_first_forward(call, name, traceable):
    class Uses(nn.Module):
        def forward(self, x):
            x = F.relu(x)
            if not traceable:
                x = x if float(x.detach().sum()) > -1 else -x
            return call(x)

    model = Uses()
    if traceable:
        with pytest.raises(sg.UnreachableSites) as error:
            sg.attach(model, RULE)
    else:
        with sg.attach(model, RULE), pytest.raises(sg.UnreachableSites) as error:
            model(torch.rand(4, 4))
    assert f"(model).{name}" in str(error.value)


def test_an_activation_without_a_rule_is_tolerated_without_one_and_refused_once_a_rule_is_used():
    model = nn.Sequential(nn.ReLU(), nn.GELU())
    with sg.attach(model, None) as sites:
        model(vectors())
        assert [site.covered for site in sites.table()] == [True, True]  # by another rule than this one
        sites.use(RULE)
        with pytest.raises(sg.UnreachableSites, match="gelu"):
            model(vectors())


@pytest.mark.parametrize("model", [nn.Linear(6, 2), nn.Sequential(nn.Linear(6, 2), nn.Tanh()), nn.Identity()])
def test_a_model_without_call_sites_takes_no_rule_but_can_be_attached_to_none(model):
    before = footprint(model)
    with pytest.raises(sg.NoCallSites, match=type(model).__name__):
        sg.attach(model, RULE)
    assert footprint(model) == before
    with sg.attach(model, None) as sites:
        model(torch.ones(2, 6))
        sites.use(RULE)
        with pytest.raises(sg.NoCallSites):
            model(torch.ones(2, 6))
    assert footprint(model) == before


@pytest.mark.parametrize("wrong", [None, F.relu, {"relu": 1}])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(sg.SoftgateError, match=r"torch\.nn\.Module"):
        sg.attach(wrong, RULE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Branching selects:softgate.SoftgateWarning")
@pytest.mark.parametrize("traceable", [True, False])
def test_a_scripted_model_or_part_is_refused_and_left_as_it_was(traceable):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double())
    with pytest.raises(sg.SoftgateError, match="scripted"):
        sg.attach(scripted, RULE)
    model = Spelled(lambda model, z: model.part(F.relu(z))) if traceable else Branching(scripted)
    model.part = scripted
    expected = gradients(model, vectors())
    names = [sorted(module.__dict__) for module in model.modules()]
    for look in (sg.attach, lambda model, rule: sg.pullback(model, torch.zeros(1, 1, 1, 6).double(), 0, rule)):
        with pytest.raises(sg.SoftgateError) as error:
            look(model, RULE)
        if look is sg.attach:
            assert "part" in str(error.value) or "tail" in str(error.value)
        assert [sorted(module.__dict__) for module in model.modules()] == names
    assert_close(gradients(model, vectors()), expected)


def test_a_compiled_model_is_refused_and_left_as_it_was(net):
    compiled = torch.compile(net, backend="eager")
    before = footprint(net)
    with pytest.raises(sg.SoftgateError, match="compiled already"):
        sg.attach(compiled, RULE)
    assert footprint(net) == before
    net.compile(backend="eager")
    before = footprint(net)
    with pytest.raises(sg.SoftgateError, match="compiled already"):
        sg.attach(net, RULE)
    assert footprint(net) == before


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_part_is_refused_or_gated_and_counted_but_never_hard(how):
    torch._dynamo.reset()
    part = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double()
    model = Spelled(lambda model, z: model.part(F.relu(z)))
    model.part = part
    x = vectors()
    expected, bare = soft_gradients(model, x), gradients(model, x)
    if how == "wrapped":
        model.part = torch.compile(part, backend="aot_eager")
    else:
        part.compile(backend="aot_eager")
    assert_close(gradients(model, x), bare)  # compiled for hard gates by now
    try:
        sites = sg.attach(model, RULE)
    except sg.SoftgateError as error:
        assert "compiled" in str(error)  # noqa: PT017  (refusing is one of two good outcomes)
    else:
        assert_close(gradients(model, x), expected)
        assert sites.count() == 2
        sites.detach()
    assert_close(gradients(model, x), bare)


def test_a_second_attach_to_a_model_its_part_or_its_whole_is_refused_and_changes_nothing(net):
    whole = nn.Sequential(net)
    sites = sg.attach(net, RULE)
    before, expected = footprint(whole), soft_gradients(Net().double().eval(), images())
    for model, where in ((net, "it is attached"), (net.stem, "it is attached"), (whole, "'0'")):
        with pytest.raises(sg.SoftgateError, match="attached already") as error:
            sg.attach(model, sg.Surrogate(mix=0.5))
        assert where in str(error.value)
    assert footprint(whole) == before
    assert sites.rule is RULE
    assert_close(gradients(net, images()), expected)
    sites.detach()
    with sg.attach(whole, RULE):
        assert_close(gradients(whole, images()), expected)


@pytest.mark.parametrize("grad_first", [True, False])
@pytest.mark.parametrize("rule", [RULE, sg.Surrogate(pool=sg.pools.Hard()), sg.Surrogate(mix=0.5)], ids=repr)
def test_a_relu_hidden_in_a_scripted_function_is_refused_at_the_first_forward_with_grad(rule, grad_first):
    model = Hidden()
    with sg.attach(model, rule):
        if not grad_first:
            with torch.no_grad():
                model(vectors())
        with pytest.raises(sg.UnreachableSites, match="outside of Python"):
            model(vectors())


@pytest.mark.parametrize("first", [sg.Surrogate(mix=0.0), sg.Surrogate(sg.gates.Hard(), sg.pools.Hard())], ids=repr)
def test_a_hidden_relu_is_refused_also_when_a_harder_rule_ran_first(first):
    model = Hidden()
    with sg.attach(model, first) as sites:
        model(vectors())
        sites.use(RULE)
        with pytest.raises(sg.UnreachableSites, match="outside of Python"):
            model(vectors())


def test_a_hidden_relu_is_refused_also_in_every_later_forward():
    model = Hidden()
    with sg.attach(model, RULE):
        for _ in range(3):
            with pytest.raises(sg.UnreachableSites):
                model(vectors())


def test_hard_gates_outside_of_the_model_are_nobodys_fault():
    model, encoder = Spelled(SPELLINGS["F.relu(z)"]), nn.Linear(6, 6).double()
    with sg.attach(model, RULE):
        F.relu(model(F.relu(encoder(vectors())))).sum().backward()
    assert encoder.weight.grad.any()


def test_a_branch_with_an_uncovered_activation_is_refused_under_compile_too():
    class Branch(nn.Module):
        def forward(self, x):
            x = F.relu(x)
            return F.gelu(x) if x.shape[0] > 1 else x

    model = Branch()
    with sg.attach(model, RULE):
        model(torch.randn(1, 6, requires_grad=True))
        with pytest.raises(Exception, match=r"gelu|Unsupported|UnreachableSites"):
            torch.compile(model, fullgraph=True, backend="aot_eager")(
                torch.randn(3, 6, requires_grad=True)
            ).sum().backward()
