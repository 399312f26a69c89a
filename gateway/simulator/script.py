"""What goes over the wire, as values: the steps of a script, and the parts of an answer that make up scripts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice, pairwise

Json = dict[str, object]
Pace = Callable[[int], float]
"""Returns the seconds to wait before a token, by its number from 0."""

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Head:
    """Send a head; without a `length` (bytes), the body is chunked."""

    status: int = 200
    content_type: str = "application/json"
    length: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """Send a part of the body that the head announced."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """Send these bytes as they are, in place of a head and a body."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Send nothing for `seconds`."""

    seconds: float


class End(Enum):
    """End the connection, whatever is still to be sent. Without this step, the answer ends cleanly."""

    RESET = auto()
    CLOSE = auto()


Step = Head | Body | Raw | Pause | End
Script = Iterator[Step]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's parts, sent in this order: head, opening, pieces, closing, done.

    `pieces` are the tokens: one event each in a stream; in any other body, where a token has no place of its own, equal
    shares of the bytes. `closing` is never empty, so that an answer is not complete with its last token.
    """

    head: Head
    closing: bytes
    opening: bytes = b""
    pieces: tuple[bytes, ...] = ()
    done: bytes = b""

    @classmethod
    def whole(cls, body: bytes, tokens: int) -> "Reply":
        """Return the reply whose body is sent at once, after the time that its `tokens` take."""
        end = len(body) - 1
        bounds = [end * index // max(tokens, 1) for index in range(tokens + 1)]
        pieces = tuple(body[start:stop] for start, stop in pairwise(bounds))
        return cls(Head(length=len(body)), body[bounds[-1] :], pieces=pieces)

    @property
    def is_stream(self) -> bool:
        """Whether the answer is sent event by event."""
        return self.head.content_type == EVENT_STREAM

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join((self.opening, *self.pieces, self.closing, self.done))

    def script(self, pace: Pace) -> Script:
        """Yield the steps of the answer without a fault."""
        yield from self.until(None, pace)
        yield Body(self.closing)
        if self.done:
            yield Body(self.done)

    def until(self, tokens: int | None, pace: Pace) -> Script:
        """Yield the steps of the answer up to that number of tokens, or up to the last one, without what closes it."""
        if self.is_stream:
            yield self.head
            yield Body(self.opening)
            for index, piece in enumerate(islice(self.pieces, tokens)):
                yield from _pause(pace(index))
                yield Body(piece)
        else:
            for index in range(len(self.pieces)):
                yield from _pause(pace(index))
            yield self.head
            yield Body(b"".join(self.pieces[:tokens]))

    def with_event(self, event: bytes, tokens: int) -> "Reply":
        """Return the stream with one more event after that number of tokens, or after the last one."""
        before, after = self.pieces[:tokens], self.pieces[tokens:]
        if not before:
            return replace(self, opening=self.opening + event)
        return replace(self, pieces=(*before[:-1], before[-1] + event, *after))


def _pause(seconds: float) -> Script:
    if seconds:
        yield Pause(seconds)
