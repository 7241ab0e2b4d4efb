"""Half precision, memory formats, the meta device, modes of PyTorch and hooks on saved tensors change no gradient."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import grad

import reference
import softgate as sg
from mode_networks import OTHER, RULE, CheckpointedBody, Net, assert_close, gradients, images, soft_gradients

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


# -- memory formats, devices, modes of PyTorch --------------------------------------------------------


@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_channels_last_changes_values_by_rounding_only_and_keeps_the_memory_order(residual, rule):
    x = images(4, 3, 9, 9)
    with sg.attach(residual, rule):
        expected = gradients(residual, x)
    residual = residual.to(memory_format=torch.channels_last)
    bare = residual(x.to(memory_format=torch.channels_last))
    with sg.attach(residual, rule):
        found = gradients(residual, x.to(memory_format=torch.channels_last))
        assert residual.stem(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
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
def test_deterministic_algorithms_are_enough(residual, rule):
    with sg.attach(residual, rule):
        expected = gradients(residual, images())
        torch.use_deterministic_algorithms(True)
        try:
            assert_close(gradients(residual, images()), expected, within=0)
        finally:
            torch.use_deterministic_algorithms(False)


def test_anomaly_detection_finds_none(residual):
    expected = soft_gradients(residual, images())
    with sg.attach(residual, RULE), pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        assert_close(gradients(residual, images()), expected)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_forward_is_bit_equal_and_training_goes_on_afterwards(residual, guard):
    expected, x = soft_gradients(residual, images()), images()
    with guard():
        bare = residual(x)
    with sg.attach(residual, RULE):
        with guard():
            out = residual(x)
            assert torch.equal(out, bare)
            assert not out.requires_grad
        assert_close(gradients(residual, x), expected)


# -- hooks --------------------------------------------------------------------------------------------


def by_way_of_bytes():
    """Hooks that keep copies, as offloading and compression do: no tensor comes back as it was."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda copy: copy.clone())


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, by_way_of_bytes])
@pytest.mark.parametrize("outside", [True, False])
def test_a_users_hooks_on_saved_tensors_change_no_gradient(residual, hooks, outside):
    expected = soft_gradients(residual, images())
    inner = residual.forward

    def hooked(x):
        with hooks():
            return inner(x)

    if not outside:
        residual.forward = hooked
    with sg.attach(residual, RULE):
        if outside:
            with hooks():
                assert_close(gradients(residual, images()), expected)
        else:
            assert_close(gradients(residual, images()), expected)


def test_where_hooks_on_saved_tensors_are_forbidden_the_gradients_are_the_same(residual):
    expected = soft_gradients(residual, images())
    with sg.attach(residual, RULE), torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        assert_close(gradients(residual, images()), expected)


def test_a_backward_hook_on_a_relu_sees_the_gated_gradient():
    model, seen = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double(), []
    z = model[0](images(7, 6))
    model[1].register_full_backward_hook(lambda module, before, after: seen.append((before[0], after[0])))
    with sg.attach(model, RULE):
        gradients(model, images(7, 6))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0][0], seen[0][1] * reference.sigmoid(z.detach()))


def test_fake_tensors_go_backward_through_the_soft_pool():
    with FakeTensorMode():
        model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(2, 3, 8, 8)
        with sg.attach(model, RULE):
            assert gradients(model, x)[1].shape == x.shape


# -- what is promised of attach -----------------------------------------------------------------------


def test_call_sites_are_known_before_the_first_forward_also_on_the_meta_device():
    with torch.device("meta"):
        model = Net()
    with sg.attach(model, RULE) as sites:
        assert (sites.count(), sites.count("max_pool2d")) == (4, 2)


@pytest.mark.parametrize("which", ["backward hook", "checkpoint"])
def test_attaching_warns_of_nothing(which):
    model = CheckpointedBody(True, False)
    if which == "backward hook":
        model = model.body
        model[1].register_full_backward_hook(lambda module, before, after: None)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        sg.attach(model, RULE).detach()
    assert [str(warning.message) for warning in heard] == []
