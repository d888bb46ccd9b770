"""A method by its name in the catalogue, with parameters that are checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from flame.methods.catalogue import CATALOGUE, Entry, Parameter
from flame.methods.method import Method
from flame.model.errors import Invalid, NotFound


def method(name: str, parameters: Mapping[str, Any]) -> Method[Any, Any, Any]:
    """Raises NotFound for a name that there is not, Invalid for parameters that it does not take."""
    entry = entry_of(name)
    checked = check_parameters(entry, parameters)
    module, _, class_name = entry.method.partition(":")
    made: Method[Any, Any, Any] = getattr(import_module(module), class_name)(**checked)
    return made


def entry_of(name: str) -> Entry:
    try:
        return CATALOGUE[name]
    except KeyError:
        raise NotFound(
            f"The catalogue has no method '{name[:100]}'.", next_step="`flame methods list` shows what there is."
        ) from None


def check_parameters(entry: Entry, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given, in the types that the catalogue names. Raises Invalid."""
    known = {p.name: p for p in entry.parameters}
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise Invalid(
            f"The method {entry.name} has no parameter '{unknown[0][:100]}'.", next_step=f"It has: {', '.join(known)}."
        )
    missing = [p.name for p in entry.parameters if p.required and parameters.get(p.name) is None]
    if missing:
        raise Invalid(f"The method {entry.name} needs the parameter '{missing[0]}'.")
    return {n: _checked(entry, known[n], value) for n, value in parameters.items() if value is not None}


def read_parameters(entry: Entry, texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE``, as a command line gives them; a list is ``a,b,c``. Raises Invalid."""
    known = {p.name: p for p in entry.parameters}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Invalid(f"The parameter {text[:100]!r} is not KEY=VALUE.")
        if name in found:
            raise Invalid(f"The parameter '{name[:100]}' is given twice.")
        found[name] = _read(known[name], value) if name in known else value
    return check_parameters(entry, found)


def _read(parameter: Parameter, text: str) -> Any:
    if parameter.type == "list":
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise Invalid(f"The list '{parameter.name}' has an empty part.", next_step="Write A,B,C.")
        return [_number(parameter, part) for part in parts] if parameter.of == "number" else parts
    if parameter.type == "flag":
        if text.lower() not in ("true", "false"):
            raise Invalid(f"The parameter '{parameter.name}' is true or false, not {text[:40]!r}.")
        return text.lower() == "true"
    return text if parameter.type == "text" else _number(parameter, text)


def _number(parameter: Parameter, text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"The parameter '{parameter.name}' holds {text[:40]!r}, which is not a number.") from None


def _checked(entry: Entry, parameter: Parameter, value: Any) -> Any:
    fits: dict[str, Callable[[Any], bool]] = {
        "text": lambda v: isinstance(v, str),
        "flag": lambda v: isinstance(v, bool),
        "integer": lambda v: type(v) is int,
        "number": _is_number,
        "list": lambda v: isinstance(v, list | tuple) and all(map(_of(parameter), v)),
    }
    if not fits[parameter.type](value):
        kind = f"list of {parameter.of}s" if parameter.type == "list" else parameter.type
        raise Invalid(
            f"The parameter '{parameter.name}' of {entry.name} takes a value of type {kind}, not {str(value)[:60]!r}."
        )
    if parameter.options and value not in parameter.options:
        raise Invalid(
            f"The parameter '{parameter.name}' of {entry.name} is one of {', '.join(parameter.options)}, "
            f"not {str(value)[:60]!r}."
        )
    return list(value) if parameter.type == "list" else value


def _of(parameter: Parameter) -> Callable[[Any], bool]:
    return _is_number if parameter.of == "number" else lambda item: isinstance(item, str)


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
