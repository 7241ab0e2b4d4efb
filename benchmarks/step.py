"""Time of one training step, as a ratio to vanilla: `uv run benchmarks/step.py [--size 64] [--rounds 8] [--blocks]`.

On the GPU where there is one. `--bf16` is autocast with float32 weights; `--compile` compiles every arm alike, and
leaves `share=False` and two passes out.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch
from common import BLOCK_NETWORKS, DEVICE, NETWORKS, alternate, arms_of, network, ratio, report

ATTACHED = ("softgate", "share=False", "two passes")
COMPILED = ("vanilla", "softgate", "published")


def step(name: str, arm: str, given: argparse.Namespace):
    size, batch = given.size, given.batch
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    net = network(name, size, DEVICE).to(memory_format=layout)
    x = torch.randn(batch, 3, size, size).to(DEVICE, memory_format=layout)
    labels, arms = (torch.arange(batch) % 10).to(DEVICE), arms_of(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    dtype = torch.bfloat16 if given.bf16 else None

    if arm in ATTACHED:
        arms[arm](net)
    forward = torch.compile(net) if given.compile else net

    def once() -> None:
        with ExitStack() as stack:
            if arm not in ATTACHED:  # softgate stays attached, as in training; the listing patches F for each step
                stack.enter_context(arms[arm](net))
            optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype, enabled=given.bf16):
                loss = torch.nn.functional.cross_entropy(forward(x), labels)
            loss.backward()
            optimizer.step()

    def run() -> None:
        for _ in range(given.steps):
            once()

    return run


def measured(name: str, given: argparse.Namespace) -> dict[str, object]:
    """A row: each arm's time as a ratio to vanilla's, and vanilla's in milliseconds."""
    arms = [arm for arm in arms_of(name) if not given.compile or arm in COMPILED]
    torch._dynamo.reset()
    times = alternate({arm: step(name, arm, given) for arm in arms}, given.rounds)
    vanilla = sorted(times["vanilla"])[len(times["vanilla"]) // 2] / given.steps
    return {"network": name, "vanilla, ms": f"{1e3 * vanilla:.2f}"} | {arm: ratio(times, arm) for arm in arms[1:]}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--steps", type=int, default=1, help="steps that are timed together")
    options.add_argument("--bf16", action="store_true")
    options.add_argument("--channels-last", action="store_true")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--blocks", action="store_true", help="transformers and the like, under surrogate=semantic")
    options.add_argument("--networks", nargs="+")
    options.add_argument("--out", type=Path, default=Path("step.json"))
    given = options.parse_args()
    rows = [measured(name, given) for name in given.networks or (BLOCK_NETWORKS if given.blocks else NETWORKS)]
    how = [
        "bf16 autocast" if given.bf16 else "fp32",
        *["channels last"] * given.channels_last,
        *["compiled"] * given.compile,
        f"{given.size} px, batch {given.batch}, median of {given.rounds}",
    ]
    report(f"training step / vanilla, {', '.join(how)}", rows, given.out)
