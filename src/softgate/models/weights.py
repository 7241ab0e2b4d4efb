"""Weights from torchvision or a file, and the classes that their last layer has.

Everything here speaks in the options a user sets (`model.weights`, `model.classes`, ...), because its errors do.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from softgate import files
from softgate.classes import Classes, Match, imagenet, match
from softgate.errors import SoftgateError, SoftgateWarning, require
from softgate.models.networks import NetworkConfig, build, check_published, published
from softgate.models.timm_networks import PREFIX, pretrained

OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in DenseNet's published files, from before torchvision renamed its layers: `norm.1.` is `norm1.` now."""


@dataclass(frozen=True)
class Weights:
    """Weights that were read.

    Attributes:
        option: What named them, and its value.
        state: Names to tensors.
        classes: The classes of their last layer, where it is known.
    """

    option: str
    state: dict[str, Tensor]
    classes: Classes | None

    def count(self, name: str) -> int | None:
        """How many classes their last layer has; None where they are of another network than `name`."""
        heads = {len(self.state[key]) for key in head(name) if key in self.state and self.state[key].dim()}
        return heads.pop() if len(heads) == 1 else None


def read_weights(network: NetworkConfig, data: Classes) -> Weights:
    """Reads the weights of `model=`, with their classes: those that it names, or that the weights say.

    A file says its classes where it is a checkpoint of softgate; a thousand are taken for ImageNet's.

    Args:
        network: With weights.
        data: The data's classes, which `model.classes=data` names.

    Raises:
        SoftgateError: If there are no such weights, or more or fewer classes are named than they have.
    """
    assert network.weights is not None
    state, known = _read(network.full_name, network.weights)
    found = Weights(f"model.weights={network.weights}", state, known)
    count, named = found.count(network.full_name), network.classes
    if known is not None and count not in (None, len(known)):  # a file that contradicts itself
        known = None
    if named is not None:
        known = data if named == "data" else Classes.imagenet() if named == "imagenet" else Classes.of(named)
        shown = named if isinstance(named, str) else list(named)
        fits = count in (None, len(known))
        require(fits, f"model.classes={shown}: {len(known)} classes, and the weights have {count}.")
    elif known is None and count == len(imagenet.names()):
        known = Classes.imagenet()
    return replace(found, classes=known)


def find_classes(data: Classes, weights: Weights, count: int) -> Match:
    """Finds the data's classes among those of weights.

    Raises:
        SoftgateError: If a class is not there, or it is not known which there are.
    """
    if weights.classes is None:
        raise SoftgateError(
            f"{weights.option}: the file does not say which its {count} classes are; model.classes=data says that they "
            f"are the data's in the data's order, model.classes=[...] lists their names."
        )
    return match(data, weights.classes, weights.option, "the weights")


def begin_with(net: nn.Module, network: NetworkConfig, data: Classes) -> Match | None:
    """Loads the weights of `model=` into a network for the data's classes, each class's row of the last layer its own.

    Args:
        net: Made by `build` for the data's classes.
        network: With weights.
        data: The data's classes.

    Returns:
        Where the classes were found; None where the last layer is new.

    Raises:
        SoftgateError: If the weights do not fit, or have other classes and `model.new_head` is not set.
    """
    weights = read_weights(network, data)
    count, name = weights.count(network.full_name), network.full_name
    found: Match | None = None
    if count is not None:
        try:
            found = find_classes(data, weights, count)
        except SoftgateError as error:
            if not network.new_head:
                raise SoftgateError(f"{str(error).rstrip('.')}; model.new_head=true trains a new last layer.") from None
        if found is not None and network.new_head and not found.whole:
            found = None
        own = net.state_dict()
        given = [key for key in head(name) if key in own and key in weights.state]
        rows = {key: own[key] if found is None else weights.state[key][found.indexes] for key in given}
        weights = replace(weights, state=weights.state | rows)
    _load(net, name, weights, len(data), network.new_head)
    return found


def load_weights(net: nn.Module, name: str, weights: str, num_classes: int, new_head: bool = False) -> None:
    """Loads weights into a network made by `build`, in place; the caller knows that their classes are the network's.

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
    _load(net, name, Weights(f"model.weights={weights}", *_read(name, weights)), num_classes, new_head)


def load(net: nn.Module, name: str, weights: Weights) -> None:
    """Loads weights that were read into a network made by `build` for as many classes; see `load_weights`."""
    _load(net, name, weights, weights.count(name) or 0, new_head=False)


@cache
def head(name: str) -> tuple[str, ...]:
    """The names of the last layer's tensors: those whose shape follows from the number of classes."""
    few, more = (_shapes(name, classes) for classes in (2, 3))
    return tuple(key for key in few if few[key] != more[key])


def _shapes(name: str, classes: int) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            net = build(name, classes)
    except NotImplementedError:  # RegNet computes its widths with tensors
        with torch.random.fork_rng(devices=[]):
            net = build(name, classes)
    return {key: value.shape for key, value in net.state_dict().items()}


def reorder_head(net: nn.Module, name: str, indexes: Sequence[int]) -> None:
    """Puts the classes of a network's last layer in another order, in place: the k-th becomes `indexes[k]`."""
    state = net.state_dict()
    with torch.no_grad():
        for key in head(name):
            state[key].copy_(state[key][list(indexes)])


def _load(net: nn.Module, name: str, weights: Weights, num_classes: int, new_head: bool) -> None:
    option, state = weights.option, dict(weights.state)
    own = net.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    # BatchNorm's counter of batches is absent in old files and plays no part in evaluation.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}"
        more = len(missing) + len(surplus) - 1
        raise SoftgateError(f"{option}: not the weights of {name}: it {what}, and {more} more names differ.")
    grey = [key for key in own if own[key].dim() == 4 and _in_colour(own[key], state.get(key))]
    if grey:
        state |= {key: state[key].sum(1, keepdim=True) for key in grey}
        said = f"{option}: the weights take colours; the first layer's are added up, as for a grey image in all three"
        warnings.warn(f"{said} channels.", SoftgateWarning, stacklevel=2)
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
        needs = "model.stem must be that of the weights (published ones: imagenet)"
        needs = "data.size must be that of the weights (published ones: 224)" if "pos_embed" in key else needs
        raise SoftgateError(
            f"{option}: not the weights of this {name}: {key} has shape {tuple(state[key].shape)} where "
            f"{tuple(own[key].shape)} is needed; {needs}."
        )
    net.load_state_dict(state, strict=False)


def _in_colour(own: Tensor, given: Tensor | None) -> bool:
    """Whether weights are for three channels where one is taken."""
    return given is not None and own.shape[1] == 1 and given.shape == (len(own), 3, *own.shape[2:])


def _read(name: str, weights: str) -> tuple[dict[str, Tensor], Classes | None]:
    """A state dict in today's names, without auxiliary heads, and the classes where they are said."""
    state, classes = _as_given(name, weights)
    plain = {
        OLD_DENSENET.sub(r"\1\2", key): value
        for key, value in state.items()
        if not key.startswith(("aux", "AuxLogits."))
    }
    return plain, classes


def _as_given(name: str, weights: str) -> tuple[dict[str, Tensor], Classes | None]:
    if not Path(weights).expanduser().is_file():
        check_published(name, weights)
        if name.startswith(PREFIX):
            timms = dict(pretrained(name.removeprefix(PREFIX)))
            return timms, None
        found = published(name, weights)
        try:
            fetched: dict[str, Tensor] = found.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a download with a wrong checksum
            raise SoftgateError(f"model.weights={weights}: {found.url}: {error}.") from None
        named = tuple(found.meta["categories"] or imagenet.names())
        return fetched, Classes.imagenet() if named == imagenet.names() else Classes(named)
    return read_file(weights)


def read_file(weights: str) -> tuple[dict[str, Tensor], Classes | None]:
    """The state dict in a file, or in a checkpoint of softgate, which says the classes too; nothing in it is run.

    Args:
        weights: The path.

    Raises:
        SoftgateError: If it holds anything else.
    """
    try:
        state = files.load(Path(weights).expanduser())
    except Exception as error:  # whatever a file that is no checkpoint makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SoftgateError(f"model.weights={weights}: not a file of plain tensors ({reason}).") from None
    classes: Classes | None = None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        settings = state.get("hyper_parameters")
        names = settings.get("classes") if isinstance(settings, dict) else None
        if isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names):
            classes = Classes.of(names)
        state = {key.removeprefix("net."): value for key, value in state["state_dict"].items()}
    tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    require(tensors, f"model.weights={weights}: a state dict (names to tensors) is needed.")
    plain: dict[str, Tensor] = state
    return plain, classes
