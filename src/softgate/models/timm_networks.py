"""timm's networks by name: `timm/resnet26`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from softgate.errors import SoftgateError

PREFIX = "timm/"


def library() -> Any:
    """The module timm.

    Raises:
        SoftgateError: If it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise SoftgateError(
            "model=timm: timm is not installed; it comes with the extra: pip install 'softgate[timm]'."
        ) from None
    return timm


def check(name: str, option: str = "model.name") -> None:
    """Raises `SoftgateError` for a name that timm does not have, or one that only fetches what others have put up.

    Args:
        name: Without `PREFIX`.
        option: What named it.
    """
    timm = library()
    if not timm.is_model(name.partition(".")[0]):
        near = get_close_matches(name, timm.list_models(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SoftgateError(f"{option}={name}: timm {timm.__version__} has no network of that name.{hint}")


def build(name: str, num_classes: int, channels: int, **settings: Any) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: Without `PREFIX`.
        num_classes: Size of the last layer.
        channels: Of the images.
        settings: Of timm's function for it.
    """
    check(name)
    settings |= {"num_classes": num_classes, "in_chans": channels}
    try:
        net: nn.Module = library().create_model(name, pretrained=False, **settings)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SoftgateError(f"model.name={name}: timm cannot build it ({reason}).") from None
    return net


def pretrained(name: str) -> Mapping[str, Tensor]:
    """The weights that timm publishes for a network, fetched where they are not there yet.

    Args:
        name: Without `PREFIX`; `NAME.TAG` chooses among several.
    """
    check(name)
    try:
        found: Mapping[str, Tensor] = library().create_model(name, pretrained=True).state_dict()
    except Exception as error:  # no network, none published, or a download with a wrong checksum
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SoftgateError(
            f"model.weights=pretrained: timm's weights of {name} are not to be had ({reason})."
        ) from None
    return found
