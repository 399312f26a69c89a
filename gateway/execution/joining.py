"""Joining a second stream to what a client has of a first one.

A stream asked to go on from where the other stopped (`Continuation`) may in fact begin again: not every server heeds
the text that it is given to continue. A stream that begins again (`Replay`) has to say the same again: what the client
has is left out, and everything from the first new character on is passed on. So both compare. A continuation is held
back while it repeats the client's text from the start. If it repeats all of it, it was a replay; if it departs from it,
it was not, and what was held back is new.

A text of a few characters proves nothing: there a continuation is taken at its word. If the text repeats itself, or a
box reasons before it continues, the two cannot be told apart either: that is an error.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Final, Protocol

from gateway.execution.chunks import Piece

_TELLING: Final = 16


class DiffersError(Exception):
    """A second stream that cannot be joined to what the client has."""


class Transcript:
    """What a client has of an answer: pieces, joined where they add to the same part.

    Mutable: it grows; `part` is the part that was added to last, and `text` the end of that, in UTF-8.
    """

    __slots__ = ("_before", "_earlier", "part", "text")

    def __init__(self) -> None:
        """Start with nothing."""
        self.part = ""
        self.text = bytearray()  # a list of texts takes ten times the memory
        self._earlier: list[tuple[str, bytearray]] = []
        self._before = 0

    def add(self, part: str, text: str) -> None:
        """Note what has been passed on."""
        if not text:
            return
        if part != self.part:
            if self.text:
                self._earlier.append((self.part, self.text))
                self._before += len(self.text)
            self.part, self.text = part, bytearray()
        self.text += text.encode()

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._before + len(self.text)

    def runs(self) -> tuple[Piece, ...]:
        """Return the joined pieces, none of them empty."""
        runs = (*self._earlier, (self.part, self.text))
        return tuple(Piece(part, text.decode()) for part, text in runs if text)


class Joiner(Protocol):
    """Decides what of a second stream is new."""

    @property
    def repeats(self) -> bool:
        """Whether the second stream begins again."""
        ...

    @property
    def settled(self) -> bool:
        """Whether everything that it says from now on is new."""
        ...

    def new(self, pieces: Iterable[Piece]) -> tuple[str, ...] | None:
        """Return what is new in each of an event's pieces; None while that is not known.

        Raises:
            DiffersError: the streams cannot be joined.

        """
        ...

    def end(self) -> None:
        """Note that the second stream has ended.

        Raises:
            DiffersError: it said less than the client has.

        """
        ...


class Replay:
    """Joins a stream that begins again. Mutable: how much of the client's text it has repeated."""

    def __init__(self, said: tuple[Piece, ...]) -> None:
        """Expect what the client has."""
        self._said = said
        self._run = 0
        self._place = 0

    @property
    def repeats(self) -> bool:
        """True: it was asked to."""
        return True

    @property
    def settled(self) -> bool:
        """Whether everything has been repeated."""
        return self._run == len(self._said)

    def new(self, pieces: Iterable[Piece]) -> tuple[str, ...]:
        """Return what is new in each piece: nothing, its end, or all of it."""
        return tuple(self._new(piece) for piece in pieces)

    def end(self) -> None:
        """Note the end."""
        if not self.settled:
            raise DiffersError

    def _new(self, piece: Piece) -> str:
        if self.settled or not piece.text:
            return piece.text
        part, text = self._said[self._run]
        ahead = len(text) - self._place
        known = piece.text[:ahead]
        if piece.part != part or not text.startswith(known, self._place):
            raise DiffersError
        self._place += len(known)
        if len(known) < ahead:
            return ""
        self._run, self._place = self._run + 1, 0
        return self._new(Piece(piece.part, piece.text[ahead:]))


class Continuation:
    """Joins a stream that continues, or begins again all the same. Mutable: which of the two it does."""

    def __init__(self, said: tuple[Piece, ...]) -> None:
        """Expect what follows the text that the client has."""
        self._said = said
        telling = sum(len(piece.text) for piece in said) >= _TELLING
        self._replay = Replay(said) if telling else None

    @property
    def repeats(self) -> bool:
        """Whether it began again."""
        return self._replay is not None and self._replay.settled

    @property
    def settled(self) -> bool:
        """Whether it has departed from the client's text, or repeated all of it."""
        return self._replay is None or self._replay.settled

    def new(self, pieces: Iterable[Piece]) -> tuple[str, ...] | None:
        """Return what is new in each piece; None while it is not known whether anything is."""
        pieces = tuple(pieces)
        if not self.repeats and any(piece.text and piece.part == "reasoning" for piece in pieces):
            raise DiffersError
        if self._replay is not None:
            try:
                new = self._replay.new(pieces)
            except DiffersError:
                self._replay = None
            else:
                if self._replay.settled and self._circles:
                    raise DiffersError
                return new if self._replay.settled else None
        return tuple(piece.text for piece in pieces)

    @cached_property
    def _circles(self) -> bool:
        """Whether the client's text repeats itself, so that more of the same may well continue it."""
        return any(_is_periodic(piece.text) for piece in self._said)

    def end(self) -> None:
        """Note the end: a stream that repeated only a part of the client's text was new."""
        if not self.repeats:
            self._replay = None


def _is_periodic(text: str) -> bool:
    """Return whether a text is a shorter one, repeated at least twice, perhaps with a part of it at the end.

    The shortest such text ends where the first half of the whole occurs next. If the rest does not repeat from there,
    it does not with any longer one (Fine and Wilf).
    """
    half = text[: (len(text) + 1) // 2]
    shift = text.find(half, 1)
    return 0 < shift <= len(text) // 2 and text[shift:] == text[:-shift]
