"""How values, keys and paths appear in messages: shortened, and hidden where they could be a secret."""

import re
from collections.abc import Iterable

from gateway.config.environment import Interpolated

Path = tuple[str | int, ...]

_LONGEST = 40
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|authorization|bearer", re.IGNORECASE)
_SECRET_STARTS = re.compile(
    r"(?:key|token|secret|password|credential|authorization|bearer)(?=[\s=:])"
    r"|\b(?=(?:sk|pk|hf|gsk|xai|nvapi|ghp)[-_])|\bAIza|\?",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_HARMLESS = frozenset({"first_token"})
_CLIENTS = "clients"
_CLIENT_FIELDS = frozenset({"name", "api_key"})


def is_secret(path: Path) -> bool:
    """Return whether a value is, or is below, something named like a secret.

    So is all of `clients` but the names: a key may be written there without its field.
    """
    if path[:1] == (_CLIENTS,) and path[-1] != "name":
        return True
    return any(isinstance(step, str) and _SECRET_NAME.search(step) and step not in _HARMLESS for step in path)


def is_hidden(path: Path, step: str) -> bool:
    """Return whether a step of a path may be a client's key that was written in the place of a field."""
    return path[:1] == (_CLIENTS,) and step != _CLIENTS and step not in _CLIENT_FIELDS


def shortened(text: str) -> str:
    """Cut text to 40 characters, or where a secret seems to start; nothing of `user:key@host` is kept."""
    start = _SECRET_STARTS.search(text)
    end = 0 if ":" in text.rpartition("@")[0] else min(_LONGEST, start.end() if start else _LONGEST)
    return text if len(text) <= end else text[:end] + "..."


def shown(value: object, path: Path) -> str:
    """Describe the value at `path`, as it appears after "found" in a message."""
    if isinstance(value, Interpolated):
        return f"the {'' if value else 'empty '}value of {value.source}"
    if isinstance(value, list | dict):
        return ("a " if value else "an empty ") + ("list" if isinstance(value, list) else "mapping")
    if value is None:
        return "nothing"
    if is_secret(path):
        return "a hidden value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(shortened(value))
    return str(value) if isinstance(value, int | float) else "a value"


def dotted(path: Path) -> str:
    """Format a path as `models[0].route[1].weight`; it ends at the first step that is named like a secret."""
    return "".join(_steps(path)).removeprefix(".")


def _steps(path: Path) -> Iterable[str]:
    for step in path:
        if isinstance(step, int):
            yield f"[{step}]"
            continue
        if is_hidden(path, step):
            yield "[a hidden key]"
            return
        short = shortened(step)
        yield f".{short}" if _NAME.fullmatch(short) else f"[{short!r}]"
        if _SECRET_NAME.search(step):
            return
