"""What public functions are given, checked in one place: models, tensors and rules, by a function's annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from softgate.errors import SoftgateError
from softgate.surrogate.rule import NAMED, Surrogate

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(function: _Function) -> _Function:
    """Refuses what a function cannot take before its first line runs, in one sentence, as a decorator.

    Looked at are the arguments that are annotated as a `Tensor`, an `nn.Module` or a `Surrogate`, or as one of these or
    None; a module that uses it has its annotations as strings.

    Raises:
        SoftgateError: In the call, for an array or a list where a tensor is needed, what is no module where a model
            is, and a name, a dict or a gate where a rule is.
    """
    parameters = inspect.signature(function).parameters
    checks = {name: _CHECKS[kind] for name, each in parameters.items() if (kind := _kind(each.annotation)) in _CHECKS}
    optional = {name for name in checks if "| None" in str(parameters[name].annotation)}
    names = list(parameters)

    @wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in checks and not (value is None and name in optional):
                of = type(args[0]).__name__ if names[0] == "self" else function.__name__
                checks[name](of, name, value)
        return function(*args, **kwargs)

    return cast(_Function, checking)


def check_rule(rule: Any) -> None:
    """Raises `SoftgateError` for what is neither a rule nor None; for a name, it says which constructor is meant."""
    if rule is None or isinstance(rule, Surrogate):
        return
    if isinstance(rule, str):
        if rule in NAMED:
            raise SoftgateError(f"rule={rule!r}: a softgate.Surrogate is needed, here Surrogate.{rule}(), or None.")
        made = ", ".join(f"Surrogate.{name}()" for name in NAMED)
        raise SoftgateError(f"rule={rule!r}: a softgate.Surrogate is needed, or None; by name there is: {made}.")
    hint = "Surrogate.from_dict(...)" if isinstance(rule, dict) else "Surrogate(gate=...)"
    raise SoftgateError(f"rule={rule!r}: a softgate.Surrogate is needed, such as {hint}, or None.")


def _rule(function: str, name: str, value: Any) -> None:
    check_rule(value)


def _tensor(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        kind = type(value)
        hint = ""
        if kind.__module__.startswith("PIL."):
            hint = f", such as torchvision.transforms.functional.to_tensor({name})[None]"
        elif kind.__module__ == "numpy" or isinstance(value, (list, tuple)):
            hint = f", such as torch.as_tensor({name})"
        shown = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        raise SoftgateError(f"{function}: {name} is of type {shown}; a torch.Tensor is needed{hint}.")


def _module(function: str, name: str, value: Any) -> None:
    if not isinstance(value, nn.Module):
        raise SoftgateError(f"{function}: {name} is of type {type(value).__name__}; a torch.nn.Module is needed.")


_CHECKS: dict[str, Callable[[str, str, Any], None]] = {"Tensor": _tensor, "nn.Module": _module, "Surrogate": _rule}


def _kind(annotation: Any) -> str:
    return str(annotation).removesuffix(" | None")
