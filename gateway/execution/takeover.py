"""A second stream that takes over from a broken one: its events, joined to what the client has, and rewritten."""

from typing import Literal, NamedTuple

import msgspec

from gateway.execution.chunks import Chunk, Piece
from gateway.execution.joining import Continuation, DiffersError, Joiner, Replay
from gateway.execution.outcome import Usage
from gateway.execution.rewriting import Frame, recounted, rewritten

Rescue = Literal["continue", "replay"]
"""How a second stream is asked for: to continue the client's text, or to begin again."""


class New(NamedTuple):
    """An event for the client, and what it adds."""

    data: bytes
    pieces: tuple[Piece, ...]


class _Withheld(NamedTuple):
    """An event, what it says, and whether it is apart from the answer's text: usage, or what a content filter found."""

    data: bytes
    pieces: tuple[Piece, ...]
    is_apart: bool


class Takeover:
    """Takes a second stream's events.

    Mutable: how far it is joined, whether it has said anything, what is withheld until that is known, and the white
    space that it may still repeat.
    """

    def __init__(self, how: Rescue, said: tuple[Piece, ...], frame: Frame, spent: int) -> None:
        """Begin after what has been `said`, which took `spent` tokens."""
        self._joiner: Joiner = Replay(said) if how == "replay" else Continuation(said)
        self._overlap = _trailing_space(said) if how == "continue" else ""
        self._frame = frame
        self._spent = spent
        self._withheld: list[_Withheld] = []
        self._spoke = False

    def take(self, chunk: Chunk, data: bytes) -> list[New]:
        """Take an event; return the events that the client may have now.

        Raises:
            DiffersError: the stream does not go on from what the client has.

        """
        pieces = chunk.pieces()
        if pieces is None:
            raise DiffersError
        says = any(piece.text for piece in pieces)
        self._spoke = self._spoke or says
        # with a text, or before any, a finish reason may be one of many: then the end of the stream decides
        ends = chunk.finished and not says and self._spoke
        new = self._joiner.new(pieces) if says else tuple("" for _ in pieces)
        is_apart = not chunk.choices
        is_early = chunk.finished and not self._spoke and not self._joiner.settled
        if new is None or is_early or (is_apart and self._withheld):
            self._withheld.append(_Withheld(data, pieces, is_apart))
            return []
        released = self._released() if says else []
        if ends:
            released += self.end()
        if any(new) or is_apart or (self._joiner.settled and (chunk.finished or not says)):
            released.append(self._new(data, pieces, new))
        return released

    def end(self) -> list[New]:
        """Note that the stream has ended; return what was withheld.

        Raises:
            DiffersError: the client has more than the stream said.

        """
        self._joiner.end()
        return self._released()

    def recounted(self, usage: Usage) -> Usage:
        """Return the usage of one unbroken stream, from what this one reported."""
        return recounted(usage, self.given)

    @property
    def given(self) -> int:
        """How many of the client's tokens were in this upstream's prompt."""
        return 0 if self._joiner.repeats else self._spent

    def _released(self) -> list[New]:
        withheld, self._withheld = self._withheld, []
        new = [each for each in withheld if each.is_apart or not self._joiner.repeats]
        return [self._new(data, pieces, tuple(piece.text for piece in pieces)) for data, pieces, _ in new]

    def _new(self, data: bytes, pieces: tuple[Piece, ...], new: tuple[str, ...]) -> New:
        if self._overlap and not self._joiner.repeats:
            new = tuple(map(self._beyond_overlap, new))
        said = tuple(Piece(piece.part, text) for piece, text in zip(pieces, new, strict=True))
        try:
            return New(rewritten(data, new, self._frame, spent=self.given), said)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise DiffersError from None

    def _beyond_overlap(self, text: str) -> str:
        """Leave out the white space that the client has, and that was not passed to the box to continue from."""
        overlap, end = self._overlap, len(text)
        known = next((place for place in range(end) if text[place] != overlap[place : place + 1]), end)
        self._overlap = overlap[known:] if known == end else ""
        return text[known:]


def _trailing_space(said: tuple[Piece, ...]) -> str:
    text = said[-1].text if said else ""
    return text[len(text.rstrip()) :]
