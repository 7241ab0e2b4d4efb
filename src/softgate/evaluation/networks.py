"""Networks that no run here trained: a torchvision model with published weights or a file, on any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision
from hydra.core.hydra_config import HydraConfig
from torch import nn

from softgate import models
from softgate.classes import Classes, Match, match
from softgate.data import ImageData
from softgate.errors import require
from softgate.evaluation.config import DataChanges
from softgate.explainers.completion import completed_for
from softgate.models import NetworkConfig
from softgate.models.scalable import Scale
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule, networks
from softgate.training.networks import TargetNetwork

OSTRICH = "ostrich"
"""The paper's further target."""

UNTRAINED_SEED = 0
"""Of the random weights of a network that is given none, so that its figures can be had again."""

NORMALISING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers that bring pre-activations to about unit scale."""


@dataclass(frozen=True)
class Subject:
    """A network to look at, and where its classes are.

    Attributes:
        name: Its torchvision name.
        net: The network, in eval mode.
        names: Its classes' names.
        classes: For each class of the data, its index in the network.
        found: How they were found; None where the network is the data's own.
    """

    name: str
    net: nn.Module
    names: Sequence[str]
    classes: list[int]
    found: Match | None = None


def image_size(network: NetworkConfig | TargetNetwork, images: DataChanges) -> int:
    """`data.size` where it was typed or an experiment sets it; else what the published weights were made for."""
    typed = any(word.lstrip("+").startswith("data.size=") for word in HydraConfig.get().overrides.task)
    chosen = HydraConfig.get().runtime.choices.get("experiment")
    if typed or chosen or network.weights is None or isinstance(network, TargetNetwork):
        return int(images.values["size"])
    return 299 if network.name == "inception_v3" else 224


def build(network: NetworkConfig | TargetNetwork, data: ImageData) -> Subject:
    """Builds a network, loads its weights and finds the data's classes among its own.

    Args:
        network: A torchvision classifier.
        data: The images.

    Raises:
        SoftgateError: For weights that do not fit, a class of the data that the network does not have, or images of a
            size that it does not take.
    """
    if isinstance(network, TargetNetwork):
        return _of_target(network, data)
    name, weights, channels = network.full_name, network.weights, data.config.channels
    stem = models.resolve_stem(network.stem, data.size, weights, name)
    transform = models.needs_transformed_input(name, weights)
    known, found = data.identity, None
    if weights is not None:
        given = models.read_weights(network, data.identity)
        count, asked = given.count(name), network.num_classes
        if count is not None:
            found, known = models.find_classes(data.identity, given, count), given.classes or known
        require(asked in (None, count), f"model.num_classes={asked}: the weights have {count} classes.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        scale = Scale(size=models.sized(name, stem, data.size), width=network.width, depth=network.depth)
        net = models.build(name, len(known), stem, transform, channels, scale)
    if weights is not None:
        models.load(net, name, given)
    models.check_size(net, name, data.size, channels)
    numbers = list(range(len(known))) if found is None else found.indexes
    return Subject(name, net.eval(), known.names, numbers, found)


def _of_target(network: TargetNetwork, data: ImageData) -> Subject:
    """A network of the user's own, which has the data's classes."""
    classes = len(data.classes)
    channels = data.config.channels
    net = networks.build(networks.of_run(network, data.size, channels), classes)
    networks.begin_with(net, network, data.identity)
    networks.check_output(net, network.called, data.size, channels, classes)
    return Subject(network.called, net.eval(), data.classes, list(range(classes)))


def align(module: SoftgateModule, data: ImageData, label: str) -> list[str]:
    """Gives a network its classes in the order of the data; returns a line on it where they were in another.

    Args:
        module: The network; its last layer is put in order, in place.
        data: The images.
        label: Says which run it is.

    Raises:
        SoftgateError: If its classes are not the data's.
    """
    start = data.config.option
    found = match(data.identity, Classes.of(module.classes), start, label)
    require(found.whole, f"{start}: its {len(data.classes)} classes are not all of the {found.total} of {label}.")
    if found.in_order:
        return []
    own = "_target_" in module.architecture
    require(not own, f"{start}: its classes are in another order than those of {label}, a network of your own.")
    net = module.net.value if isinstance(module.net, models.GatedNetwork) else module.net
    models.reorder_head(net, module.architecture["name"], found.indexes)
    module.classes = list(data.classes)
    return [f"{label}: {found}, put in the order of the test images'."]


def targets(subject: Subject, labels: Sequence[int], count: int) -> list[int]:
    """The classes to read out, as the network counts them: those of the images, then ostrich, then others by chance.

    Raises:
        SoftgateError: If the network has fewer classes.
    """
    total = len(subject.names)
    fits = len(labels) <= count <= total
    require(fits, f"grid.targets={count}: a whole number from {len(labels)} to {total} is needed.")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(314)).tolist()
    preferred = [subject.names.index(OSTRICH), *order] if OSTRICH in subject.names else order
    others = [c for c in dict.fromkeys(preferred) if c not in labels]
    return [*labels, *others[: count - len(labels)]]


def about(subject: Subject, network: NetworkConfig | TargetNetwork) -> str:
    """One line on the network for a title."""
    weights = network.weights
    said = f"weights {weights.rpartition('/')[2]}" if weights is not None else origin(network)
    return f"{subject.name}, {said}, torchvision {torchvision.__version__.partition('+')[0]}"


def origin(network: NetworkConfig | TargetNetwork) -> str:
    """Where a network's weights come from, for a table: a figure of an untrained one must not be taken for more."""
    if network.weights is not None:
        return f"weights {network.weights}"
    if isinstance(network, TargetNetwork):
        return "as its target builds it"
    return f"untrained, random weights, seed {UNTRAINED_SEED}"


def readout(net: nn.Module, rule: Surrogate, data: ImageData) -> tuple[Surrogate, str | None]:
    """`completed_for` a network and the images that it takes."""
    like = next(net.parameters())
    image = torch.zeros(1, data.config.channels, data.size, data.size, dtype=like.dtype, device=like.device)
    return completed_for(net, rule, image)


def scale_hint(name: str, net: nn.Module, rule: Surrogate) -> str | None:
    """A line for who reads out through one temperature a network whose pre-activations have no common scale; or None.

    Args:
        name: What the network is called.
        net: The network.
        rule: What it is read out with.
    """
    if not rule.soft or rule.scale != "global" or any(isinstance(module, NORMALISING) for module in net.modules()):
        return None
    return (
        f"{name} has no normalising layers, so one temperature is nearly hard for some of its channels and flat for "
        "others; readout.scale=channel counts it in each channel's own deviations."
    )
