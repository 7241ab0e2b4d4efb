"""Other people's code by its dotted name: `_target_`, as Hydra's users know it, and whose it may be.

What the person who runs a command has typed, or has in a config of their own, is imported. What only stands in a
checkpoint or in a run's directory is not, since somebody else may have made it: unless it is a class of softgate,
torch, torchvision or timm, or its package is trusted (`trust=[my_package]`, `softgate.training.trust("my_package")`).
"""

from __future__ import annotations

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from softgate.errors import SoftgateError, require

KEY = "_target_"

HERE = str(Path(__file__).parent)
"""softgate's own files, which no error of a user's code is in."""

TRUSTED = ("softgate", "torch", "torchvision", "timm", "torchmetrics", "pytorch_lightning")
"""Packages whose classes a file may name; a function of theirs may load a file or run what it is given."""

_own: set[str] = set()
_typed: set[str] = set()


def trust(*packages: str) -> None:
    """Lets checkpoints and files of runs name classes and functions of these packages, for the time of the process.

    Args:
        packages: Names as they are imported, such as "my_models".
    """
    _own.update(packages)


def note_typed(config: Any) -> None:
    """Takes note of the targets in a config that the person who runs the command has typed or chosen."""
    _typed.update(targets_in(config))


def targets_in(config: Any) -> Iterator[str]:
    """Every target in nested plain data."""
    if isinstance(config, Mapping):
        if KEY in config:
            yield str(config[KEY])
        for value in config.values():
            yield from targets_in(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from targets_in(value)


def check_trusted(config: Any, where: str, packages: Iterable[str] = ()) -> None:
    """Refuses targets of a file that nobody has typed and that lie in no trusted package.

    Args:
        config: Plain data from the file.
        where: The file, and the option that named it, for the error.
        packages: Trusted ones beside those of `trust`.

    Raises:
        SoftgateError: For the first such target; nothing is imported.
    """
    for target in targets_in(config):
        package = target.split(".")[0]
        if target in _typed or package in _own or package in packages:
            continue
        if package in TRUSTED and inspect.isclass(_found(target, where)):
            continue
        what = "a function" if package in TRUSTED else "code"
        raise SoftgateError(
            f"{where} names {what} to import, {target}; if you trust it, add trust=[{package}] to the command "
            f'(in Python: softgate.training.trust("{package}")).'
        )


def check(given: Mapping[str, Any], option: str, kind: type | tuple[type, ...] | str | None = None) -> Any:
    """What a target is, a class or a function, without calling it.

    Args:
        given: Plain data with `_target_` and the arguments.
        option: The option that it stands under, for errors.
        kind: What the class must be derived from, or its dotted name; a function may return anything.

    Raises:
        SoftgateError: If it cannot be imported, cannot be called, is of another kind or does not take the arguments.
    """
    target = given[KEY]
    require(target != "???", f"{option}.{KEY} is not set; give it on the command line as {option}.{KEY}=...")
    named = isinstance(target, str) and "." in target
    require(named, f"{option}.{KEY}={target}: a dotted name is needed, such as my_file.MyClass.")
    found = _found(target, f"{option}.{KEY}={target}")
    require(callable(found), f"{option}.{KEY}={target}: it is no class and no function.")
    kind = _found(kind, option) if isinstance(kind, str) else kind
    if kind is not None and inspect.isclass(found) and not issubclass(found, kind):
        raise SoftgateError(f"{option}.{KEY}={target}: it is no subclass of {_kinds(kind)}.")
    for name, value in given.items():
        if isinstance(value, Mapping) and KEY in value:
            check(value, f"{option}.{name}")
    return found


def is_a(found: type, kind: str) -> bool:
    """Whether a class is derived from another, by its dotted name; what is of another package need not import it."""
    return issubclass(found, _found(kind, kind))


def check_arguments(given: Mapping[str, Any], option: str, extra: Iterable[str] = ()) -> None:
    """Refuses arguments that a target does not take, and the lack of those that it needs.

    Args:
        given: As in `check`.
        option: As in `check`.
        extra: Names of arguments that softgate fills in, or "*" for one by position.
    """
    found, extra = check(given, option), list(extra)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some of C have none
        return
    if "*" in extra:
        extra.append(next(iter(signature.parameters), "*"))
    named = {name for name in given if not name.startswith("_")}
    takes = {name for name, p in signature.parameters.items() if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    takes -= {name for name, p in signature.parameters.items() if p.kind in (_ARGS, _KWARGS)}
    if not any(p.kind is _KWARGS for p in signature.parameters.values()):
        for name in sorted(named - takes):
            known = sorted(takes - set(extra))
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {option}.{near[0]}?" if near else ""
            listed = ", ".join(known) or "none"
            raise SoftgateError(f"{option}.{name}: {given[KEY]} takes no such argument; its arguments: {listed}.{hint}")
    for name, parameter in signature.parameters.items():
        needed = parameter.default is inspect.Parameter.empty and parameter.kind not in (_ARGS, _KWARGS)
        if needed and name not in named and name not in extra and "_args_" not in given:
            raise SoftgateError(f"{option}.{name} is not set; {given[KEY]} needs it.")


_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def takes(found: Callable[..., Any], name: str) -> bool:
    """Whether a class or function has an argument of that name."""
    try:
        return name in inspect.signature(found).parameters
    except (TypeError, ValueError):
        return False


def make(given: Mapping[str, Any], option: str, kind: type | tuple[type, ...] | None, *args: Any, **extra: Any) -> Any:
    """Calls a target with its arguments; those in `extra` only where it has such an argument and none was given.

    Args:
        given: As in `check`.
        option: As in `check`.
        kind: What the result must be.
        args: Arguments by position, before those given.
        extra: What softgate can fill in.

    Raises:
        SoftgateError: As `check`; if it raises, with the error, the file and the line; if it returns another kind.
    """
    found = check(given, option)
    filled = {name: value for name, value in extra.items() if name not in given and takes(found, name)}
    try:
        made = instantiate(dict(given), *args, **filled, _convert_="all")
    except Exception as error:
        raise SoftgateError(f"{option}.{KEY}={given[KEY]}: {reason(error)}.") from error
    if kind is not None and not isinstance(made, kind):
        raise SoftgateError(
            f"{option}.{KEY}={given[KEY]}: it returned {type(made).__name__}; {_kinds(kind)} is needed."
        )
    return made


def _kinds(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(f"{each.__module__.split('.')[0]}'s {each.__name__}" for each in kinds)


def _found(target: str, where: str) -> Any:
    """The class or function of a dotted name; what holds it is imported."""
    path, *rest = target.split(".")
    found = _imported(path, where)
    for part in rest:
        inside, path = path, f"{path}.{part}"
        if not hasattr(found, part) and not hasattr(found, "__path__"):
            near = get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SoftgateError(f"{where}: {inside} has no '{part}'.{hint}")
        found = getattr(found, part) if hasattr(found, part) else _imported(path, where)
    return found


def _imported(module: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise SoftgateError(f"{where}: there is no module '{module}', here or installed.") from None
        raise SoftgateError(f"{where}: {module} cannot be imported: {reason(error)}.") from error
    except Exception as error:
        raise SoftgateError(f"{where}: {module} cannot be imported: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """An error's type and first line, and where in the user's code it was raised; Hydra's own are looked through."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    elsewhere = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")] + [HERE]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_file() and not frame.filename.startswith(tuple(elsewhere)):
            return f"{said.rstrip('.')} ({Path(frame.filename).name}, line {frame.lineno})"
    return said.rstrip(".")
