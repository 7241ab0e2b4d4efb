"""The pullback: which gradient it is, and that a look leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from classifier import CLASSES, RULE, assert_same, everything


class Raising(nn.Module):
    """Fails, after a gated call, where `armed`."""

    def __init__(self, model):
        super().__init__()
        self.model, self.armed = model, True

    def forward(self, x):
        out = self.model(x)
        if self.armed:
            raise KeyError("armed")
        return out


def plain_gradient(model, x, target):
    x = x.detach().clone().requires_grad_()
    logits = model(x)
    return torch.autograd.grad(logits.gather(1, torch.as_tensor(target).expand(len(x))[:, None]).sum(), x)[0]


def soft_gradient(model, x, target):
    with reference.patched(reference.sigmoid, 0.3):
        return plain_gradient(model, x, target)


@pytest.mark.parametrize("target", [0, 4, torch.tensor(2), torch.tensor([0, 4, 2, 2])])
def test_pullback_without_a_rule_is_the_plain_gradient(model, x, target):
    assert torch.equal(sg.pullback(model, x, target), plain_gradient(model, x, target))


@pytest.mark.parametrize("target", [3, torch.tensor([0, 4, 2, 2])])
@pytest.mark.parametrize("attached", [False, True])
def test_pullback_under_a_rule_is_the_references_input_gradient(model, x, target, attached):
    expected = soft_gradient(model, x, target)
    if attached:
        sg.attach(model, sg.Surrogate(gate=sg.gates.NormalCDF(2.0)))  # plays no part
    assert reference.distance(sg.pullback(model, x, target, RULE), expected) <= 1e-12
    assert reference.distance(sg.pullback(model, x, target), expected) > 1e-2


@pytest.mark.parametrize("rule", [None, RULE])
def test_several_targets_at_once_equal_one_at_a_time(model, x, rule):
    listed = [4, 0, 2]
    found = sg.pullback(model, x, listed, rule)
    assert found.shape == (4, 3, *x.shape[1:])
    for k, target in enumerate(listed):
        torch.testing.assert_close(found[:, k], sg.pullback(model, x, target, rule), rtol=1e-13, atol=1e-15)
    each = torch.tensor([[0, 1], [2, 3], [4, 0], [1, 1]])
    found = sg.pullback(model, x, each, rule)
    assert found.shape == (4, 2, *x.shape[1:])
    for k in range(2):
        torch.testing.assert_close(found[:, k], sg.pullback(model, x, each[:, k], rule), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (1, (4,)),
        (torch.tensor(1), (4,)),
        (torch.tensor([1, 2, 3, 4]), (4,)),
        ([1], (4, 1)),
        ([1, 2, 3, 4], (4, 4)),
        ((1, 2), (4, 2)),
        (torch.tensor([[1], [2], [3], [4]]), (4, 1)),
        ([[1, 2], [2, 3], [3, 4], [4, 0]], (4, 2)),
        (torch.tensor([1, 2, 3, 4], dtype=torch.int32), (4,)),
    ],
)
def test_shape_follows_the_target(model, x, target, shape):
    assert sg.pullback(model, x, target, RULE).shape == (*shape, 3, 10, 10)
    result = sg.ascend(model, x, target, RULE, steps=2, step_size=0.1, radius=1.0)
    assert result.image.shape == result.difference.shape == (*shape, 3, 10, 10)
    assert result.logits.shape == (*shape, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pullback_is_detached_and_in_the_dtype_of_the_images(model, x, dtype):
    found = sg.pullback(model.to(dtype), x.to(dtype).requires_grad_(), [0, 1], RULE)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert found.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("rule", [None, RULE])
@pytest.mark.parametrize("target", [3, [0, 1], torch.tensor([0, 1, 2, 3])])
def test_pullback_works_where_gradients_are_off(model, x, mode, rule, target):
    expected = sg.pullback(model, x, target, rule)
    with mode():
        found = sg.pullback(model, x.clone(), target, rule)  # under inference_mode the images are inference tensors
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_ascend_works_where_gradients_are_off(model, x, mode):
    expected = sg.ascend(model, x, [1, 2], RULE, steps=2, step_size=0.5)
    with mode():
        found = sg.ascend(model, x.clone(), [1, 2], RULE, steps=2, step_size=0.5)
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.logits, expected.logits)


def test_pullback_uses_running_statistics_so_that_images_do_not_read_each_other(model, x):
    alone = torch.cat([sg.pullback(model, x[i : i + 1], 1, RULE) for i in range(4)])
    model.train()
    torch.testing.assert_close(sg.pullback(model, x, 1, RULE), alone, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("rule", [None, RULE])
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_look_leaves_model_images_rule_and_random_state_as_they_were(model, x, training, attached, rule, look):
    model.train(training)
    model.body[1].eval()  # a mixture of modes, as in fine-tuning
    sites = sg.attach(model, sg.Surrogate(mix=0.5)) if attached else None
    model(x).sum().backward()
    model.conv.weight.requires_grad_(False)
    x.grad = torch.ones_like(x)
    before, image, rule_before = everything(model), x.clone(), sites.rule if sites else None
    look(model, x, [1, 2], rule)
    assert_same(everything(model), before)
    assert torch.equal(x, image)
    assert torch.equal(x.grad, torch.ones_like(x))
    assert not x.requires_grad
    if sites:
        assert sites.rule is rule_before
        assert sites.attached


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_look_that_fails_leaves_everything_as_it_was(model, x, attached, look):
    wrapped = Raising(model).train()
    rule = sg.Surrogate(mix=0.5)
    sites = sg.attach(wrapped, rule) if attached else None
    before = everything(wrapped)
    with pytest.raises(KeyError, match="armed"):
        look(wrapped, x, 1, RULE)
    assert_same(everything(wrapped), before)
    with pytest.raises(sg.SoftgateError, match="shape"):
        look(wrapped, x[0], 1, RULE)
    assert_same(everything(wrapped), before)
    wrapped.armed = False
    with pytest.raises(sg.SoftgateError, match=str(CLASSES + 90)):
        look(wrapped, x, CLASSES + 90, RULE)
    assert_same(everything(wrapped), before)
    if sites:
        assert sites.rule is rule


@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_look_at_a_model_with_randomness_in_its_forward_leaves_the_random_state(model, x, look):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(F.dropout(x, 0.2, training=True))

    before = torch.get_rng_state()
    look(Noisy(), x, 1, RULE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiled_model_is_read_out_without_compiling_and_stays_compiled(model, x):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    expected = soft_gradient(model, x, 1)
    sg.attach(model, RULE)
    model.compile(backend=backend)
    model(x)
    count = len(compilations)
    assert count > 0
    assert reference.distance(sg.pullback(model, x, 1, RULE), expected) <= 1e-12
    assert torch.equal(sg.pullback(model, x[:3], 1), sg.pullback(model, x, 1)[:3])
    assert len(compilations) == count
    torch.compile(lambda z: z * 2, backend=backend)(x)
    assert len(compilations) == count + 1


def test_parts_of_an_attached_model_can_be_read_out(model, x):
    whole = nn.Sequential(model, nn.Linear(CLASSES, CLASSES).double()).eval()
    expected = soft_gradient(model, x, 1)
    with sg.attach(whole, None) as sites:
        assert reference.distance(sg.pullback(model, x, 1, RULE), expected) <= 1e-12
        assert sites.rule is None
        assert sites.attached


def test_a_linear_model_has_a_gradient_but_no_pullback_under_a_rule(x):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(300, CLASSES)).double()
    expected = linear[1].weight[2].view(1, 3, 10, 10).expand_as(x)
    torch.testing.assert_close(sg.pullback(linear, x, 2), expected.detach())
    before = everything(linear)
    with pytest.raises(sg.NoCallSites):
        sg.pullback(linear, x, 2, RULE)
    assert_same(everything(linear), before)


@pytest.mark.parametrize("traceable", [True, False])
def test_a_model_whose_relus_run_in_training_alone_has_no_pullback_in_eval_mode_and_is_told_so(x, traceable):
    class TrainOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(300, CLASSES)

        def forward(self, x):
            out = self.head(x.flatten(1))
            if not traceable and float(out.detach().sum()) > 1e9:
                return out
            return nn.functional.relu(out) if self.training else out

    net = TrainOnly().double().train()
    said = "no call site to attach a rule to in eval mode.* rule=None gives its gradient"
    for look in (sg.pullback, sg.representation):
        with pytest.raises(sg.NoCallSites, match=said):
            look(net, x, 2, RULE)
    with pytest.raises(sg.NoCallSites, match="in eval mode"):
        sg.paths.record(net, x)
    expected = net.head.weight[2].view(1, 3, 10, 10).expand_as(x)
    torch.testing.assert_close(sg.pullback(net, x, 2), expected.detach())
    with sg.attach(net, RULE):  # it has call sites, as is known here: in eval mode the gradient is all there is
        net(x)
        torch.testing.assert_close(sg.pullback(net, x, 2, RULE), expected.detach())


def test_a_model_that_returns_its_logits_in_a_named_field_is_understood(model, x):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return Output(self.model(x))

    assert torch.equal(sg.pullback(Named(), x, 1), sg.pullback(model, x, 1))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (CLASSES, "target=5"),
        (-1, "target=-1"),
        ([0, CLASSES], "target=5"),
        (torch.tensor([0, 1, -3, 2]), "target=-3"),
        (torch.tensor([0, 1, 2]), "3"),
        (torch.tensor([[0, 1, 2]]), "(1, 3)"),
        (torch.zeros(4, 1, 1, dtype=torch.long), "(4, 1, 1)"),
        (torch.zeros(4, 0, dtype=torch.long), "(4, 0)"),
        ([], "target"),
        (1.0, "target=1.0"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "target"),
        (True, "target"),
        (torch.tensor([True, False, True, True]), "target"),
        ("cat", "target=cat"),
        (None, "target=None"),
        ([[0, 1], [2], [3], [4]], "target"),
    ],
)
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_bad_target_is_an_error_that_names_it(model, x, look, target, said):
    before = everything(model)
    with pytest.raises(sg.SoftgateError) as error:
        look(model, x, target, RULE)
    assert said in str(error.value)
    assert_same(everything(model), before)


@pytest.mark.parametrize("shape", [(3, 10, 10), (10,), (1, 4, 3, 10, 10)])
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_images_of_another_shape_are_refused_with_their_shape(model, look, shape):
    with pytest.raises(sg.SoftgateError) as error:
        look(model, torch.zeros(shape, dtype=torch.float64), 1, RULE)
    assert str(shape) in str(error.value)


def test_a_model_that_returns_no_logits_is_refused_with_their_shape(model, x):
    with pytest.raises(sg.SoftgateError, match=r"\(4, 6, 5, 5\)"):
        sg.pullback(model.body, x, 1, RULE)


def test_pullback_of_a_copy_does_not_touch_the_original(model, x):
    sites = sg.attach(model, RULE)
    twin = copy.deepcopy(model)
    sg.pullback(twin, x, 1, None)
    assert sites.rule is RULE
    assert sites.attached
