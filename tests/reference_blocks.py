"""Slow, obvious references of smooth activations, normalisations, attention and gated products, from the formulas.

They share no code with softgate and import none of it. Every rule is forward gradient injection (arXiv 2406.00177):
m = x * sg(lambda); out = m - sg(m) + sg(y). `patched` puts them in the place of PyTorch's functions, for whole models.
"""

import math
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torchvision
from torch.nn import functional as F

TRUE = {name: getattr(F, name) for name in "silu gelu hardswish mish elu selu celu softplus layer_norm".split()}
TRUE |= {name: getattr(F, name) for name in "group_norm instance_norm rms_norm scaled_dot_product_attention".split()}
TRUE_SOFTMAX = F.softmax
TRUE_SQUEEZE = torchvision.ops.misc.SqueezeExcitation.forward

LAMBDA, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def phi(z):
    return (1 + torch.erf(z / math.sqrt(2))) / 2


def below(z, alpha, steep=1.0):
    """alpha (exp(steep z) - 1) / z for z < 0 and 1 for z > 0."""
    return torch.where(z > 0, torch.ones_like(z), alpha * (torch.exp(steep * z) - 1) / z)


GATES = {
    "silu": lambda u: 1 / (1 + torch.exp(-u)),
    "gelu": phi,
    "gelu_tanh": lambda u: (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) / 2,
    "hardswish": lambda u: torch.clamp(u + 3, 0, 6) / 6,
    "mish": lambda u: torch.tanh(torch.log1p(torch.exp(u))),
    "elu": lambda u: below(u, 1.0),
    "selu": lambda u: LAMBDA * below(u, ALPHA),
    "celu": lambda u: below(u, 0.7, 1 / 0.7),
    "softplus": lambda u: 1 / (1 + torch.exp(-u)),
}
"""The gate of each activation at u = z / T, with CELU's alpha at 0.7."""


def injected(m, y):
    return m - m.detach() + y.detach()


def smooth(name, z, temperature, **settings):
    """The true activation with the gradient of z * sg(gate(z / T)); finite `z` only, none of them zero."""
    gate = GATES["gelu_tanh" if settings.get("approximate") == "tanh" else name]
    return injected(z * gate(z / temperature).detach(), TRUE[name](z, **settings))


def spread(x, dims, eps, centred=True):
    """x with its statistics over `dims` held constant."""
    mean = x.mean(dims, keepdim=True) if centred else 0 * x.mean(dims, keepdim=True)
    std = ((x - mean).square().mean(dims, keepdim=True) + eps).sqrt()
    return (x - mean.detach()) / std.detach()


def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    m = spread(x, tuple(range(-len(shape), 0)), eps)
    m = m if weight is None else m * weight
    return injected(m if bias is None else m + bias, TRUE["layer_norm"](x, shape, weight, bias, eps))


def rms_norm(x, shape, weight=None, eps=None):
    m = spread(x, tuple(range(-len(shape), 0)), torch.finfo(x.dtype).eps if eps is None else eps, centred=False)
    return injected(m if weight is None else m * weight, TRUE["rms_norm"](x, shape, weight, eps))


def channels(parameter, x):
    return parameter.view(1, -1, *(1,) * (x.dim() - 2))


def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    m = spread(parts, tuple(range(2, parts.dim())), eps).reshape(x.shape)
    m = m if weight is None else m * channels(weight, x)
    return injected(m if bias is None else m + channels(bias, x), TRUE["group_norm"](x, groups, weight, bias, eps))


def instance_norm(x, *statistics, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5):
    m = spread(x, tuple(range(2, x.dim())), eps)
    m = m if weight is None else m * channels(weight, x)
    true = TRUE["instance_norm"](x, None, None, weight, bias, True, momentum, eps)
    return injected(m if bias is None else m + channels(bias, x), true)


def scores(query, key, mask=None, causal=False, scale=None):
    found = torch.einsum("...le,...se->...ls", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    length, size = found.shape[-2:]
    if causal:
        found = found.masked_fill(torch.arange(size)[None] > torch.arange(length)[:, None], -math.inf)
    if mask is None:
        return found
    return found.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else found + mask


def value_path(query, key, value, mask=None, dropout=0.0, causal=False, scale=None, temperature=1.0):
    """The true attention with the gradient of sg(softmax(scores / T)) @ v."""
    assert not dropout
    weights = (scores(query, key, mask, causal, scale) / temperature).softmax(-1).detach()
    true = TRUE["scaled_dot_product_attention"](query, key, value, mask, 0.0, causal, scale=scale)
    return injected(weights @ value, true)


def two_pass(query, key, value, mask=None, dropout=0.0, causal=False, scale=None, temperature=1.0):
    """The true attention with the gradient of softmax(scores / T) @ v."""
    assert not dropout
    second = (scores(query, key, mask, causal, scale) / temperature).softmax(-1) @ value
    return injected(second, TRUE["scaled_dot_product_attention"](query, key, value, mask, 0.0, causal, scale=scale))


def squeeze(module, x):
    """Squeeze-and-excitation with its gate held constant."""
    return module._scale(x).detach() * x


def softmax(x, dim=None):
    """Attention weights held constant, where a network multiplies by them itself."""
    return TRUE_SOFTMAX(x, dim).detach()


@contextmanager
def patched(silu=1.6, gelu=1.0, others=1.0):
    """Runs the block with the references in the place of PyTorch's functions: the rule that `semantic` is."""
    warm = {"silu": silu, "gelu": gelu}

    def activation(name):
        def run(z, *args, inplace=False, **settings):
            return smooth(name, z, warm.get(name, others), **settings)

        return run

    places = {name: activation(name) for name in ("silu", "gelu", "hardswish", "mish")}
    places["softmax"] = softmax
    places |= {"layer_norm": layer_norm, "group_norm": group_norm, "scaled_dot_product_attention": value_path}
    with ExitStack() as stack:
        for name, function in places.items():
            stack.enter_context(mock.patch.object(F, name, function))
        stack.enter_context(mock.patch.object(torchvision.ops.misc.SqueezeExcitation, "forward", squeeze))
        yield
