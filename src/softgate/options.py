"""Options as types: what every group of a config is read into, and one sentence for what is wrong in it.

A group is a frozen pydantic model whose fields say type, range and unit. Nothing is converted: a bool is no whole
number, a text no number, nan no number at all, and a key that no field has is refused with the nearest one that there
is. Whoever reads a group gets a `SoftgateError`, never pydantic's own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from softgate.errors import SoftgateError, require, unknown

ROOT = "option"
"""What the error for an unknown key calls the keys that stand under none."""


@dataclass(frozen=True)
class Says:
    """Beside a field's type: what is allowed, as the error says it, where type and range do not say it well."""

    words: str


Whole = Annotated[int, Field(ge=0)]
"""A whole number >= 0, such as a seed."""

Count = Annotated[int, Field(ge=1)]
"""A whole number >= 1."""

Every = Annotated[int, Field(ge=0), Says("a whole number >= 0 is needed; 0 is off")]
"""A cadence: something happens every so many epochs or steps."""

Number = int | float
"""An int stays one, so that a checkpoint keeps a config's numbers as they were given."""

Pair = Annotated[tuple[Number, Number], Strict(False)]
Triple = Annotated[tuple[Number, Number, Number], Strict(False)]
Words = Annotated[tuple[str, ...], Strict(False)]
"""YAML's lists, kept as tuples."""


class Options(BaseModel):
    """A group of a config: its keys are the fields, in the order of the YAML files."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )
    at: ClassVar[str] = ""
    """Where the group stands in a config, such as `callbacks.grids`; empty for the whole."""

    _plain: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """The plain data that this was read from: for checkpoints, config files and comparisons."""
        return deepcopy(self._plain)

    @classmethod
    def read(cls, given: Any) -> Self:
        """Reads plain data.

        Raises:
            SoftgateError: For the first thing that is wrong, with its dotted path, its value and what is allowed.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SoftgateError(sentence(cls, error, given)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _kept(cls, given: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(given, cls):
            return given
        made = build(dict(given) if isinstance(given, Mapping) else given)
        if isinstance(given, Mapping):
            made._plain = deepcopy(dict(given))
        return made


def sentence(model: type[Options], error: ValidationError, given: Any) -> str:
    """What is wrong, in one sentence: of several things an unknown key first, as it explains one that is missing."""
    found = error.errors(include_url=False)
    first = next((each for each in found if _is_unknown(each)), found[0])
    said = first.get("ctx", {}).get("error")
    if isinstance(said, SoftgateError):
        return str(said)
    path, value, field, absent = model.at, given, None, False
    group: type[Options] | None = model
    for key in first["loc"]:  # what follows a field's own key is pydantic's: the parts of a list, the types of a union
        if group is None:
            break
        if _is_unknown(first) and str(key) not in group.model_fields:
            return unknown_key(path, str(key), group)
        path = f"{path}.{key}" if path else str(key)
        absent = isinstance(value, Mapping) and key not in value
        value = value.get(key) if isinstance(value, Mapping) else None
        field = group.model_fields[str(key)]
        group = next(_groups(field.annotation), None)
    if absent:
        return f"{path} is not set; give it on the command line as {path}=..."
    if field is None or group is not None:
        under = f"{path}.KEY=VALUE" if path else "KEY=VALUE"
        return f"{path or ROOT}={value}: it has options under it, such as {under}."
    return _out_of_range(path, value, field)


def _is_unknown(error: ErrorDetails) -> bool:
    return error["type"] in ("extra_forbidden", "invalid_key")


def unknown_key(under: str, key: str, group: type[Options]) -> str:
    """The sentence for a key that a group does not have.

    Args:
        under: Where the group stands.
        key: The key.
        group: The group, whose keys are the known ones.
    """
    known = sorted(group.model_fields)
    if not under:
        return str(unknown(ROOT, key, known))
    near = get_close_matches(key, known, n=1)
    hint = f" Did you mean {under}.{near[0]}?" if near else ""
    return f"{under}.{key}: there is no such option; allowed under {under}: {', '.join(known)}.{hint}"


def _groups(annotation: Any) -> Iterator[type[Options]]:
    """The group that a field holds, where it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for part in get_args(annotation):
        yield from _groups(part)


def _out_of_range(path: str, value: Any, field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is Literal and all(isinstance(name, str) for name in get_args(kind)):
        return str(unknown(path, value, get_args(kind)))
    return f"{path}={value}: {_words(kind, field.metadata)}."


def _words(kind: Any, metadata: list[Any]) -> str:
    own = next((each.words for each in metadata if isinstance(each, Says)), None)
    if own is not None:
        return own
    parts = list(dict.fromkeys(_parts(kind, metadata)))
    comma = "," if any(" " in part for part in parts) else ""
    return f"{f'{comma} or '.join(parts)} is needed"


def _parts(kind: Any, metadata: list[Any]) -> Iterator[str]:
    """The words for each of the types of a union."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = [part for each in arguments[1:] for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
        yield from _parts(arguments[0], [*metadata, *inner])
    elif kind == Number:
        yield f"a number{_bounds(metadata)}"
    elif origin in (Union, UnionType):
        for part in arguments:
            yield from _parts(part, metadata)
    elif origin is Literal:
        yield from (str(name).lower() if isinstance(name, bool) else str(name) for name in arguments)
    elif kind in (NoneType, None):
        yield "null"
    elif kind is bool:
        yield from ("true", "false")
    elif kind is int:
        yield f"a whole number{_bounds(metadata)}"
    elif kind is float:
        yield f"a number{_bounds(metadata)}"
    else:
        yield {str: "a text"}.get(kind, "a list of words")


def _bounds(metadata: list[Any]) -> str:
    signs = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
    found = [
        f" {sign} {getattr(each, name)}" for kind, name, sign in signs for each in metadata if isinstance(each, kind)
    ]
    return " and".join(found)


def switched_on(option: str, value: int) -> int:
    """A cadence or a number that must not be 0, which means off.

    Raises:
        SoftgateError: If it is.
    """
    require(value > 0, f"{option}={value}: it is off; a whole number >= 1 is needed.")
    return value
