"""Read JSON back into the dataclasses that it was written from, and name the field that does not fit.

    JSON value, type  ->  restore  ->  dataclasses, tuples and paths, or a RecordError: "vit.registers is unknown"

Files outlive versions: a field that is missing gets its default, one that this version does not know is refused.
"""

import dataclasses
import types
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_JSON_TYPES = {str: "a string", Path: "a string", int: "an integer", float: "a number", bool: "true or false"}


class RecordError(ValueError):
    """Raised for JSON that does not fit a type; the message names the field."""


def restore(kind: Any, value: Any, name: str = "") -> Any:
    """Return a JSON value as a field of type `kind` holds it.

    Args:
        kind: A dataclass, or the type of a field: a plain type, Literal, a union, a tuple or dict of these.
        value: What `json.loads` returned.
        name: Dotted name of the field, for messages.

    Raises:
        RecordError: A field is unknown, missing, or of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, name)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, name)
    if origin is tuple:
        size = len(arguments) if arguments[-1] is not Ellipsis else None
        if not isinstance(value, list) or size not in (None, len(value)):
            raise RecordError(f"{name} is {_short(value)}; it must be a list" + (f" of {size}" if size else ""))
        kinds = arguments if size is not None else arguments[:1] * len(value)
        return tuple(restore(one, item, name) for one, item in zip(kinds, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{name} is {_short(value)}; it must be an object")
        return {key: restore(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise RecordError(f"{name} is {_short(value)}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    return _plain(kind, value, name)


def _dataclass(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{name or 'the file'} is {_short(value)}; it must be an object")
    hints, prefix = _type_hints(kind), f"{name}." if name else ""
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for what, keys in (("missing", [key for key in required if key not in value]), ("unknown", value.keys() - hints)):
        if keys:
            shown = ", ".join(prefix + key for key in sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")
            raise RecordError(f"{shown} {'is' if len(keys) == 1 else 'are'} {what}")
    return kind(**{key: restore(hints[key], item, prefix + key) for key, item in value.items()})


def _union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """Return the value as the first type that it fits; the error is that of the first type."""
    errors = []
    for kind in kinds:
        try:
            return restore(kind, value, name)
        except RecordError as error:
            errors.append(error)
    raise errors[0]


def _plain(kind: Any, value: Any, name: str) -> Any:
    fits = {
        Path: isinstance(value, str),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        type(None): value is None,
    }.get(kind, kind is Any or isinstance(value, kind))
    if not fits:
        raise RecordError(f"{name} is {_short(value)}; it must be {_JSON_TYPES.get(kind, 'null')}")
    return Path(value) if kind is Path else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def _type_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
