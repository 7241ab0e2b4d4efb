"""Bytes saved for the backward pass, as a ratio to vanilla with in-place ReLU: `uv run benchmarks/memory.py`."""

import argparse
from pathlib import Path

import torch
from common import ARMS, NETWORKS, network, report


def saved_bytes(name: str, arm: str, size: int, batch: int) -> int:
    """Bytes of the distinct storages that autograd holds after a forward pass, parameters left out."""
    net, x = network(name), torch.randn(batch, 3, size, size)
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with ARMS[arm](net), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
    assert out.requires_grad  # the graph, and with it every storage counted, is alive until here
    return sum(held.values())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--networks", nargs="+", default=NETWORKS)
    options.add_argument("--out", type=Path, default=Path("memory.json"))
    given = options.parse_args()
    rows = []
    for name in given.networks:
        found = {arm: saved_bytes(name, arm, given.size, given.batch) for arm in ARMS}
        rows.append({"network": name} | {arm: found[arm] / found["vanilla"] for arm in ARMS if arm != "vanilla"})
    report(f"saved activation bytes / vanilla, fp32, {given.size} px, batch {given.batch}", rows, given.out)
