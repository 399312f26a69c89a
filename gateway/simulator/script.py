"""What goes over the wire, as values: the steps of a script, and an answer's parts to make scripts of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice, pairwise

Json = dict[str, object]
Pace = Callable[[int], float]
"""Gives the seconds to wait before a token, by its number."""

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
    """Send nothing for so many seconds."""

    seconds: float


class End(Enum):
    """End the connection, whatever is still to come. A script without this step ends its answer well."""

    RESET = auto()
    CLOSE = auto()


Step = Head | Body | Raw | Pause | End
Script = Iterator[Step]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's parts, in the order in which they go out.

    `pieces` are the tokens: an event each in a stream, and in any other body, where a token has no place of its own,
    equal shares of its bytes. `closing` is never empty, so that an answer is not complete with its last token.
    """

    head: Head
    closing: bytes
    opening: bytes = b""
    pieces: tuple[bytes, ...] = ()
    done: bytes = b""

    @classmethod
    def whole(cls, body: bytes, tokens: int) -> "Reply":
        """Make the reply whose body goes out at once, after so many tokens have been waited for."""
        end = len(body) - 1
        bounds = [end * index // max(tokens, 1) for index in range(tokens + 1)]
        pieces = tuple(body[start:stop] for start, stop in pairwise(bounds))
        return cls(Head(length=len(body)), body[bounds[-1] :], pieces=pieces)

    @property
    def is_stream(self) -> bool:
        """Whether the answer is told event by event."""
        return self.head.content_type == EVENT_STREAM

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join((self.opening, *self.pieces, self.closing, self.done))

    def script(self, pace: Pace) -> Script:
        """Give the answer as it should be."""
        yield from self.until(None, pace)
        yield Body(self.closing)
        if self.done:
            yield Body(self.done)

    def until(self, tokens: int | None, pace: Pace) -> Script:
        """Give the answer up to that number of tokens, or up to the last one, without what closes it."""
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
        """Give the stream that has one more event after that number of tokens, or after the last one."""
        before, after = self.pieces[:tokens], self.pieces[tokens:]
        if not before:
            return replace(self, opening=self.opening + event)
        return replace(self, pieces=(*before[:-1], before[-1] + event, *after))


def _pause(seconds: float) -> Script:
    if seconds:
        yield Pause(seconds)
