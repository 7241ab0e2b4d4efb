"""Attached models under the other machinery of PyTorch: the gradients are those of the plain eager model.

Half precision, several processes, checkpointing, torch.func, torch.compile, memory formats, meta tensors, hooks on
saved tensors, gradients of gradients. Threads, copies and pickles are in tests/test_sites.py.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import func, nn
from torch.autograd import grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.models import DenseNet

import reference
import softgate as sg
from mode_networks import OTHER, RULE, Net, functional_loss, gradients, images, soft_gradients

RELU_ONLY = sg.Surrogate(pool=sg.pools.Hard())


@pytest.fixture
def net():
    return Net().double().eval()


def assert_close(found, expected, within=1e-12):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) <= within


# -- half precision -----------------------------------------------------------------------------------


class Watched(nn.Module):
    """A network that keeps its pre-activation, its activation and its pooled activation, with their gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.pool, self.last = (
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        z = self.conv(x)
        y = self.relu(z)
        p = self.pool(y)
        self.kept = [tensor for tensor in (z, y, p) if isinstance(tensor, torch.Tensor)]
        for tensor in self.kept:
            tensor.retain_grad()
        return self.last(p.mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_under_autocast_gates_and_weights_are_those_of_a_float64_reference_up_to_one_rounding(dtype):
    model, x = Watched(), images(8, 3, 15, 15, dtype=torch.float32)
    with torch.autocast("cpu", dtype), sg.attach(model, RULE):
        loss = model(x).float().square().sum() * 2**12  # scaled as a GradScaler does, out of float16's subnormals
    loss.backward()
    z, y, p = model.kept
    assert {tensor.dtype for tensor in (z, y, p, z.grad, y.grad, p.grad)} == {dtype}

    def roundings(found, expected):
        """The distance in units of half the spacing of `dtype`, of which one rounding makes one at most."""
        half = torch.finfo(dtype).eps / 2
        scale = expected.abs().clamp(min=float(expected.abs().max()) * 1e-3)
        return float(((found.double() - expected).abs() / scale).max()) / half

    gated = y.grad.double() * reference.sigmoid(z.detach().double())
    assert roundings(z.grad, gated) <= 1.01
    assert roundings(y.grad * reference.sigmoid(z.detach()), gated) > 1.5  # what half arithmetic would give
    wide = y.detach().double().requires_grad_()
    (pooled,) = grad(reference.max_pool2d(wide, 3, 2, 1), wide, p.grad.double())
    assert roundings(y.grad, pooled) <= 1.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_under_autocast_the_forward_is_bit_equal_and_gradients_are_finite(dtype, rule):
    model, x = Net().train(), images(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        bare = gradients(model, x, lambda out: out.float().square().sum())
        with sg.attach(model, rule):
            found = gradients(model, x, lambda out: out.float().square().sum())
    assert found[0].dtype == dtype
    assert torch.equal(found[0], bare[0])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found[1:])
    assert reference.distance(found[1], bare[1]) > 1e-2


# -- several processes --------------------------------------------------------------------------------


def test_two_processes_find_the_gradient_that_one_finds_on_the_joined_batch(tmp_path):
    script, environment = Path(__file__).parents[1] / "two_processes.py", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # does nothing to one that has ended
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 8
        assert {name: apart for name, apart in found.items() if not apart <= 1e-12} == {}


# -- checkpointing ------------------------------------------------------------------------------------


class Checkpointed(Net):
    """The stem as a checkpointed module, the rest as the parts of a checkpointed sequence."""

    def __init__(self, how):
        super().__init__()
        self.tail = nn.Sequential(self.a, nn.ReLU(inplace=True), self.b, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
        self.how = how

    def forward(self, x):
        if self.how is None:
            return self.head(self.tail(self.stem(x)).mean((2, 3)))
        x = checkpoint(self.stem, x, use_reentrant=self.how)
        return self.head(checkpoint_sequential(self.tail, 2, x, use_reentrant=self.how).mean((2, 3)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_checkpointed_modules_and_sequences_have_the_gradients_of_the_unchecked_ones(reentrant, train, rule):
    plain, model = (Checkpointed(how).double().train(train) for how in (None, reentrant))
    with sg.attach(plain, rule), sg.attach(model, rule):
        assert_close(gradients(model, images()), gradients(plain, images()), within=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_whole_attached_model_can_be_checkpointed(net, reentrant):
    expected = soft_gradients(net, images())
    with sg.attach(net, RULE):
        wrapped = Wrapped(net, reentrant)
        assert_close(gradients(wrapped, images()), expected)


class Wrapped(nn.Module):
    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


def test_densenets_memory_efficient_mode_changes_no_gradient():
    found = []
    for efficient in (False, True):
        torch.manual_seed(0)
        model = DenseNet(4, (2, 2), 8, num_classes=3, memory_efficient=efficient).double().train()
        with sg.attach(model, RULE) as sites:
            found.append(gradients(model, images(4, 3, 32, 32)))
            assert sites.count() == 2 * 4 + 3
    assert_close(*found, within=0)
    torch.manual_seed(0)
    model = DenseNet(4, (2, 2), 8, num_classes=3).double().train()
    assert_close(found[0], soft_gradients(model, images(4, 3, 32, 32)))


# -- torch.func ---------------------------------------------------------------------------------------


def test_a_functional_call_with_other_parameters_is_gated(net):
    other = {name: value.detach() * 1.1 for name, value in net.named_parameters()}
    twin = Net().double().eval()
    twin.load_state_dict({**net.state_dict(), **other})
    expected = soft_gradients(twin, images())[2:]
    with sg.attach(net, RULE):
        other = {name: value.requires_grad_() for name, value in other.items()}
        found = grad(functional_loss(net)(other, images()), list(other.values()))
    assert_close(found, expected)


def test_func_grad_is_the_gradient(net):
    with sg.attach(net, RELU_ONLY):
        expected = gradients(net, images())[2:]
        found = func.grad(functional_loss(net))(dict(net.named_parameters()), images())
    assert_close(list(found.values()), expected)


@pytest.mark.parametrize("rule", [RELU_ONLY, sg.Surrogate(sg.gates.BSiLU(), sg.pools.Hard(), mix=0.5)], ids=repr)
def test_gradients_of_single_images_by_vmap_are_those_of_a_loop(net, rule):
    loss, x = functional_loss(net), images()
    parameters = dict(net.named_parameters())
    with sg.attach(net, rule):
        expected = [gradients(net, one[None])[2:] for one in x]
        found = func.vmap(func.grad(lambda p, one: loss(p, one[None])), (None, 0))(parameters, x)
        for number, one in enumerate(expected):
            assert_close([value[number] for value in found.values()], one)


def test_jacobians_by_vmap_are_those_of_a_loop(net):
    x = images(2, 3, 9, 9)
    with sg.attach(net, RELU_ONLY):
        found = func.jacrev(net)(x)
        for image in range(2):
            for output in range(5):
                expected = gradients(net, x, lambda out, at=(image, output): out[at])[1]
                assert reference.distance(found[image, output], expected) <= 1e-12
        z = x.clone().requires_grad_()
        out = net(z).sum(0)
        (batched,) = grad(out, z, torch.eye(5, dtype=out.dtype), is_grads_batched=True)
    assert_close([batched], [found.sum(0)])


def test_forward_mode_differentiation_is_refused_and_never_hard(net):
    x = images()
    with sg.attach(net, RULE), pytest.raises(NotImplementedError, match="jvp"):
        func.jvp(net, (x,), (x,))


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
def test_compiled_autograd_has_the_eager_gradients(net):
    torch._dynamo.reset()
    expected = soft_gradients(net, images())
    with sg.attach(net, RULE), torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        assert_close(gradients(net, images()), expected)


# -- memory formats, devices, modes of PyTorch --------------------------------------------------------


@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_channels_last_changes_values_by_rounding_only_and_keeps_the_memory_order(net, rule):
    x = images(4, 3, 9, 9)
    with sg.attach(net, rule):
        expected = gradients(net, x)
    net = net.to(memory_format=torch.channels_last)
    bare = net(x.to(memory_format=torch.channels_last))
    with sg.attach(net, rule):
        found = gradients(net, x.to(memory_format=torch.channels_last))
        assert net.stem(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[0], bare)
    assert_close(found, expected)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
@pytest.mark.parametrize("train", [True, False])
def test_on_the_meta_device_shapes_flow_forward_and_backward(rule, train):
    with torch.device("meta"):
        model, x = Net().train(train), torch.randn(4, 3, 9, 9)
    with sg.attach(model, rule) as sites:
        found = gradients(model, x)
        assert (sites.count(), sites.count("max_pool2d")) == (4, 2)
    assert [g.shape for g in found] == [(4, 5), x.shape, *(p.shape for p in model.parameters())]
    assert all(g.is_meta for g in found)


@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_deterministic_algorithms_are_enough(net, rule):
    with sg.attach(net, rule):
        expected = gradients(net, images())
        torch.use_deterministic_algorithms(True)
        try:
            assert_close(gradients(net, images()), expected, within=0)
        finally:
            torch.use_deterministic_algorithms(False)


def test_anomaly_detection_finds_none(net):
    expected = soft_gradients(net, images())
    with sg.attach(net, RULE), pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        assert_close(gradients(net, images()), expected)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_forward_is_bit_equal_and_training_goes_on_afterwards(net, guard):
    expected, x = soft_gradients(net, images()), images()
    with guard():
        bare = net(x)
    with sg.attach(net, RULE):
        with guard():
            out = net(x)
            assert torch.equal(out, bare)
            assert not out.requires_grad
        assert_close(gradients(net, x), expected)


# -- hooks --------------------------------------------------------------------------------------------


def by_way_of_bytes():
    """Hooks that keep copies, as offloading and compression do: no tensor comes back as it was."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda copy: copy.clone())


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, by_way_of_bytes])
@pytest.mark.parametrize("outside", [True, False])
def test_a_users_hooks_on_saved_tensors_change_no_gradient(net, hooks, outside):
    expected = soft_gradients(net, images())
    inner = net.forward

    def hooked(x):
        with hooks():
            return inner(x)

    if not outside:
        net.forward = hooked
    with sg.attach(net, RULE):
        if outside:
            with hooks():
                assert_close(gradients(net, images()), expected)
        else:
            assert_close(gradients(net, images()), expected)


def test_where_hooks_on_saved_tensors_are_forbidden_the_gradients_are_the_same(net):
    expected = soft_gradients(net, images())
    with sg.attach(net, RULE), torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        assert_close(gradients(net, images()), expected)


def test_a_backward_hook_on_a_relu_sees_the_gated_gradient():
    model, seen = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double(), []
    z = model[0](images(7, 6))
    model[1].register_full_backward_hook(lambda module, before, after: seen.append((before[0], after[0])))
    with sg.attach(model, RULE):
        gradients(model, images(7, 6))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0][0], seen[0][1] * reference.sigmoid(z.detach()))


# -- which gradients, how often, in which order -------------------------------------------------------


def test_the_input_gradient_of_a_frozen_network(net):
    expected = soft_gradients(net, images())[:2]
    net.requires_grad_(False)
    with sg.attach(net, RULE):
        assert_close(gradients(net, images()), expected)


def test_a_frozen_stem_and_an_input_without_gradient(net):
    with reference.patched(reference.sigmoid, 0.3):
        net(images()).square().sum().backward()
    expected = [p.grad.clone() for name, p in net.named_parameters() if not name.startswith("stem")]
    net.zero_grad()
    net.stem.requires_grad_(False)
    with sg.attach(net, RULE):
        net(images()).square().sum().backward()
    assert_close([p.grad for p in net.parameters() if p.requires_grad], expected)


def test_a_graph_that_is_retained_gives_the_same_gradient_twice(net):
    expected = soft_gradients(net, images())[1:]
    with sg.attach(net, RULE):
        x = images().requires_grad_()
        loss = net(x).square().sum()
        first = grad(loss, [x, *net.parameters()], retain_graph=True)
        net(images(seed=5))  # another forward pass in between
        second = grad(loss, [x, *net.parameters()])
        assert_close(first, expected)
        assert_close(second, first, within=0)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_gradients_add_up_over_micro_batches(net):
    whole = soft_gradients(net, images())[2:]
    net.zero_grad()
    with sg.attach(net, RULE):
        for part in images().split(1):
            net(part).square().sum().backward()
    assert_close([p.grad for p in net.parameters()], whole)


def test_two_forward_passes_before_the_backward_of_the_first(net):
    x, y = images(seed=2), images(seed=3)
    expected = [a + b for a, b in zip(soft_gradients(net, x)[2:], soft_gradients(net, y)[2:], strict=True)]
    net.zero_grad()
    with sg.attach(net, RULE):
        first, second = net(x).square().sum(), net(y).square().sum()
        first.backward()
        second.backward()
    assert_close([p.grad for p in net.parameters()], expected)


def test_the_rule_of_the_forward_pass_is_the_rule_of_its_backward_pass(net):
    expected = soft_gradients(net, images())[1]
    x = images().requires_grad_()
    with sg.attach(net, RULE) as sites:
        loss = net(x).square().sum()
        sites.use(None)
        assert_close(grad(loss, x, retain_graph=True), [expected])
    assert_close(grad(loss, x), [expected])


def test_a_backward_pass_in_another_thread_is_gated(net):
    expected = soft_gradients(net, images())[1]
    x = images().requires_grad_()
    with sg.attach(net, RULE):
        loss = net(x).square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert_close([x.grad], [expected])


# -- second order -------------------------------------------------------------------------------------


def constant_weights(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Max pooling whose log-sum-exp weights are constants, also for second derivatives."""
    spread = reference.windows(x, kernel_size, stride, padding, dilation, ceil_mode)
    weights = (spread.detach() / 0.3).flatten(-2).softmax(-1).view_as(spread)
    smooth = (weights * spread.masked_fill(spread.isneginf(), 0.0)).sum((-2, -1))
    return smooth - smooth.detach() + spread.amax((-2, -1)).detach()


def penalty_gradients(model, x):
    """The gradient of a gradient penalty: the input gradient's squared norm, differentiated by everything."""
    x = x.clone().requires_grad_()
    (first,) = grad(model(x).square().sum(), x, create_graph=True)
    return grad(first.square().sum(), [x, *model.parameters()], materialize_grads=True)


def test_a_gradient_penalty_holds_gates_and_weights_constant(net):
    with reference.patched(reference.sigmoid, 0.3), mock.patch.object(F, "max_pool2d", constant_weights):
        expected = penalty_gradients(net, images())
    bare = penalty_gradients(net, images())
    with sg.attach(net, RULE):
        found = penalty_gradients(net, images())
    assert float(expected[0].norm()) > 0
    assert_close(found, expected)
    assert reference.distance(found[0], bare[0]) > 1e-2
