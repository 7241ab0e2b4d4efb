"""A small transformer and a small ConvNeXt under the rule for blocks, in the modes of PyTorch: as in the plain one."""

import copy
import pickle
import threading
import warnings
from functools import partial

import pytest
import torch
from torch import func, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.vision_transformer import VisionTransformer

import reference
import softgate as sg
from mode_networks import assert_close, functional_loss, gradients, images

RULE = sg.Surrogate.semantic()
PARTS = [RULE, sg.Surrogate.semantic(attention=sg.attentions.ValuePath(0.5)), sg.Surrogate.semantic(mix=0.5)]


class Gated(nn.Module):
    """Attention written by hand, a gate over channels, SwiGLU and RMSNorm, on rows of pixels as tokens."""

    def __init__(self, num_classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.value, self.up = (nn.Linear(48, 12), *(nn.Linear(12, 12) for _ in range(3)))
        self.norm, self.last = nn.RMSNorm(12), nn.Linear(12, num_classes)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        x = self.norm(self.first(x.transpose(1, 2).flatten(2)))
        x = x + (self.gate(x) @ x.transpose(-2, -1) / 3).softmax(-1) @ self.value(x)
        x = x * self.gate(x.mean(1, keepdim=True)).sigmoid()
        return self.last((x + self.act(self.up(x)) * self.value(x)).mean(1))


NETWORKS = {
    "vit": partial(VisionTransformer, image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12),
    "convnext": partial(ConvNeXt, [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], stochastic_depth_prob=0.0),
    "by hand": Gated,
}


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = NETWORKS[name](num_classes=5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype)


def pixels(count=3, dtype=torch.float64):
    return images(count, 3, 16, 16, dtype=dtype)


@pytest.fixture(params=NETWORKS)
def model(request):
    return build(request.param)


def plain(model, rule=RULE, x=None):
    """[output, input gradient, parameter gradients] attached in no mode at all; they are those of no bare model."""
    x = pixels() if x is None else x
    bare = gradients(model, x)
    with sg.attach(model, rule):
        found = gradients(model, x)
    assert torch.equal(found[0], bare[0])
    assert reference.distance(found[1], bare[1]) > 1e-3
    return found


# -- torch.func ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", PARTS, ids=["rule", "warm", "mix"])
def test_func_grad_is_the_gradient(model, rule):
    expected = plain(model, rule)[2:]
    with sg.attach(model, rule):
        found = func.grad(functional_loss(model))(dict(model.named_parameters()), pixels())
    assert_close(list(found.values()), expected)


@pytest.mark.parametrize("rule", PARTS, ids=["rule", "warm", "mix"])
def test_gradients_of_single_images_by_vmap_are_those_of_a_loop(model, rule):
    loss, x = functional_loss(model), pixels()
    parameters = dict(model.named_parameters())
    with sg.attach(model, rule):
        expected = [gradients(model, one[None])[2:] for one in x]
        found = func.vmap(func.grad(lambda p, one: loss(p, one[None])), (None, 0))(parameters, x)
    for number, one in enumerate(expected):
        assert_close([value[number] for value in found.values()], one, within=1e-11)


def test_a_jacobian_and_a_batch_of_upstream_gradients_are_those_of_a_loop(model):
    x = pixels(2)
    with sg.attach(model, RULE):
        jacobian = func.jacrev(model)(x)
        z = x.clone().requires_grad_()
        out = model(z).sum(0)
        expected = torch.stack([torch.autograd.grad(logit, z, retain_graph=True)[0] for logit in out])
        (batched,) = torch.autograd.grad(out, z, torch.eye(5, dtype=out.dtype), is_grads_batched=True)
    assert_close([batched, jacobian.sum(0)], [expected, expected])


def test_forward_mode_differentiation_is_refused_and_never_hard(model):
    with sg.attach(model, RULE), pytest.raises(Exception, match=r"jvp|forward AD|forward-mode|forward mode"):
        func.jvp(model, (pixels(),), (pixels(),))


# -- checkpoints, copies, threads ---------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A network that checkpoints its parts, or itself."""

    def __init__(self, body, reentrant):
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("rule", PARTS, ids=["rule", "warm", "mix"])
def test_checkpointed_within_or_around_the_gradients_are_the_same(model, reentrant, rule):
    expected = plain(model, rule)
    with sg.attach(Checkpointed(model, reentrant), rule) as sites:
        assert_close(gradients(sites.model, pixels()), expected)
    with sg.attach(model, rule):
        around = Checkpointed(model, reentrant)
        assert_close(gradients(around, pixels()), expected)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle])
def test_a_copy_of_an_attached_model_is_attached_on_its_own(model, through):
    bare, expected = gradients(model, pixels()), plain(model)
    sites = sg.attach(model, RULE)
    twin = through(model)
    assert_close(gradients(twin, pixels()), expected, within=0)
    sites.use(None)
    assert_close(gradients(model, pixels()), bare, within=0)
    assert_close(gradients(twin, pixels()), expected, within=0)
    sites.detach()
    sg.detach(twin)
    assert_close(gradients(twin, pixels()), bare, within=0)


def test_two_threads_on_one_attached_model_both_get_their_gradient(model):
    x = [pixels(), -pixels()]
    start, results = threading.Barrier(2), [[], []]

    def work(mine):
        start.wait()
        for _ in range(8):
            image = x[mine].clone().requires_grad_()
            results[mine].append(torch.autograd.grad(model(image).square().sum(), image)[0])

    with sg.attach(model, RULE):
        expected = [gradients(model, one)[1] for one in x]
        threads = [threading.Thread(target=work, args=(mine,)) for mine in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for mine in (0, 1):
        assert len(results[mine]) == 8
        for found in results[mine]:
            assert reference.distance(found, expected[mine]) <= 1e-12


# -- precision, memory formats, devices, hooks --------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", PARTS, ids=["rule", "warm", "mix"])
def test_under_autocast_the_forward_is_bit_equal_and_the_gradient_that_of_float64_up_to_rounding(name, dtype, rule):
    model, x = build(name, torch.float32), pixels(dtype=torch.float32)
    exact = plain(build(name), rule)
    with torch.autocast("cpu", dtype):
        bare = gradients(model, x, lambda out: out.float().square().sum())
        with sg.attach(model, rule):
            found = gradients(model, x, lambda out: out.float().square().sum())
    assert torch.equal(found[0], bare[0])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found[1:])
    assert reference.distance(found[1].double(), exact[1]) < 0.1


@pytest.mark.parametrize("rule", PARTS, ids=["rule", "warm", "mix"])
def test_channels_last_changes_values_by_rounding_only(rule):
    model = build("convnext")
    expected = plain(model, rule)
    model, x = model.to(memory_format=torch.channels_last), pixels().to(memory_format=torch.channels_last)
    bare = model(x).detach()
    with sg.attach(model, rule):
        found = gradients(model, x)
    assert torch.equal(found[0], bare)
    assert_close(found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_on_the_meta_device_shapes_flow_forward_and_backward(name):
    with torch.device("meta"):
        model, x = NETWORKS[name](num_classes=5).train(), torch.randn(3, 3, 16, 16)
    with sg.attach(model, RULE):
        found = gradients(model, x)
    assert [g.shape for g in found] == [(3, 5), x.shape, *(p.shape for p in model.parameters())]
    assert all(g.is_meta for g in found)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_forward_is_bit_equal_and_training_goes_on_afterwards(model, guard):
    expected, x = plain(model), pixels()
    with guard():
        bare = model(x)
    with sg.attach(model, RULE):
        with guard():
            out = model(x)
            assert torch.equal(out, bare)
            assert not out.requires_grad
        assert_close(gradients(model, x), expected)


def by_way_of_bytes():
    """Hooks that keep copies, as offloading and compression do: no tensor comes back as it was."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda copy: copy.clone())


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, by_way_of_bytes])
@pytest.mark.parametrize("outside", [True, False])
def test_a_users_hooks_on_saved_tensors_change_no_gradient(model, hooks, outside):
    expected = plain(model)
    inner = model.forward

    def hooked(x):
        with hooks():
            return inner(x)

    if not outside:
        model.forward = hooked
    with sg.attach(model, RULE):
        if outside:
            with hooks():
                assert_close(gradients(model, pixels()), expected)
        else:
            assert_close(gradients(model, pixels()), expected)


def test_hooks_of_modules_see_the_gradients_and_change_none(model):
    expected, seen = plain(model), []
    kinds, written = (nn.LayerNorm, nn.RMSNorm, nn.GELU, nn.SiLU, nn.Linear), getattr(model, "up", None)
    for module in model.modules():
        # nothing may be written to what a backward hook hands on, with or without softgate
        if isinstance(module, kinds) and not getattr(module, "inplace", False) and module is not written:
            module.register_forward_hook(lambda module, args, out: seen.append("forward"))
            module.register_full_backward_hook(lambda module, before, after: seen.append("backward"))
    with sg.attach(model, RULE):
        assert_close(gradients(model, pixels()), expected)
    assert {"forward", "backward"} <= set(seen)


def test_anomaly_detection_and_deterministic_algorithms_change_nothing(model):
    expected = plain(model)
    torch.use_deterministic_algorithms(True)
    try:
        with sg.attach(model, RULE), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with torch.autograd.detect_anomaly():
                assert_close(gradients(model, pixels()), expected)
    finally:
        torch.use_deterministic_algorithms(False)
