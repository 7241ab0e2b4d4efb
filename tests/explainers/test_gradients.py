"""Explainers: against captum where it can, against formulas where it cannot; nothing stays behind."""

import sys

import numpy as np
import pytest
import torch
import torchvision
from captum import attr
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import explainers
from softgate.explainers.captum import ExcitationPullback as CaptumPullback
from softgate.explainers.noise import draws

RULE = sg.Surrogate()


class Functional(nn.Module):
    """Functional and in-place ReLUs, a module called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = self.act(self.second(self.act(self.second(x))) + x)
        return self.head(x.mean((2, 3)))


class Modules(nn.Module):
    """One ReLU module for each call, which is what captum's hooks need."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def built(kind) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


@pytest.fixture
def x():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


TARGET = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("kind", [Functional, Modules])
@pytest.mark.parametrize("name", explainers.KNOWN)
def test_every_explainer_gives_one_map_an_image_and_leaves_no_trace(kind, name, x):
    model = built(kind).train()
    model(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    explain = explainers.by_name(name)
    found = explain(model, x, TARGET)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert not found.requires_grad
    assert found.abs().sum() > 0
    assert torch.equal(found, explain(model, x, TARGET))
    one = torch.cat([explain(model, x[i : i + 1], int(TARGET[i])) for i in range(3)])
    torch.testing.assert_close(found, one)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", explainers.KNOWN)
def test_an_attached_model_is_explained_as_the_bare_one(name, x):
    model, explain = built(Functional).eval(), explainers.by_name(name)
    expected = explain(model, x, TARGET)
    sites = sg.attach(model, sg.Surrogate(mix=0.5))
    torch.testing.assert_close(explain(model, x, TARGET), expected)
    assert sites.rule == sg.Surrogate(mix=0.5)


def captums(name, model, x):
    model = model.eval()
    if name == "guided_backprop":
        return attr.GuidedBackprop(model).attribute(x, target=TARGET)
    if name == "grad_cam":
        maps = attr.LayerGradCam(model, model.body).attribute(x, target=TARGET, relu_attributions=True)
        return F.interpolate(maps, x.shape[-2:], mode="bilinear").expand_as(x)
    if name == "integrated_gradients":
        return attr.IntegratedGradients(model).attribute(x, target=TARGET, n_steps=32)
    if name == "input_x_gradient":
        return attr.InputXGradient(model).attribute(x, target=TARGET)
    return attr.Saliency(model).attribute(x, target=TARGET, abs=False)


@pytest.mark.parametrize(
    "name", ["gradient", "input_x_gradient", "integrated_gradients", "guided_backprop", "grad_cam"]
)
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_captum_agrees_where_its_hooks_reach(name, x):
    expected = captums(name, built(Modules), x.clone().requires_grad_())
    torch.testing.assert_close(explainers.by_name(name)(built(Modules), x, TARGET), expected.detach())


def test_integrated_gradients_sum_to_the_difference_of_the_logits(x):
    model = built(Functional).eval()
    found = explainers.integrated_gradients(model, x, TARGET, steps=400)
    with torch.no_grad():
        expected = (model(x) - model(torch.zeros_like(x))).gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=0, atol=2e-3)


def test_smoothgrad_without_noise_is_the_gradient_and_with_more_samples_steadier(x):
    model = built(Functional).eval()
    expected = explainers.gradient(model, x, TARGET)
    torch.testing.assert_close(explainers.smoothgrad(model, x, TARGET, samples=2, noise=1e-12), expected)

    def spread(samples: int) -> float:
        seeds = [explainers.smoothgrad(model, x, TARGET, samples=samples, seed=seed) for seed in (1, 2)]
        return float((seeds[0] - seeds[1]).norm())

    assert spread(32) < 0.5 * spread(2)


def test_smoothgrads_noise_is_a_share_of_each_images_range_of_values(x):
    model, images = built(Functional).eval(), x * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1)
    expected = torch.zeros_like(images)
    for i, image in enumerate(images):
        for drawn in draws(image[None], 4, seed=7):
            noisy = image[None] + 0.3 * (image.max() - image.min()) * drawn
            expected[i] += explainers.gradient(model, noisy, int(TARGET[i]))[0] / 4
    found = explainers.smoothgrad(model, images, TARGET, samples=4, noise=0.3, seed=7)
    torch.testing.assert_close(found, expected)


def test_leaky_backward_is_the_rule_of_that_name(x):
    model = built(Functional).eval()
    rule = sg.Surrogate(gate=sg.gates.Leaky(slope=0.1), pool=sg.pools.Hard())
    assert torch.equal(explainers.leaky_backward(model, x, TARGET, slope=0.1), sg.pullback(model, x, TARGET, rule))


def test_guided_backprop_of_functional_calls_matches_a_pass_by_hand(x):
    model = built(Functional).eval()
    first = F.conv2d(x, model.first.weight, model.first.bias)
    pooled, index = F.max_pool2d(F.relu(first), 2, return_indices=True)

    def conv(z):
        return F.conv2d(z, model.second.weight, model.second.bias, padding=1)

    a = conv(pooled)
    b = conv(F.relu(a)) + pooled
    grad = model.head.weight[TARGET][:, :, None, None].expand_as(b) / b[0, 0].numel()
    grad = grad.clamp(min=0) * (b > 0)
    back = F.conv_transpose2d(grad, model.second.weight, padding=1).clamp(min=0) * (a > 0)
    grad = grad + F.conv_transpose2d(back, model.second.weight, padding=1)
    grad = F.max_unpool2d(grad, index, 2, output_size=first.shape).clamp(min=0) * (first > 0)
    expected = F.conv_transpose2d(grad, model.first.weight)
    torch.testing.assert_close(explainers.guided_backprop(model, x, TARGET), expected.detach())


def test_guided_backprop_refuses_what_it_does_not_cover(x):
    gelu = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).double()
    gelu(x)
    with pytest.raises(sg.UnreachableSites, match="gelu"):
        explainers.guided_backprop(gelu, x, TARGET)
    with pytest.raises(sg.NoCallSites, match="has no ReLU"):
        explainers.guided_backprop(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)).double(), x, TARGET)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "googlenet"])
def test_grad_cam_and_guided_backprop_take_real_networks(name):
    torch.manual_seed(0)
    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, num_classes=5, **extra).eval()
    image = torch.randn(1, 3, 96, 96)
    for explain in (explainers.grad_cam, explainers.guided_backprop):
        assert explain(model, image, 3).isfinite().all()
    if name == "resnet18":
        maps = attr.LayerGradCam(model, model.layer4).attribute(image, target=3, relu_attributions=True)
        expected = F.interpolate(maps, (96, 96), mode="bilinear").expand(1, 3, 96, 96)
        torch.testing.assert_close(explainers.grad_cam(model, image, 3), expected.detach())


def test_grad_cam_without_a_feature_map_says_so(x):
    with pytest.raises(sg.SoftgateError, match="makes no feature map"):
        explainers.grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)).double(), x, 1)


# -- the neighbours' forms ----------------------------------------------------------------------------


def test_the_pullback_is_a_captum_attribution(x):
    model = built(Functional)
    method = CaptumPullback(model, RULE)
    assert isinstance(method, attr.Attribution)
    assert torch.equal(method.attribute(x, target=TARGET), sg.pullback(model, x, TARGET, RULE))
    noisy = attr.NoiseTunnel(method).attribute(x, target=TARGET, nt_samples=2, stdevs=1e-12)
    torch.testing.assert_close(noisy, sg.pullback(model, x, TARGET, RULE))
    with pytest.raises(sg.SoftgateError, match="target is not set"):
        method.attribute(x)
    with pytest.raises(sg.SoftgateError, match="baselines: no such setting"):
        method.attribute(x, target=1, baselines=0)
    with pytest.raises(sg.SoftgateError, match="function given"):
        CaptumPullback(lambda x: x)


def test_quantus_calls_explainers_with_arrays(x):
    model = built(Functional)
    explain = explainers.for_quantus(explainers.ExcitationPullback(RULE))
    found = explain(model=model, inputs=x.numpy(), targets=np.array([0, 4, 2]), device="cpu", img_size=12)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, sg.pullback(model, x, TARGET, RULE).numpy())


def test_without_captum_the_extra_is_named_and_the_rest_works(x, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = built(Functional)
    for name in ("input_x_gradient", "integrated_gradients"):
        with pytest.raises(sg.SoftgateError, match=r"extra 'explain'.*softgate\[explain\]"):
            explainers.by_name(name)(model, x, TARGET)
    for name in ("gradient", "smoothgrad", "guided_backprop", "leaky_backward", "grad_cam", "excitation_pullback"):
        explainers.by_name(name)(model, x, TARGET)


def test_unknown_names_and_wrong_targets_are_one_sentence(x):
    with pytest.raises(sg.SoftgateError, match=r"explainers=smothgrad.*Did you mean 'smoothgrad'"):
        explainers.by_name("smothgrad")
    for wrong in ("cat", [0, 1], 1.5, None):
        with pytest.raises(sg.SoftgateError, match="an int or a"):
            explainers.guided_backprop(built(Functional), x, wrong)
    for name in explainers.KNOWN:
        for wrong in (-1, 99):
            with pytest.raises(sg.SoftgateError, match=f"target={wrong}: the model has the classes 0 to"):
                explainers.by_name(name)(built(Functional), x, wrong)
    for name in ("integrated_gradients", "smoothgrad"):
        with pytest.raises(sg.SoftgateError, match=f"{name}: .*=0"):
            getattr(explainers, name)(built(Functional), x, 1, 0)
