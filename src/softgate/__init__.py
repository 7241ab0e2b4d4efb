"""softgate: exact forward pass, surrogate gradients in the backward pass.

>>> import torch, torchvision, softgate as sg
>>> model = torchvision.models.resnet18().eval()
>>> rule = sg.Surrogate(gate=sg.gates.Sigmoid(temperature=0.3), pool=sg.pools.LSE(temperature=0.3))
>>> sg.pullback(model, torch.randn(2, 3, 64, 64), target=7, rule=rule).shape
torch.Size([2, 3, 64, 64])

Importing `softgate` brings in nothing yet. The first name that is asked for brings in torch and numpy, but no
Lightning, no Hydra and no W&B.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
