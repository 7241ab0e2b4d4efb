"""A model that returns something else than one row of logits for each image is refused by every look at it."""

import pytest
import torch
from torch import nn

import softgate as sg
from softgate.evaluation.generalization import attacks, sharpness
from softgate.explainers.pullback import predict
from softgate.metrics import base

RULE = sg.Surrogate()
LABELS = torch.tensor([0, 1, 0])


class Crops(nn.Module):
    """Logits of several crops of each image, all crops of one kind after those of another; or of too few rows."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.how = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), how

    def forward(self, x):
        out = self.body(x)
        if self.how == "mean":
            return out.mean(0, keepdim=True)
        return (
            torch.cat([out, out - 0.1]) if self.how == "more" else out[:-1] if self.how == "fewer" else out[..., None]
        )


def images():
    return torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


SHAPES = {"more": r"\(6, 2\)", "fewer": r"\(2, 2\)", "mean": r"\(1, 2\)", "unflattened": r"\(3, 2, 1\)"}
EXPLAINERS = {
    name: lambda net, x, name=name: sg.explainers.by_name(name)(net, x, LABELS) for name in sg.explainers.KNOWN
}
LOOKS = EXPLAINERS | {
    "pullback": lambda net, x: sg.pullback(net, x, 1, RULE),
    "pullback, several": lambda net, x: sg.pullback(net, x, [0, 1], RULE),
    "pullback, centred": lambda net, x: sg.pullback(net, x, LABELS, RULE, centred=True),
    "ascend": lambda net, x: sg.ascend(net, x, 1, RULE, steps=2),
    "representation": lambda net, x: sg.representation(net, x, 1, RULE),
    "predict": predict,
    "metrics": base.logits,
    "attacks": lambda net, x: attacks._logits(net, x),
    "sharpness": lambda net, x: sharpness._loss(net(x), LABELS, 3),
}


@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("name", LOOKS)
def test_the_refusal_names_the_shapes(name, how):
    found = (
        r"\(.*\) for \d+" if name == "integrated_gradients" else f"{SHAPES[how]} for 3"
    )  # of 32 points for each image
    with pytest.raises(sg.SoftgateError, match=rf"returns Tensor {found} image\(s\)"):
        LOOKS[name](Crops(how), images())


@pytest.mark.parametrize("how", ["more", "fewer", "mean"])
def test_paths_name_the_shapes_too(how):
    net, x = Crops(how), images()
    gates = sg.paths.record(net, x)
    with pytest.raises(sg.SoftgateError, match=rf"returns {SHAPES[how]} for 3 image"):
        sg.paths.run(net, x, gates)
    with pytest.raises(sg.SoftgateError, match="no sum of paths for each image"):
        sg.paths.kernel(net, x, x)
