"""A copy of a network that shares its weights and nothing else: what a look at the network runs on.

The network itself may be training in another thread, or be looked at under another rule. A look must change neither
its train or eval mode nor its buffers, its forwards, its attributes. So it runs on a copy of the tree of modules:
parameters share their memory, everything else that belongs to a module is its own.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from softgate.sites.forward import Frame, Method

DEPTH = 6
"""How deep containers and objects in a module's attributes are searched for modules."""

CONTAINERS = (dict, OrderedDict, list, set, deque)

PLAIN = (str, bytes, int, float, bool, Tensor, type, types.ModuleType, types.BuiltinFunctionType, nn.Module)
"""What holds no module of the network; a module that is none of its parts stays what it is."""

LONG = 4096
"""Containers with more entries are taken to hold data, not modules."""

OWN = frozenset(vars(nn.Module()))
"""The attributes that every module has."""

OTHERS = ("torch", "torchvision", "numpy", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities")
"""Packages whose objects are not looked into: they hold no module of the network, or too much besides."""


def sharing_copy(model: nn.Module, *, training: bool = False, differentiable: bool = False) -> nn.Module | None:
    """A copy of a tree of modules whose parameters share the memory of the model's.

    What a module holds in attributes (references to other modules, in lists, bound methods, closures and objects too)
    leads to the copies. Modules compiled in place, and those in a compiled wrapper, are copied as they were before.

    Args:
        model: The network, attached to a rule or not; the copy is not.
        training: Whether modules keep their mode; otherwise all are in eval mode.
        differentiable: Whether gradients to the parameters can be asked for; they are those of the copy.

    Returns:
        The copy; None where there can be none: scripted, sharded or uninitialised modules.
    """
    with torch.inference_mode(False):  # what is made in it cannot be part of a graph
        return _copied(model, training, differentiable)


def _copied(model: nn.Module, training: bool, differentiable: bool) -> nn.Module | None:
    modules = list(model.modules())
    if any(map(_is_tied, modules)):
        return None
    copying = _Copying({id(m): (m, object.__new__(type(m))) for m in modules if not hasattr(m, "_orig_mod")})
    for module in modules:
        if hasattr(module, "_orig_mod"):
            copying.made[id(module)] = (module, copying.of(module._orig_mod))
    for module in modules:
        copying.containers(vars(module))
    for module, made in list(copying.made.values()):
        if hasattr(module, "_orig_mod"):
            continue
        attributes = copying.attributes(module.__dict__, differentiable)
        attributes["training"] = module.training if training else False
        made.__dict__.update(attributes)
    return copying.of(model)  # type: ignore[no-any-return]  # a module for a module


def _is_tied(module: nn.Module) -> bool:
    """Whether a module does not work without what lies outside of its attributes."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith("torch.distributed"):
        return True
    if any(base.__module__.startswith("torch.distributed.") for base in type(module).__mro__):  # fully_shard
        return True
    tensors = (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    return any(is_lazy(t) or type(t).__module__.startswith("torch.distributed") for t in tensors)


@dataclass
class _Copying:
    """Finds the copy of whatever a module holds; the same one for the same thing."""

    made: dict[int, tuple[nn.Module, Any]]
    known: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # with the original, so that no id is used again

    def containers(self, of: dict[str, Any]) -> None:
        """Copies the containers in a module's attributes before hooks and functions are met that may hold them too."""
        for name, value in of.items():
            if name not in OWN and type(value) in CONTAINERS:
                self.own(value)

    def attributes(self, of: dict[str, Any], differentiable: bool) -> dict[str, Any]:
        """The attributes of a module's copy."""
        special = ("_parameters", "_buffers", "_compiled_call_impl", "forward", "_replicate_for_data_parallel")
        kept = {name: value for name, value in of.items() if name not in special and not isinstance(value, Method)}
        found = {name: self.own(value) for name, value in kept.items()}
        found["_parameters"] = {name: self._parameter(p, differentiable) for name, p in of["_parameters"].items()}
        found["_buffers"] = {name: self._buffer(b) for name, b in of["_buffers"].items()}
        forward = of.get("forward")
        while isinstance(getattr(forward, "__self__", None), Frame):
            forward = forward.__self__.own  # type: ignore[union-attr]  # a bound method
        if forward is not None:
            found["forward"] = self.of(forward)
        return found

    def _parameter(self, parameter: Tensor | None, differentiable: bool) -> Tensor | None:
        if parameter is None:
            return None
        if id(parameter) not in self.known:
            # Through .data: a step of the optimiser meanwhile is no error of the copy's backward pass.
            wanted = differentiable and parameter.requires_grad
            self.known[id(parameter)] = parameter, nn.Parameter(parameter.data, requires_grad=wanted)
        return self.known[id(parameter)][1]  # type: ignore[no-any-return]  # a parameter

    def _buffer(self, buffer: Tensor | None) -> Tensor | None:
        if buffer is None:
            return None
        if id(buffer) not in self.known:
            self.known[id(buffer)] = buffer, buffer.detach().clone()
        return self.known[id(buffer)][1]  # type: ignore[no-any-return]  # a tensor

    def own(self, value: Any) -> Any:
        """The copy of an attribute; a container is copied even where no module is in it, since forwards fill some."""
        if type(value) in CONTAINERS and not value and id(value) not in self.known:
            self.known[id(value)] = value, value.copy()
        made = self.of(value)
        if made is value and type(value) in CONTAINERS and len(value) <= LONG:
            made = value.copy()
            self.known[id(value)] = value, made
        return made

    def of(self, value: Any, depth: int = DEPTH) -> Any:
        """The copy of a value; the value itself where no module of the network is in it."""
        if id(value) in self.made:
            return self.made[id(value)][1]
        if isinstance(value, PLAIN) or value is None or not depth:
            return value
        if id(value) not in self.known:
            self.known[id(value)] = value, value  # it may hold itself
            self.known[id(value)] = value, self._holder(value, depth - 1)
        return self.known[id(value)][1]

    def _holder(self, value: Any, depth: int) -> Any:
        """The copy of a container, a function or an object."""
        if type(value) in CONTAINERS or isinstance(value, tuple):
            return self._container(value, depth)
        if isinstance(value, types.MethodType):
            owner = self.of(value.__self__, depth)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            func, args = self.of(value.func, depth), self.of(value.args, depth)
            keywords = self.of(value.keywords, depth)
            same = func is value.func and args is value.args and keywords is value.keywords
            return value if same else functools.partial(func, *args, **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, weakref.ref):
            made = self.of(value(), depth)
            return value if made is value() else weakref.ref(made)
        return self._object(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        if len(value) > LONG:
            return value
        before = list(value.values()) if isinstance(value, dict) else list(value)
        after = [self.of(each, depth) for each in before]
        if all(a is b for a, b in zip(after, before, strict=True)):
            return value
        if isinstance(value, dict):
            return type(value)(zip(value, after, strict=True))
        return type(value)(*after) if hasattr(value, "_fields") else type(value)(after)

    def _function(self, function: types.FunctionType, depth: int) -> types.FunctionType:
        before = function.__closure__ or ()
        cells = tuple(self._cell(cell, depth) for cell in before)
        defaults = self.of(function.__defaults__, depth)
        if defaults is function.__defaults__ and all(a is b for a, b in zip(cells, before, strict=True)):
            return function
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells)
        made.__kwdefaults__ = function.__kwdefaults__
        return functools.update_wrapper(made, function)  # type: ignore[return-value]  # it returns its first argument

    def _cell(self, cell: types.CellType, depth: int) -> types.CellType:
        try:
            contents = cell.cell_contents
        except ValueError:  # nothing in it yet
            return cell
        made = self.of(contents, depth)
        return cell if made is contents else types.CellType(made)

    def _object(self, value: Any, depth: int) -> Any:
        if type(value).__module__.split(".")[0] in OTHERS or not hasattr(value, "__dict__"):
            return value
        before = dict(vars(value))
        after = {name: self.of(each, depth) for name, each in before.items()}
        if all(after[name] is each for name, each in before.items()):
            return value
        try:
            made = object.__new__(type(value))
        except TypeError:  # a type that only its own constructor makes
            return value
        made.__dict__.update(after)
        return made
