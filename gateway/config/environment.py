"""`${VAR}` and `${VAR:-default}` in the text of a value.

The grammar, read once from left to right; the value of a variable is not expanded again:

    text      = ( "$$" | reference | any other character )*
    reference = "${" name "}" | "${" name ":-" text "}"
    name      = [A-Za-z_][A-Za-z0-9_]*

`$$` is a dollar sign. A `$` before anything but `$` and `{` stands for itself. As in a shell, the default also replaces
a variable that is set but empty, ends at the first `}` that does not close a reference inside the default, and is
evaluated only when it is needed.
"""

import io
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

from msgspec import Struct

if TYPE_CHECKING:
    from dotenv.parser import Original

_TOKEN = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<end>:-|\})|(?P<bad>\$\{)|\}")
_DEEPEST = 16


class Interpolated(str):
    """Text in which variables were expanded.

    `variables` are their names, in the order in which they were read. The repr shows the names, never the text.
    """

    __slots__ = ("variables",)

    variables: tuple[str, ...]

    def __new__(cls, text: str, variables: tuple[str, ...]) -> Self:
        """Create the text; `variables` holds at least one name."""
        made = super().__new__(cls, text)
        made.variables = variables
        return made

    def __repr__(self) -> str:
        return f"<the value of {self.source}>"

    @property
    def source(self) -> str:
        """The variables as references: `${A}${B}`."""
        return "".join(f"${{{name}}}" for name in self.variables)


class MalformedReferenceError(ValueError):
    """A `${` that starts neither `${NAME}` nor `${NAME:-default}`."""


class UnsetVariablesError(LookupError):
    """Variables that are not set and have no default; `variables` names them."""

    def __init__(self, variables: tuple[str, ...]) -> None:
        super().__init__(*variables)
        self.variables = variables


class _Reference(Struct, frozen=True):
    name: str
    default: "tuple[str | _Reference, ...] | None"


_Parts = tuple[str | _Reference, ...]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace the references in `text`; return an `Interpolated` if there were any, else plain text.

    Raises MalformedReferenceError, or UnsetVariablesError with the names of all the variables that are missing.
    """
    if "$" not in text:
        return text
    parts, _ = _parse(text, 0, 0)
    used: list[str] = []
    unset: list[str] = []
    expanded = "".join(_evaluate(parts, variables, used, unset))
    if unset:
        raise UnsetVariablesError(tuple(unset))
    return Interpolated(expanded, tuple(used)) if used else expanded


def _parse(text: str, position: int, depth: int) -> tuple[_Parts, int]:
    """Parse from `position` to the end of the text, or (inside a default) to the brace that ends it."""
    parts: list[str | _Reference] = []
    while (token := _TOKEN.search(text, position)) is not None:
        parts.append(text[position : token.start()])
        position = token.end()
        if token["bad"] or depth > _DEEPEST:
            raise MalformedReferenceError
        if token["end"] == ":-":
            default, position = _parse(text, position, depth + 1)
            parts.append(_Reference(token["name"], default))
        elif token["name"]:
            parts.append(_Reference(token["name"], None))
        elif token[0] == "$$":
            parts.append("$")
        elif depth:
            return tuple(parts), position
        else:
            parts.append("}")
    if depth:
        raise MalformedReferenceError
    return (*parts, text[position:]), position


def _evaluate(parts: _Parts, variables: Mapping[str, str], used: list[str], unset: list[str]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        used.append(part.name)
        value = variables.get(part.name)
        if part.default is not None and not value:
            yield from _evaluate(part.default, variables, used, unset)
        elif value is None:
            unset.append(part.name)
        else:
            yield value


def read_env(text: str) -> tuple[dict[str, str], tuple[int, ...]]:
    """Read a `.env`: return its variables, and the lines (from 1) that are not assignments.

    python-dotenv parses it; references in it are not expanded. A name without `=` sets nothing.
    """
    from dotenv.parser import parse_stream  # noqa: PLC0415 - half a MB of memory that most configurations do not need

    bindings = list(parse_stream(io.StringIO(text)))
    values = {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}
    return values, tuple(_line(binding.original) for binding in bindings if binding.error)


def _line(original: "Original") -> int:
    """Return the line of a statement; python-dotenv makes the blank lines before it part of it."""
    blank = original.string[: len(original.string) - len(original.string.lstrip())]
    return original.line + blank.count("\n")
