"""One of two gloo processes that average their per-channel scales. Run by tests/sites/test_scales.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from softgate.sites.scales import Scales


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    scales = Scales()
    for name, channels in [("b", 3), ("a", 2)][:: 1 - 2 * rank]:  # in another order on each
        z = torch.randn(4, channels, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
        scales.observe(name, z * (rank + 1), 1)
    own = scales.state_dict()
    scales.average()
    torch.save({"own": own, "averaged": scales.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
