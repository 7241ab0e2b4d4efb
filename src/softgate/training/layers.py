"""The table of `print_model=true`: layers with their sizes, and the call sites with what the rule does at each."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.utilities.model_summary.model_summary import ModelSummary

from softgate.surrogate.rule import Surrogate
from softgate.surrogate.selection import BLOCKS, NORMS, POOLS, SMOOTH, Kind
from softgate.tables import Table
from softgate.training.module import SoftgateModule


def layers(module: SoftgateModule, channels: int, size: int) -> Table:
    """Every layer with its output size and parameters, by Lightning's own summary; nothing of the network changes.

    Args:
        module: The network.
        channels: Of its images.
        size: Of its images, in pixels.
    """
    example = torch.zeros(1, channels, size, size, device=module.device)
    before, module.example_input_array = module.example_input_array, example
    try:
        with torch.random.fork_rng(devices=[]):
            found = ModelSummary(module, max_depth=-1)  # in eval mode, and back in the mode of before
    finally:
        module.example_input_array = before
    each: Any = zip(found.layer_names, found.layer_types, found.out_sizes, found.param_nums, strict=True)
    kept = {name.removeprefix("net."): layer for name, *layer in each if name.startswith("net.")}
    leaves = {name for name, child in module.net.named_modules() if not any(child.children())}
    rows = [
        [name, kind, " × ".join(map(str, out[1:])) if isinstance(out, list) and out else "–", f"{count:,}"]
        for name, (kind, out, count) in kept.items()
        if name in leaves
    ]
    total = sum(p.numel() for p in module.net.parameters())
    return Table(
        ["layer", "type", "output", "parameters"], [*rows, ["all", "", "", f"{total:,}"]], "layers", align="lllr"
    )


def call_sites(module: SoftgateModule) -> Table:
    """Every call site with its kind and what gradient it has under the rule in force now."""
    table, rule = module.sites.table(), module.sites.rule
    covered = [(site.name, str(site.kind)) for site in table if site.covered]
    chosen = rule.sites.choose(covered) if rule is not None and covered else set()
    rows = []
    for site in table:
        if not site.covered:
            said = "its own, which no rule changes"
        elif rule is None:
            said = "the true one"
        elif site.name not in chosen:
            said = "the true one, left out by surrogate.sites"
        else:
            said = _gradient(rule, site.kind)
        rows.append([site.name, str(site.kind), said])
    return Table(["call site", "kind", "gradient"], rows, "call sites", align="lll")


def _gradient(rule: Surrogate, kind: str) -> str:
    if not rule.softens(kind):
        return "the true one"
    part = f"pool {rule.pool}" if kind in POOLS else f"gate {rule.gate}"
    if kind in SMOOTH:
        part = f"{rule.activation}"
    elif kind in BLOCKS:
        part = f"{rule.attention}" if kind == Kind.ATTENTION else f"{'statistics' if kind in NORMS else 'gate'} held"
    usual, keys = Surrogate(), ("gain", "scale", "mix")
    other = [f"{key} {getattr(rule, key)}" for key in keys if getattr(rule, key) != getattr(usual, key)]
    return ", ".join([part, *other])
