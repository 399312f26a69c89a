"""A fault: what is wrong in a configuration file, and where."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from msgspec import Struct

MOST_COMPARISONS: Final = 10_000


class Fault(Struct, frozen=True):
    """One thing that is wrong with a file; a notice (a warning) has the same shape.

    `line` and `column` count from 1; line 0 stands for the file as a whole. `path` leads to the value inside the
    document, such as `models[0].route[1].weight`; it is empty for the document itself.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    @classmethod
    def whole(cls, file: Path | str, message: str) -> "Fault":
        """Create a fault about a file as a whole."""
        return cls(str(file), 0, 0, "", message)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)

    def as_dict(self) -> dict[str, str | int]:
        """Return the fault as a JSON-ready mapping; lone surrogates (a file name that is not UTF-8) are escaped."""
        return {
            "file": _escaped(self.file),
            "line": self.line,
            "column": self.column,
            "path": _escaped(self.path),
            "message": _escaped(self.message),
        }


class ConfigError(Exception):
    """A configuration that cannot be served; `faults` are all that were found, and its text has one per line."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


class Suggestions:
    """Known names, the closest of which is offered for each wrong one, as the end of a message.

    A comparison costs about 40 us: after 10,000 of them, only words that were looked up before get an offer.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._folded = {name.casefold(): name for name in known}
        self._left = MOST_COMPARISONS
        self._offers: dict[str, str] = {}

    def nearest(self, word: str) -> str:
        """Offer the known name closest to `word`; empty when none is close."""
        if self._left > 0 and word not in self._offers:
            self._left -= len(self._folded)
            close = closest(word.casefold(), self._folded)
            self._offers[word] = f", did you mean {self._folded[close]!r}?" if close else ""
        return self._offers.get(word, "")


def nearest(word: str, known: Iterable[str]) -> str:
    """Offer the known name closest to `word`, as the end of a message; empty when none is close.

    >>> nearest("wieght", ["weight", "name"])
    ", did you mean 'weight'?"
    """
    return Suggestions(known).nearest(word)


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known word that is closest to `word`; empty if none is at least `cutoff` alike (0 to 1)."""
    return next(iter(get_close_matches(word, known, n=1, cutoff=cutoff)), "")
