"""The network of a run: one of `softgate.models` by its name, or any `nn.Module` by its target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator
from torch import nn

from softgate import models, targets
from softgate.classes import Classes, Match
from softgate.errors import SoftgateError, require
from softgate.models.gated import GatedNetwork
from softgate.models.gated_config import GatedConfig
from softgate.models.gated_options import Gating
from softgate.models.networks import Architecture, NetworkConfig
from softgate.options import Options, Says

OWN = ("name", "weights")
"""Keys under `model.` that are softgate's beside a target; all others are the target's arguments."""


class TargetNetwork(Options):
    """The options of `model=` with a `_target_`: a class or function that makes the network, and its arguments."""

    at: ClassVar[str] = "model"
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    target: str = Field(alias="_target_", description="dotted name of a class or a function that gives an nn.Module")
    name: str | None = Field(None, description="what it is called; null is the target's last part")
    weights: Annotated[str | None, Says("a file with a state dict, or null is needed")] = Field(
        None, description="a file that the network begins with; null is fresh weights"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = targets.check(self.plain_target, "model", nn.Module)
        filled = ["num_classes"] if targets.takes(found, "num_classes") else []
        targets.check_arguments(self.plain_target, "model", filled)
        return self

    @property
    def plain_target(self) -> dict[str, Any]:
        """`_target_` and the arguments."""
        return {"_target_": self.target, **(self.model_extra or {})}

    def takes(self, name: str) -> bool:
        """Whether the target has an argument of that name."""
        return targets.takes(targets.check(self.plain_target, "model"), name)

    @property
    def called(self) -> str:
        """The network's name."""
        return self.name or self.target.rpartition(".")[2]


def read_network(given: Any) -> Any:
    """The options of `model=`, of either kind."""
    if isinstance(given, Mapping) and targets.KEY in given:
        return TargetNetwork.read(given)
    if isinstance(given, Mapping) and "base" in given:
        return GatedConfig.read(given)
    return given if isinstance(given, Options) else NetworkConfig.read(given)


def of_run(options: NetworkConfig | TargetNetwork, size: int, channels: int) -> dict[str, Any]:
    """What a checkpoint keeps of a network: enough to build it anew.

    Args:
        options: Those of `model=`.
        size: Pixels a side of the images, which the stem depends on.
        channels: Of the images.
    """
    if isinstance(options, TargetNetwork):
        grey = {"channels": channels} if channels != 3 and "channels" not in options.plain_target else {}
        return {**options.plain_target, **(grey if options.takes("channels") else {}), "name": options.called}
    stem = models.resolve_stem(options.stem, size, options.weights, options.full_name)
    transform = models.needs_transformed_input(options.full_name, options.weights)
    found = {"name": options.full_name, "stem": stem, "transform_input": transform}
    own: dict[str, Any] = {
        "size": models.sized(options.full_name, stem, size),
        "width": options.width,
        "depth": options.depth,
    }
    usual = {"size": None, "width": 1.0, "depth": 1.0, "channels": 3, "gated": None}
    if isinstance(options, GatedConfig):
        own |= {"size": size, "gated": options.gating_options}
    later = {key: value for key, value in {"channels": channels, **own}.items() if value != usual[key]}
    return found | later  # networks of before stay as they were


def begin_with(net: nn.Module, options: NetworkConfig | TargetNetwork, data: Classes) -> Match | None:
    """Loads `model.weights`, where they are given, into a network for the data's classes.

    Returns:
        Where the classes were found among the weights'; None where that is not known, or there are no weights.

    Raises:
        SoftgateError: As `models.begin_with`; for a target whose weights are no file, do not fit, or are of others.
    """
    if isinstance(options, GatedConfig) and options.feature_weights is not None and isinstance(net, GatedNetwork):
        _take_features(net.feature, options)
    if options.weights is None:
        return None
    if isinstance(options, NetworkConfig) and not isinstance(options, GatedConfig):
        return models.begin_with(net, options, data)
    start = f"model.weights={options.weights}"
    require(Path(options.weights).expanduser().is_file(), f"{start}: there is no such file; a target's come from one.")
    state, known = models.read_file(options.weights)
    own = net.state_dict()
    odd = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    said = f"not the weights of {options.called}: {len(odd)} names or shapes differ, such as {''.join(odd[:1])}"
    require(not odd, f"{start}: {said}.")
    if known is not None:
        require(list(known.names) == list(data.names), f"{start}: its classes are not the data's, or in another order.")
    net.load_state_dict(state)
    return None


def _take_features(net: nn.Module, options: GatedConfig) -> None:
    """Loads `model.feature_weights` into a feature network."""
    start, own = f"model.feature_weights={options.feature_weights}", net.state_dict()
    try:
        state, _ = models.read_file(str(options.feature_file))
    except SoftgateError as error:
        raise SoftgateError(str(error).replace(f"model.weights={options.feature_file}", start)) from None
    odd = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    said = f"not the weights of {options.full_name}: {len(odd)} names or shapes differ, such as {''.join(odd[:1])}"
    require(not odd, f"{start}: {said}; the run must be of model.base, for the same images and classes.")
    net.load_state_dict(state)


def check_output(net: nn.Module, name: str, size: int, channels: int, classes: int) -> None:
    """Raises `SoftgateError` if a network does not take images of a size, or does not give logits [B, classes]."""
    logits = models.check_size(net, name, size, channels)
    shape = tuple(getattr(logits, "shape", ()))
    said = f"model={name}: it returns {shape or type(logits).__name__} for one image; logits (1, {classes}) are needed."
    require(shape == (1, classes), said)


def build(architecture: Mapping[str, Any], num_classes: int, option: str = "model") -> nn.Module:
    """Builds a network with fresh weights from what a checkpoint keeps of it.

    Args:
        architecture: `Architecture` as plain data, or `_target_`, its arguments and a `name`.
        num_classes: Size of the last layer; a target is told so where it has an argument `num_classes`.
        option: What names the target, for errors.

    Raises:
        SoftgateError: If there is no such network, or the target is not trusted, fails or gives none.
    """
    if targets.KEY not in architecture:
        built = Architecture.read(architecture)
        return _plain(built, num_classes) if built.gated is None else _gated(built, built.gated, num_classes)
    given = {key: value for key, value in architecture.items() if key != "name"}
    targets.check_trusted(given, option)
    net: nn.Module = targets.make(given, option, nn.Module, num_classes=num_classes)
    wanted = given.get("num_classes", num_classes)
    require(wanted == num_classes, f"model.num_classes={wanted}: the data has {num_classes} classes.")
    return net


def title(architecture: Mapping[str, Any]) -> str:
    """The network in a few words: its name, and what a gated one's gates are."""
    name = str(architecture["name"])
    if architecture.get("gated") is None:
        return name
    gating = Gating.read(architecture["gated"])
    kind = "dgn" if gating.gating == "relu" else "dlgn"
    gates = "hard gates" if gating.hard else f"soft gates, beta {gating.beta:g}"
    fed = ", values fed ones" if gating.value_input == "ones" else ""
    return f"{kind} of {name} ({gating.regime}, {gates}{fed})"


def _plain(built: Architecture, num_classes: int) -> nn.Module:
    return models.build(built.name, num_classes, built.stem, built.transform_input, built.channels, built.scale)


def _gated(built: Architecture, gating: Gating, num_classes: int) -> nn.Module:
    """A feature network, then a value network, each with weights of its own unless these are to be equal."""
    feature, value = _plain(built, num_classes), _plain(built, num_classes)
    if gating.value_weights == "dependent":
        value.load_state_dict(feature.state_dict())
    size = built.size or models.SMALL_BELOW
    try:
        return GatedNetwork(feature, value, (built.channels, size, size), gating)
    except SoftgateError as error:
        raise SoftgateError(f"model.base={built.name}: {error}") from None
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SoftgateError(
            f"data.size={size}: model.base={built.name} does not take such images ({reason})."
        ) from None
