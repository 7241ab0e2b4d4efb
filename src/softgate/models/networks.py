"""Backbones by name: torchvision's, timm's, and small ones of our own; a stem for small images, one channel or three.

Everything here speaks in the options a user sets (`model.name`, `model.weights`, ...), because its errors do.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from softgate.errors import SoftgateError, require, unknown
from softgate.models import scalable, small_images, timm_networks
from softgate.models.gated_options import Gating
from softgate.models.scalable import Scale
from softgate.options import Count, Options, Says, Words

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

STEMS = ("auto", "imagenet", "small", "cifar")
SMALL_BELOW = 96
"""Images of fewer pixels a side get the small stem unless `model.stem` says otherwise."""


CONFIGURED = (
    *("resnet18", "resnet34", "resnet50", "vgg11", "vgg11_bn", "densenet121", "squeezenet1_1", "googlenet"),
    *("inception_v3", "resnet20", "resnet32", "resnet56", "plain8", "plain20", "mlp"),
    *("vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0"),
)
"""Networks with a file in `conf/model/`, known without looking at all that there are."""

SCALED = (*scalable.NETWORKS, *small_images.SCALED)
"""Networks that `model.width` and `model.depth` are for."""


def names() -> list[str]:
    """Every classifier that torchvision has, and softgate's own for small images."""
    import torchvision  # takes seconds, which a command that is refused need not wait

    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return [*found, *small_images.KNOWN]


def check_name(name: str, option: str = "model.name") -> None:
    """Raises `SoftgateError` for a full name that there is no network of; `option` named it."""
    if name.startswith(timm_networks.PREFIX):
        timm_networks.check(name.removeprefix(timm_networks.PREFIX), option)
    elif name not in CONFIGURED and name not in names():
        raise unknown(option, name, names())


Factor = Annotated[float, Field(gt=0, le=4), Says("a factor above 0 and up to 4 is needed")]


class NetworkConfig(Options):
    """The options of `model=`; builds no network."""

    at: ClassVar[str] = "model"

    name: str = Field(description="a classifier of torchvision.models, one of softgate's, or of timm")
    library: Literal["torchvision", "timm"] = Field("torchvision", description="where the name is looked up")
    stem: str = Field("auto", description="one of `STEMS`; auto is small below 96 px, else as published")
    weights: Annotated[str | None, Says("the name of torchvision's weights, a file, or null is needed")] = Field(
        None, description="what the network begins with; null is fresh weights"
    )
    new_head: bool = Field(False, description="train a new last layer where the weights have other classes")
    classes: Annotated[
        Literal["data", "imagenet"] | Words | None,
        Says("data, imagenet or a list of names is needed, or null for what the weights say"),
    ] = Field(None, description="the classes of the weights' last layer, in order, of a file that does not say them")
    num_classes: Annotated[Count | None, Says("a whole number >= 1 is needed, or null for the data's")] = Field(
        None, description="classes of the last layer"
    )

    width: Factor = Field(1.0, description="a factor on channels and heads; for the networks of `SCALED`")
    depth: Factor = Field(1.0, description="a factor on layers; for the same")

    @property
    def called(self) -> str:
        """The network's name."""
        return self.name

    @property
    def full_name(self) -> str:
        """The name by which everything here knows the network: "timm/resnet26" for one of timm."""
        prefix = timm_networks.PREFIX if self.library == "timm" else ""
        return prefix + self.name.removeprefix(prefix)

    @model_validator(mode="after")
    def _exists(self) -> Self:
        check_name(self.full_name)
        self._check_sizes()
        if self.weights is not None and not Path(self.weights).expanduser().is_file():
            check_published(self.full_name, self.weights)
        return self

    def _check_sizes(self) -> None:
        name = self.full_name.removeprefix(timm_networks.PREFIX)
        if self.stem not in STEMS:
            raise unknown("model.stem", self.stem, STEMS)
        fits = self.full_name not in small_images.KNOWN or self.stem in ("auto", "imagenet")
        require(fits, f"model.stem={self.stem}: {name} is for small images as it is; auto is needed.")
        for option in ("width", "depth"):
            given, there = getattr(self, option), self.full_name in SCALED
            known = ", ".join(name.removeprefix(timm_networks.PREFIX) for name in SCALED)
            require(given == 1 or there, f"model.{option}={given:g}: {name} has none; these have: {known}.")


class Architecture(Options):
    """What is built, as a checkpoint keeps it: enough to build the same network anew."""

    at: ClassVar[str] = "model"

    name: str = Field(description="the full name: any classifier of torchvision.models, softgate's, timm/NAME")
    stem: str = Field(description="imagenet, small or cifar")
    transform_input: bool = Field(False, description="GoogLeNet's and Inception's option for published weights")
    channels: Literal[1, 3] = Field(3, description="of the images: 3 for colours, 1 for grey")
    size: Count | None = Field(None, description="pixels a side, of networks that are built or tried for one size")
    width: Factor = Field(1.0, description="a factor on channels and heads")
    depth: Factor = Field(1.0, description="a factor on layers")
    gated: Gating | None = Field(None, description="of a deep gated network, whose two networks are of this kind")

    @property
    def scale(self) -> Scale:
        """What it is built for."""
        return Scale(self.stem == "small", self.size, self.width, self.depth)


def build(
    name: str,
    num_classes: int,
    stem: str = "imagenet",
    transform_input: bool = False,
    channels: int = 3,
    scale: Scale | None = None,
) -> nn.Module:
    """Builds a classifier with fresh weights.

    Args:
        name: A torchvision classifier.
        num_classes: Size of the last layer.
        stem: "imagenet" as published; "small" gives the first convolution stride 1 and a kernel of at most 3 x 3;
            "cifar" also takes out the first max pool. Networks that cut images into patches get smaller patches.
        transform_input: GoogLeNet's and Inception's option for weights that were made elsewhere.
        channels: Of the images. With 1 the network begins as one that sees grey images as colours: the weights of the
            three channels are added up.
        scale: Size of the images, width and depth, of the networks of `SCALED`.

    Returns:
        The network, without auxiliary heads.

    Raises:
        SoftgateError: For an unknown name or stem, or a stem the network has no place for.
    """
    check_name(name)
    if stem not in STEMS[1:]:
        raise unknown("model.stem", stem, STEMS)
    if name in small_images.KNOWN:
        return small_images.KNOWN[name](num_classes, channels, scale or Scale())
    if name in scalable.NETWORKS:
        require(stem != "cifar", f"model.stem=cifar: {name} has no max pool to take out; use model.stem=small.")
        made = scalable.NETWORKS[name](name, num_classes, replace(scale or Scale(), small=stem == "small"))
        if channels == 1:
            _take_grey(made, name)
        return made
    if name.startswith(timm_networks.PREFIX):
        net: nn.Module = timm_networks.build(name.removeprefix(timm_networks.PREFIX), num_classes, channels)
        if stem != "imagenet":
            _shrink_stem(net, name, stem)
        return net
    import torchvision

    settings: dict[str, Any] = {"num_classes": num_classes}
    takes = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True, "transform_input": transform_input}
    elif "init_weights" in takes:
        settings["init_weights"] = True
    net = torchvision.models.get_model(name, weights=None, **settings)
    if stem != "imagenet":
        _shrink_stem(net, name, stem)
    if channels == 1:
        require(not transform_input, f"data.channels=1: the published weights of {name} take three channels.")
        _take_grey(net, name)
    return net


def resolve_stem(stem: str, size: int, weights: str | None, name: str = "") -> str:
    """Turns "auto" into a stem: small below 96 px, but as published for weights to fit in and networks of small images.

    Args:
        stem: One of `STEMS`.
        size: Pixels a side.
        weights: Those of the option, or None.
        name: The network's full name.
    """
    if stem not in STEMS:
        raise unknown("model.stem", stem, STEMS)
    if stem != "auto":
        return stem
    unknown_stem = name.startswith(timm_networks.PREFIX) and name not in scalable.NETWORKS
    as_published = name in small_images.KNOWN or unknown_stem or weights is not None
    return "imagenet" if as_published or size >= SMALL_BELOW else "small"


def sized(name: str, stem: str, size: int) -> int | None:
    """The size of images that a network is built for; None where it takes any.

    Args:
        name: The network's full name.
        stem: Resolved.
        size: Pixels a side.
    """
    return (
        size
        if name in (*scalable.SIZED, *small_images.SIZED) or (stem == "small" and name in scalable.NETWORKS)
        else None
    )


def needs_transformed_input(name: str, weights: str | None) -> bool:
    """Whether a network must rescale its input: GoogLeNet and Inception do with weights published by torchvision."""
    return name in ("googlenet", "inception_v3") and weights is not None and not Path(weights).expanduser().is_file()


def check_size(net: nn.Module, name: str, size: int, channels: int = 3) -> Any:
    """What the network returns for one image of this size; raises `SoftgateError` if it cannot take it."""
    training = net.training
    try:
        with torch.no_grad():
            return net.eval()(torch.zeros(1, channels, size, size))
    except SoftgateError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SoftgateError(f"data.size={size}: model={name} does not take images of that size ({reason}).") from None
    finally:
        net.train(training)


def _take_grey(net: nn.Module, name: str) -> None:
    """Has the first convolution take one channel."""
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    fits = first is not None and first.in_channels == 3 and first.groups == 1
    require(fits, f"data.channels=1: {name} does not begin with a convolution of three channels.")
    assert first is not None
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1


def check_published(name: str, weights: str) -> None:
    """Raises `SoftgateError` if nobody publishes weights of that name for the network; fetches none."""
    if name.startswith(timm_networks.PREFIX):
        fits = weights == "pretrained"
        require(fits, f"model.weights={weights}: no such file; of timm's networks there is 'pretrained'.")
    elif name in small_images.KNOWN:
        raise SoftgateError(f"model.weights={weights}: no such file, and nobody publishes weights of {name}.")
    else:
        published(name, weights)


def published(name: str, weights: str) -> WeightsEnum:
    """Torchvision's weights of a name."""
    import torchvision

    enum = torchvision.models.get_model_weights(name)
    known = list(enum.__members__)
    if weights not in known:
        raise SoftgateError(f"model.weights={weights}: no such file, and {name} has only {', '.join(known)}.")
    return enum[weights]


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
