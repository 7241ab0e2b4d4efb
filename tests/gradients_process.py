"""One of two gloo processes that train a small network, and writes how far its gradients are from a single process's.

Run by tests/sites/test_backward_passes.py, as `python gradients_process.py RANK FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import reference
import softgate as sg


class Net(nn.Module):
    """Two convolutions, a pooling and a head that has no part in the output; without batch statistics."""

    def __init__(self, checkpointed=None):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)).double()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)).double()
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.stem(x)
        x = x + (self.body(x) if self.checkpointed is None else checkpoint(self.body, x, **self.checkpointed))
        return F.relu(x - 0.1).mean((2, 3))


class Unused(Net):
    """The same with parameters that get no gradient."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2).double()


CASES = {
    "plain": (Net, {}, {}),
    "static_graph": (Net, {}, {"static_graph": True}),
    "find_unused_parameters": (Unused, {}, {"find_unused_parameters": True}),
    "gradient_as_bucket_view": (Net, {}, {"gradient_as_bucket_view": True}),
    "checkpointed": (Net, {"checkpointed": {"use_reentrant": False}}, {}),
    "static_graph, checkpointed": (Net, {"checkpointed": {"use_reentrant": True}}, {"static_graph": True}),
}
RUNS = [(name, "before wrapping") for name in CASES] + [("plain", "after wrapping"), ("plain", "to the wrapper")]


def apart(kind, settings, wrapping, attached, rank):
    """The largest distance of a gradient from that of one process on all images, over three steps."""
    x = torch.randn(8, 3, 11, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, twin = kind(**settings), Unused() if kind is Unused else Net()
    if attached == "before wrapping":
        sg.attach(model, sg.Surrogate())
    wrapper = DistributedDataParallel(model, **wrapping)
    if attached != "before wrapping":
        sg.attach(model if attached == "after wrapping" else wrapper, sg.Surrogate())
    worst = 0.0
    for _ in range(3):
        wrapper.zero_grad()
        twin.zero_grad()
        wrapper(x[rank::2]).square().mean().backward()
        with reference.patched(reference.sigmoid, 0.3):
            twin(x).square().mean().backward()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            if other.grad is not None:
                assert float(other.grad.abs().sum()) > 0
                worst = max(worst, reference.distance(one.grad, other.grad))
    return worst


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {f"{name}, attached {where}": apart(*CASES[name], where, rank) for name, where in RUNS}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
