"""A fault: what is wrong in a configuration file, and where."""

import difflib
from collections.abc import Iterable

from msgspec import Struct


class Fault(Struct, frozen=True):
    """One thing wrong with a file; a notice (a warning) has the same shape.

    `line` and `column` count from 1; line 0 stands for the file as a whole. `path` leads to the value inside the
    document, such as `models[0].route[1].weight`; it is empty for the document itself.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)

    def as_dict(self) -> dict[str, str | int]:
        """Give the fault as a JSON-ready mapping."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "path": self.path,
            "message": self.message,
        }


class ConfigError(Exception):
    """A configuration that cannot be served; `faults` are all that were found, and its text has one a line."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


def nearest(word: str, known: Iterable[str]) -> str:
    """Offer the known name closest to `word`, as the tail of a message; empty when none is close.

    >>> nearest("wieght", ["weight", "name"])
    ", did you mean 'weight'?"
    """
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f", did you mean {folded[close[0]]!r}?" if close else ""
