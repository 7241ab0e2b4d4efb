"""What layers of a network give during one forward pass, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from softgate.errors import SoftgateError, require


@dataclass
class Outputs:
    """What was given since the last `clear`.

    Attributes:
        names: The layers that are listened to; more may be added between passes.
        kept: Name of one of these to its output, of the first call where there are several.
        order: All layers that were called, in the order in which they ended.
    """

    names: set[str]
    kept: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets everything, before another pass."""
        self.kept.clear()
        self.order.clear()


@contextmanager
def listening(model: nn.Module, names: set[str]) -> Iterator[Outputs]:
    """Keeps what the named layers give while the block runs; nothing stays on the model after it.

    What is kept is a copy, as an activation may write into its input.

    Args:
        model: The network, one that nobody else runs.
        names: Of layers, as `model.named_modules()` has them.
    """
    outputs = Outputs(names)

    def hook(name: str) -> Any:
        def keep(module: nn.Module, given: Any, output: Any) -> None:
            if name in outputs.names and name not in outputs.kept:
                plain = isinstance(output, Tensor) and output.dim() >= 2
                kind = f"{type(output).__name__} {tuple(getattr(output, 'shape', ()))}"
                require(plain, f"layer={name}: it gives {kind}; a layer that gives a tensor [B, units, ...] is needed.")
                outputs.kept[name] = output.clone()
            outputs.order.append(name)

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def require_layer(option: str, name: str, model: nn.Module) -> None:
    """Raises `SoftgateError` unless the model has a layer of that name."""
    known = [each for each, _ in model.named_modules() if each]
    if name not in known:
        near = get_close_matches(str(name), known, n=3) or known[:3]
        raise SoftgateError(
            f"{option}={name}: the model has no such layer; model.named_modules() lists its {len(known)}, such as "
            f"{', '.join(near)}."
        )


def with_weights(model: nn.Module, names: list[str]) -> list[str]:
    """Those of the named layers that hold a weight of two dimensions or more themselves: convolutions and the like."""
    modules = dict(model.named_modules())
    return [name for name in names if any(p.dim() > 1 for p in modules[name].parameters(recurse=False))]


def units_second(output: Tensor) -> Tensor:
    """An output as [B, units, positions]: of a feature map [B, units, H, W], tokens [B, tokens, units], [B, units]."""
    if output.dim() == 3:
        return output.transpose(1, 2)
    return output.unsqueeze(2) if output.dim() == 2 else output.flatten(2)
