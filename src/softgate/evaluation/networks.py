"""Networks that no run here trained: a torchvision model with published weights or a file, on any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision
from hydra.core.hydra_config import HydraConfig
from torch import nn

from softgate import models
from softgate.data import ImageData
from softgate.errors import SoftgateError, require
from softgate.evaluation.config import DataChanges
from softgate.models import NetworkConfig

OSTRICH = 9
"""The paper's further target."""


@dataclass(frozen=True)
class Subject:
    """A network to look at, and where its classes are.

    Attributes:
        name: Its torchvision name.
        net: The network, in eval mode.
        names: Its classes' names.
        classes: For each class of the data, its index in the network.
    """

    name: str
    net: nn.Module
    names: Sequence[str]
    classes: list[int]


def image_size(network: NetworkConfig, images: DataChanges) -> int:
    """`data.size` where it was typed or an experiment sets it; else what the published weights were made for."""
    typed = any(word.lstrip("+").startswith("data.size=") for word in HydraConfig.get().overrides.task)
    chosen = HydraConfig.get().runtime.choices.get("experiment")
    if typed or chosen or network.weights is None:
        return int(images.values["size"])
    return 299 if network.name == "inception_v3" else 224


def build(network: NetworkConfig, data: ImageData) -> Subject:
    """Builds a network, loads its weights and finds the data's classes among its own.

    Args:
        network: A torchvision classifier.
        data: The images.

    Raises:
        SoftgateError: For weights that do not fit, a class of the data that the network does not have, or images of a
            size that it does not take.
    """
    name, weights, found = network.name, network.weights, len(data.classes)
    stem = models.resolve_stem(network.stem, data.size, weights)
    transform = models.needs_transformed_input(name, weights)
    # Weights published by torchvision, and most files, are of ImageNet's thousand classes.
    sizes = [found] if weights is None else list(dict.fromkeys((network.num_classes or 1000, found)))
    for size in sizes:
        net = models.build(name, size, stem, transform)
        try:
            if weights is not None:
                models.load_weights(net, name, weights, size)
            break
        except SoftgateError as error:
            if size == sizes[-1] or "model.new_head" not in str(error):
                raise
    models.check_size(net, name, data.size)
    net.eval()
    if size == found:
        return Subject(name, net, data.classes, list(range(found)))
    names = models.imagenet_classes()
    require(size == len(names), f"model.weights={weights}: {size} classes, of which the data's {found} are not known.")
    return Subject(name, net, names, models.imagenet_indexes(data.classes))


def targets(subject: Subject, labels: Sequence[int], count: int) -> list[int]:
    """The classes to read out, as the network counts them: those of the images, then ostrich, then others by chance.

    Raises:
        SoftgateError: If the network has fewer classes.
    """
    total = len(subject.names)
    fits = len(labels) <= count <= total
    require(fits, f"grid.targets={count}: a whole number from {len(labels)} to {total} is needed.")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(314)).tolist()
    preferred = [OSTRICH, *order] if total == 1000 else order
    others = [c for c in dict.fromkeys(preferred) if c not in labels]
    return [*labels, *others[: count - len(labels)]]


def about(subject: Subject, network: NetworkConfig) -> str:
    """One line on the network for a title."""
    weights = network.weights
    said = "random weights" if weights is None else f"weights {weights.rpartition('/')[2]}"
    return f"{subject.name}, {said}, torchvision {torchvision.__version__.partition('+')[0]}"
