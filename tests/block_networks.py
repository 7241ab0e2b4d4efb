"""Small networks with smooth activations, normalisations, attention and gated products, and their gradients."""

from functools import cache, partial

import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

NETWORKS = {
    "vit": partial(
        VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24
    ),
    "swin": partial(
        SwinTransformer, patch_size=[2, 2], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4]
    ),
    "convnext": partial(ConvNeXt, [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)]),
    "efficientnet": torchvision.models.efficientnet_b0,
    "mobilenet": torchvision.models.mobilenet_v3_small,
}


@cache
def build(name):
    """The network in float64 and eval mode, with parameters and statistics that matter."""
    torch.manual_seed(0)
    model = NETWORKS[name](num_classes=5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():
        model(images(8))
    return model.eval()


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    named = dict(model.named_parameters())
    found = torch.autograd.grad((logits * weights).sum(), [x, *named.values()], allow_unused=True)
    return logits.detach(), found[0], dict(zip(named, found[1:], strict=True))
