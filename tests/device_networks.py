"""The networks of the suite of a GPU, small, and what a backward pass of them finds."""

import torch
import torchvision

from mode_networks import Net

NAMES = ("net", "resnet18", "squeezenet1_1", "densenet121")
SIZE = 40


def network(name, device, dtype=torch.float64):
    """A network in eval mode with five classes; the dropout of SqueezeNet would draw anew in each pass."""
    torch.manual_seed(0)
    model = Net() if name == "net" else torchvision.models.get_model(name, num_classes=5)
    with torch.no_grad():  # running statistics that are not those of the beginning
        model.train()(torch.randn(4, 3, SIZE, SIZE))
    return model.eval().to(device, dtype)


def images(device, count=2, size=SIZE, dtype=torch.float64):
    draws = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return draws.to(device, dtype)


def passed(model, x):
    """[output, input gradient, parameter gradients ...] of a sum of squares, on the CPU."""
    model.zero_grad(set_to_none=True)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = model(x)
    out.float().square().sum().backward() if out.dtype != torch.float64 else out.square().sum().backward()
    found = [out, x.grad, *(p.grad for p in model.parameters())]
    return [one.detach().double().cpu() for one in found if one is not None]
