"""Under torch.compile an attached model has the eager gradients, or is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from mode_networks import (
    OTHER,
    RULE,
    Applied,
    CheckpointedBody,
    Net,
    assert_close,
    gradients,
    images,
    soft_gradients,
    vectors,
)
from random_blocks import FUNCTIONS, INPLACE, MODULES

# -- torch.compile ------------------------------------------------------------------------------------


class Kinds(nn.Module):
    """The piecewise linear activations, in-place and not, and an adaptive pooling."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.tail = nn.Sequential(nn.ReLU6(inplace=True), nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.Hardtanh(-0.5, 0.5))

    def forward(self, x):
        x = self.tail(self.conv(x)) * 2
        return F.adaptive_max_pool2d((x - 0.1).relu_(), 2).flatten(1)


def small():
    """One pooling only: with symbolic sizes, each step of each window is a graph of its own to reason about."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 1))


def check_compiled(model, rule, dynamic, shapes):
    torch._dynamo.reset()
    with sg.attach(model, rule):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for shape in shapes:
            assert_close(gradients(compiled, images(*shape)), gradients(model, images(*shape)))


@pytest.mark.parametrize(("kind", "rule"), [(Net, RULE), (Kinds, RULE), (small, OTHER)], ids=["net", "kinds", "other"])
def test_a_compiled_model_has_the_eager_gradients(kind, rule):
    check_compiled(kind().double().train(), rule, False, [(4, 3, 8, 8)])


@pytest.mark.slow
def test_a_compiled_model_of_dynamic_shapes_has_the_eager_gradients_at_every_size():
    check_compiled(small().double(), RULE, True, [(4, 3, 8, 8), (3, 3, 13, 10)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Net, Kinds])
@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_larger_compiled_models_have_the_eager_gradients_at_every_size(kind, rule, dynamic):
    check_compiled(kind().double().train(), rule, dynamic, [(4, 3, 8, 8), (3, 3, 12, 10), (2, 3, 6, 14)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_compiled_model_under_autocast_has_the_eager_gradients(dtype):
    torch._dynamo.reset()
    model, x = small(), images(dtype=torch.float32)
    with sg.attach(model, RULE), torch.autocast("cpu", dtype):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        eager = gradients(model, x, lambda out: out.float().square().sum())
        found = gradients(compiled, x, lambda out: out.float().square().sum())
    assert_close(found, eager, within=torch.finfo(dtype).eps / 8)  # a rounding here and there


@pytest.mark.slow
def test_compiled_autograd_has_the_eager_gradients(residual):
    torch._dynamo.reset()
    expected = soft_gradients(residual, images())
    with sg.attach(residual, RULE), torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        assert_close(gradients(residual, images()), expected)


# -- silently hard, or wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("function", [F.relu_, F.leaky_relu_, lambda z: F.hardtanh_(z, -0.2, 0.2)])
def test_an_inplace_function_that_compile_hides_is_refused_there(function):
    torch._dynamo.reset()
    model = Applied(lambda z: function(z * 1))
    with sg.attach(model, RULE):
        gradients(model, vectors())
        with pytest.raises(sg.UnreachableSites, match=r"torch\.compile hides"):
            gradients(torch.compile(model, backend="aot_eager"), vectors())


HIDDEN = {
    "torch.maximum(z, zeros)": FUNCTIONS["torch.maximum(z, zeros)"],
    "z.maximum(zero)": FUNCTIONS["z.maximum(zero)"],
    "torch.max(zeros, z)": FUNCTIONS["torch.max(zeros, z)"],
    "F.threshold(z, 0, 0, True)": INPLACE["F.threshold(z, 0, 0, True)"],
    "nn.Threshold": nn.Threshold(0, 0, inplace=True),
    "F.threshold_": lambda z: F.threshold_(z, 0, 0),
    "torch.threshold_": lambda z: torch.threshold_(z, 0, 0),
    "torch.clip_": lambda z: torch.clip_(z, 0),
    "torch.clamp_": lambda z: torch.clamp_(z, 0),
}


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_relu_that_no_one_could_tell_there_is_refused(name, traceable):
    torch._dynamo.reset()
    model = Applied(lambda z: HIDDEN[name](z * 1) if traceable or float(z.detach().sum()) < 1e9 else z)
    with sg.attach(model, RULE):
        gradients(model, vectors())
        with pytest.raises(sg.UnreachableSites, match=r"torch\.compile hides"):
            gradients(torch.compile(model, backend="aot_eager"), vectors())


def soft_when_compiled(function):
    torch._dynamo.reset()
    model = Applied(lambda z: function(z * 1))
    with sg.attach(model, RULE):
        expected = gradients(model, vectors())[1]
        found = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), vectors())[1]
    assert reference.distance(found, expected) <= 1e-12


@pytest.mark.parametrize("name", ["z.clamp(min=0)", "z.clamp_(min=0)", "torch.clip(z, min=0.0)"])
def test_a_clamp_is_compiled_in_one_piece(name):
    soft_when_compiled({**FUNCTIONS, **INPLACE}[name])


@pytest.mark.slow
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", [*FUNCTIONS, *INPLACE, *MODULES])
def test_every_spelling_is_soft_when_compiled_or_refused(name, inplace):
    function = {**FUNCTIONS, **INPLACE}.get(name) or MODULES[name](inplace=inplace)
    try:
        soft_when_compiled(function)
    except torch._dynamo.exc.Unsupported as refused:
        assert "refuse_compiling" in str(refused)  # noqa: PT017  (either is fine)


@pytest.mark.parametrize("function", [F.gelu, torch.ops.aten.clamp_min], ids=["gelu", "operator"])
def test_a_site_that_no_rule_covers_is_refused_before_anything_is_compiled(function):
    torch._dynamo.reset()
    model = Applied(lambda z: function(F.relu(z), *([0] if function is not F.gelu else [])))
    with sg.attach(model, None) as sites:
        gradients(model, vectors())
        sites.use(RULE)
        with pytest.raises(sg.UnreachableSites, match="out of reach"):
            gradients(torch.compile(model, backend="aot_eager"), vectors())


def test_an_operator_out_of_reach_is_refused_before_anything_is_compiled():
    model = Applied(lambda z: F.relu(torch.ops.aten.relu(z) - 0.1))
    with pytest.raises(sg.UnreachableSites, match=r"aten\.relu"):
        sg.attach(model, RULE)


def test_a_model_that_cannot_be_traced_is_compiled_only_once_its_call_sites_are_known():
    torch._dynamo.reset()
    model = Applied(lambda z: F.relu(z) if float(z.detach().sum()) < 1e9 else z)
    with sg.attach(model, RULE):
        with pytest.raises(sg.SoftgateError, match="run one forward pass"):
            gradients(torch.compile(model, backend="aot_eager"), vectors())
        expected = gradients(model, vectors())[1]
        torch._dynamo.reset()
        assert reference.distance(gradients(torch.compile(model, backend="aot_eager"), vectors())[1], expected) <= 1e-12


# -- errors where there should be none ----------------------------------------------------------------


@pytest.mark.parametrize("rule", [sg.Surrogate(gain="unit_rms"), sg.Surrogate(mix=0.5, gain="unit_rms")], ids=repr)
def test_unit_rms_gain_works_under_compile(rule):
    torch._dynamo.reset()
    model = Net().double().eval()
    with sg.attach(model, rule):
        expected = gradients(model, images())
        found = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), images())
    assert reference.distance(found[1], expected[1]) <= 1e-12


@pytest.mark.parametrize("pooling", [True, False])
def test_a_compiled_model_that_checkpoints_its_parts_has_the_eager_gradients(pooling):
    torch._dynamo.reset()
    model = CheckpointedBody(False, pooling)
    with sg.attach(model, RULE):
        expected = gradients(model, images())
        found = gradients(torch.compile(model, backend="aot_eager"), images())
    assert reference.distance(found[1], expected[1]) <= 1e-12
