"""Pydantic's errors in the wording of faults: "found X, expected Y"."""

import re
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.environment import Interpolated
from gateway.config.faults import Fault, nearest
from gateway.config.scalars import resolve
from gateway.config.shown import Path, is_hidden, shortened, shown
from gateway.config.strict_yaml import Broken, Tree

_EXPECTED = {
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "int_parsing": "a whole number",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "a list of at least {min_length}",
    "greater_than": "a number above {gt:.15g}",
    "greater_than_equal": "a number of at least {ge:.15g}",
    "less_than_equal": "a number of at most {le:.15g}",
    "expected": "{expected}",
}
_UNQUOTED = frozenset({"float_type", "int_type", "bool_type"})
_CHOICE = re.compile("'([^']*)'")
_CALLED_SO = {
    "api_base": ("base_url", "endpoint"),
    "base_url": ("endpoint",),
    "endpoint": ("base_url",),
    "id": ("provider_model_id",),
    "kind": ("provider",),
    "max_model_len": ("context_length",),
    "provider": ("kind",),
}
"""What a field is called elsewhere: in another part of the files, in vLLM, or in LiteLLM."""


def explain(document: type[BaseModel], error: ValidationError, tree: Tree) -> tuple[Fault, ...]:
    """Return the faults behind a validation error of a tree's data; `Broken` values already have theirs."""
    details = error.errors(include_url=False, include_input=False)
    return tuple(fault for detail in details for fault in _explained(document, detail, tree))


def expectation(detail: ErrorDetails) -> str | None:
    """Return what stands after "expected", or None for a kind of error that has no words here."""
    words = _EXPECTED.get(detail["type"])
    return None if words is None else words.format(**detail.get("ctx", {}))


def _explained(document: type[BaseModel], detail: ErrorDetails, tree: Tree) -> Iterator[Fault]:
    path, value = _reached(detail["loc"], tree)
    match detail["type"]:
        case _ if isinstance(value, Broken):
            return
        case "missing":
            yield tree.fault((*path, detail["loc"][-1]), "missing, and it has no default")
        case "extra_forbidden":
            yield tree.fault(path, _unknown_key(document, path), at_key=True)
        case "found":
            yield tree.fault(path, detail["ctx"]["message"])
        case "literal_error":
            yield tree.fault(path, _unknown_choice(value, path, _CHOICE.findall(detail["ctx"]["expected"])))
        case "too_short" if value:  # pydantic counts the valid items only, and each of the others has its own fault
            return
        case kind:
            expected = expectation(detail) or "another kind of value"
            yield tree.fault(path, f"found {shown(value, path)}, expected {expected}{_advice(kind, value)}")


def _reached(path: Path, tree: Tree) -> tuple[Path, object]:
    """Follow a path as far as the data goes: a shorthand (a bare number) has no parts of its own."""
    for end in range(len(path), 0, -1):
        try:
            return path[:end], tree.at(path[:end])
        except LookupError:
            continue
    return (), tree.data


def _advice(kind: str, value: object) -> str:
    if isinstance(value, Interpolated):
        return ""
    if kind in _UNQUOTED and isinstance(value, str) and not isinstance(resolve(value), str | None):
        return ": leave out the quotes"
    return ": quote it" if kind == "string_type" and isinstance(value, int | float) else ""


def _unknown_choice(value: object, path: Path, known: list[str]) -> str:
    offered = nearest(value, known) if isinstance(value, str) and not isinstance(value, Interpolated) else ""
    return f"found {shown(value, path)}, expected one of {', '.join(known)}{offered}"


def _unknown_key(document: type[BaseModel], path: Path) -> str:
    key, known = str(path[-1]), _fields_at(document, path[:-1])
    meant = next((name for name in _CALLED_SO.get(key, ()) if name in known), None)
    offered = f", did you mean {meant!r}?" if meant else nearest(key, known)
    named = "unknown key" if is_hidden(path, key) and not offered else f"unknown key {shortened(key)!r}"
    return named + (offered or f", expected one of {', '.join(known)}")


def _fields_at(document: type[BaseModel], path: Path) -> tuple[str, ...]:
    for step in path:
        if isinstance(step, str):
            document = _documents_in(document.model_fields[step].annotation)[0]
    return tuple(document.model_fields)


def _documents_in(annotation: object) -> list[type[BaseModel]]:
    own = [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    return own + [document for argument in get_args(annotation) for document in _documents_in(argument)]
