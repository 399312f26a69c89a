"""A large body and the edits to it, kept apart so that the body is not copied.

Most of a large body is pictures: strings of many kilobytes without a quote or a backslash. Finding the one field that
is to be replaced does not require a search through them. So a shorter body is made, in which a letter replaces most of
each block that is free of both characters, and the field is found there as in any other body. Inside a string, the
letter changes nothing but the string, and cannot turn another name into `model`: what is left of a block is longer than
that. Outside a string (in a block of numbers), the letter makes the shorter body invalid JSON, and the whole body is
searched after all.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from gateway.adapters.openai_compatible import (
    WITH_USAGE,
    UnreplaceableModelError,
    place_of_model,
    replace_read_model,
    with_usage,
)

LARGE: Final = 1 << 16
_PIECE: Final = 1 << 18
_BLOCK: Final = 1 << 14
_KEPT: Final = 16
_LEFT_OUT: Final = _BLOCK - _KEPT - 1


class Edit(NamedTuple):
    """Bytes that replace those from `start` to `end`."""

    start: int
    end: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Edited:
    """A body with edits, in order, none of which overlaps another."""

    body: bytes = field(repr=False)
    edits: tuple[Edit, ...]

    def __len__(self) -> int:
        """Return the length of the edited body."""
        return len(self.body) + sum(len(edit.text) - (edit.end - edit.start) for edit in self.edits)

    def __bytes__(self) -> bytes:
        """Return the edited body, copied into one piece."""
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yield the parts of the edited body, without copying."""
        whole, position = memoryview(self.body), 0
        for edit in self.edits:
            yield whole[position : edit.start]
            yield edit.text
            position = edit.end
        yield whole[position:]


Body = bytes | Edited


def parts_of(body: Body) -> Iterable[bytes | memoryview]:
    """Return the parts of a body, without copying."""
    return body.parts() if isinstance(body, Edited) else (body,)


def pieces(body: Body) -> Iterator[memoryview]:
    """Yield a body in pieces, as they are to be sent, without copying."""
    for part in parts_of(body):
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            yield view[start : start + _PIECE]


def named(body: Body, model: str) -> Body:
    """Replace the top-level `model` of a body from which it has been read, as `replace_model` does.

    Raises:
        UnreplaceableModelError: as `replace_model` does.

    """
    if isinstance(body, Edited):
        body = bytes(body)
    if len(body) <= LARGE:
        return replace_read_model(body, model)
    return Edited(body, (Edit(*_place(body), msgspec.json.encode(model)),))


def asking_usage(body: Body) -> Body:
    """Ask for the usage of a stream, as `with_usage` does."""
    if isinstance(body, Edited):
        return Edited(body.body, (*body.edits, _usage(body.body)))
    return with_usage(body) if len(body) <= LARGE else Edited(body, (_usage(body),))


def _usage(body: bytes) -> Edit:
    return Edit(body.rindex(b"}"), len(body), WITH_USAGE)


def _place(body: bytes) -> tuple[int, int]:
    free = [start for start in range(0, len(body) - _BLOCK, _BLOCK) if _is_free(body, start)]
    with suppress(UnreplaceableModelError):
        start, end = place_of_model(_shorter(body, free))
        return _in_whole(start, free), _in_whole(end, free)
    return place_of_model(body)


def _is_free(body: bytes, start: int) -> bool:
    """Return whether a block lies all inside a string, or all outside."""
    end = start + _BLOCK
    return body.find(b'"', start, end) < 0 and body.find(b"\\", start, end) < 0


def _shorter(body: bytes, free: list[int]) -> bytes:
    """Leave out most of each of these blocks; its beginning stays, as it may belong to an escape (RFC 8259 7)."""
    whole, position = memoryview(body), 0
    parts: list[bytes | memoryview] = []
    for start in free:
        parts += (whole[position : start + _KEPT], b"x")
        position = start + _BLOCK
    return b"".join((*parts, whole[position:])) if free else body


def _in_whole(place: int, free: list[int]) -> int:
    """Convert a position in the shorter body to the one in the whole body."""
    for start in free:
        if place <= start + _KEPT:
            break
        place += _LEFT_OUT
    return place
