"""Backbones by name: any torchvision classifier, a stem for small images, weights from torchvision or a file.

Everything here speaks in the options a user sets (`model.name`, `model.weights`, ...), because its errors do.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
import torchvision
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from softgate import files
from softgate.errors import SoftgateError, require, unknown
from softgate.options import Count, Options, Says

STEMS = ("auto", "imagenet", "small", "cifar")
SMALL_BELOW = 96
"""Images of fewer pixels a side get the small stem unless `model.stem` says otherwise."""

OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in DenseNet's published files, from before torchvision renamed its layers: `norm.1.` is `norm1.` now."""


def names() -> list[str]:
    """Every classifier that torchvision has."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def imagenet_classes() -> list[str]:
    """The names of ImageNet's thousand classes, in the order in which published networks have them."""
    names: list[str] = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    return names


def imagenet_indexes(classes: Sequence[str]) -> list[int]:
    """Where each class of a data set stands among ImageNet's thousand, by its name; tench is 0, parachute 701.

    Raises:
        SoftgateError: For a class that is not one of them.
    """
    names = imagenet_classes()
    index = {name.lower(): names.index(name) for name in names}
    for name in classes:
        require(
            name.lower() in index,
            f"model.weights: the weights have ImageNet's 1000 classes, and '{name}' of the data is not one of them.",
        )
    return [index[name.lower()] for name in classes]


class NetworkConfig(Options):
    """The options of `model=`; builds no network."""

    at: ClassVar[str] = "model"

    name: str = Field(description="any classifier of torchvision.models")
    stem: str = Field("auto", description="one of `STEMS`; auto is small below 96 px, else as published")
    weights: Annotated[str | None, Says("the name of torchvision's weights, a file, or null is needed")] = Field(
        None, description="what the network begins with; null is fresh weights"
    )
    new_head: bool = Field(False, description="train a new last layer where the weights have other classes")
    num_classes: Annotated[Count | None, Says("a whole number >= 1 is needed, or null for the data's")] = Field(
        None, description="classes of the last layer"
    )

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.name not in names():
            raise unknown("model.name", self.name, names())
        if self.stem not in STEMS:
            raise unknown("model.stem", self.stem, STEMS)
        if self.weights is not None and not Path(self.weights).expanduser().is_file():
            _published(self.name, self.weights)
        return self


class Architecture(Options):
    """What is built, as a checkpoint keeps it: enough to build the same network anew."""

    at: ClassVar[str] = "model"

    name: str = Field(description="any classifier of torchvision.models")
    stem: str = Field(description="imagenet, small or cifar")
    transform_input: bool = Field(False, description="GoogLeNet's and Inception's option for published weights")


def build(name: str, num_classes: int, stem: str = "imagenet", transform_input: bool = False) -> nn.Module:
    """Builds a classifier with fresh weights.

    Args:
        name: A torchvision classifier.
        num_classes: Size of the last layer.
        stem: "imagenet" as published; "small" gives the first convolution stride 1 and a kernel of at most 3 x 3;
            "cifar" also takes out the first max pool.
        transform_input: GoogLeNet's and Inception's option for weights that were made elsewhere.

    Returns:
        The network, without auxiliary heads.

    Raises:
        SoftgateError: For an unknown name or stem, or a stem the network has no place for.
    """
    if name not in names():
        raise unknown("model.name", name, names())
    if stem not in STEMS[1:]:
        raise unknown("model.stem", stem, STEMS)
    settings: dict[str, Any] = {"num_classes": num_classes}
    takes = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True, "transform_input": transform_input}
    elif "init_weights" in takes:
        settings["init_weights"] = True
    net: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    if stem != "imagenet":
        _shrink_stem(net, name, stem)
    return net


def resolve_stem(stem: str, size: int, weights: str | None) -> str:
    """Turns "auto" into a stem: small below 96 px, but as published where published weights are to fit in."""
    if stem not in STEMS:
        raise unknown("model.stem", stem, STEMS)
    if stem != "auto":
        return stem
    return "small" if size < SMALL_BELOW and weights is None else "imagenet"


def needs_transformed_input(name: str, weights: str | None) -> bool:
    """Whether a network must rescale its input: GoogLeNet and Inception do with weights published by torchvision."""
    return name in ("googlenet", "inception_v3") and weights is not None and not Path(weights).expanduser().is_file()


def check_size(net: nn.Module, name: str, size: int) -> None:
    """Raises `SoftgateError` if the network cannot take images of this size."""
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, size, size))
    except SoftgateError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SoftgateError(f"data.size={size}: model={name} does not take images of that size ({reason}).") from None
    finally:
        net.train(training)


def load_weights(net: nn.Module, name: str, weights: str, num_classes: int, new_head: bool = False) -> None:
    """Loads weights into a network made by `build`, in place.

    Args:
        net: The network.
        name: Its torchvision name.
        weights: A torchvision weights name such as "IMAGENET1K_V1" or "DEFAULT", or a file with a state dict or a
            softgate checkpoint; files are read with `weights_only`.
        num_classes: Size of the network's last layer.
        new_head: Keep the network's own, fresh last layer where the weights have another number of classes.

    Raises:
        SoftgateError: If there are no such weights, the file is not a state dict, or it does not fit the network.
    """
    option = f"model.weights={weights}"
    state = {
        OLD_DENSENET.sub(r"\1\2", key): value
        for key, value in _read(name, weights).items()
        if not key.startswith(("aux", "AuxLogits."))
    }
    own = net.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    # BatchNorm's counter of batches is absent in old files and plays no part in evaluation.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}"
        more = len(missing) + len(surplus) - 1
        raise SoftgateError(f"{option}: not the weights of {name}: it {what}, and {more} more names differ.")
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    head = [key for key in wrong if own[key].shape[1:] == state[key].shape[1:] and len(own[key]) == num_classes]
    if wrong and wrong == head:
        classes = len(state[head[0]])
        require(
            new_head,
            f"{option}: the weights have {classes} classes and the data has {num_classes}; "
            f"set model.new_head=true to train a new last layer.",
        )
        state |= {key: own[key] for key in head}
    elif wrong:
        key = wrong[0]
        raise SoftgateError(
            f"{option}: not the weights of this {name}: {key} has shape {tuple(state[key].shape)} where "
            f"{tuple(own[key].shape)} is needed; model.stem must be that of the weights (published ones: imagenet)."
        )
    net.load_state_dict(state, strict=False)


def _published(name: str, weights: str) -> WeightsEnum:
    """Torchvision's weights of a name."""
    enum = torchvision.models.get_model_weights(name)
    known = list(enum.__members__)
    if weights not in known:
        raise SoftgateError(f"model.weights={weights}: no such file, and {name} has only {', '.join(known)}.")
    return enum[weights]


def _read(name: str, weights: str) -> dict[str, Tensor]:
    path = Path(weights).expanduser()
    if not path.is_file():
        found = _published(name, weights)
        try:
            published: dict[str, Tensor] = found.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a download with a wrong checksum
            raise SoftgateError(f"model.weights={weights}: {found.url}: {error}.") from None
        return published
    try:
        state = files.load(path)
    except Exception as error:  # whatever a file that is no checkpoint makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SoftgateError(f"model.weights={weights}: not a file of plain tensors ({reason}).") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = {key.removeprefix("net."): value for key, value in state["state_dict"].items()}
    tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    require(tensors, f"model.weights={weights}: a state dict (names to tensors) is needed.")
    plain: dict[str, Tensor] = state
    return plain


def _shrink_stem(net: nn.Module, name: str, stem: str) -> None:
    first = next(((path, m) for path, m in net.named_modules() if isinstance(m, nn.Conv2d)), None)
    require(first is not None, f"model.stem={stem}: {name} has no convolution to change; use model.stem=imagenet.")
    assert first is not None
    path, conv = first
    if max(conv.stride) > 2 or conv.groups != 1:
        raise SoftgateError(f"model.stem={stem}: {name} has no stem of that kind; use model.stem=imagenet.")
    if max(conv.stride) == 2:
        kernel = min(3, int(conv.kernel_size[0]))
        bias = conv.bias is not None
        small = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, 1, kernel // 2, bias=bias)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        if small.bias is not None:
            nn.init.zeros_(small.bias)
        net.set_submodule(path, small)
    if stem == "cifar":
        pool = next((path for path, m in net.named_modules() if isinstance(m, nn.MaxPool2d)), None)
        require(pool is not None, f"model.stem=cifar: {name} has no max pool to take out; use model.stem=small.")
        assert pool is not None
        net.set_submodule(pool, nn.Identity())
