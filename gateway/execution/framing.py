"""The chunks of HTTP/1.1 (RFC 9112, 7.1), in the form that nearly everybody writes: lower case, no leading zeros.

So the length of a whole chunk tells how it begins, and what is both can be passed on as it is.
"""

from typing import Final

ENDS: Final = b"\r\n"
_LONGEST: Final = 4096
_MOST_DIGITS: Final = 8


def framed(data: bytes) -> bytes:
    """Make a chunk of some bytes; there must be one at least."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Beginnings(dict[int, bytes]):
    """Mutable: those that were asked for are kept, if they are of short chunks."""

    def __missing__(self, length: int) -> bytes:
        begins = _begins(length)
        if length < _LONGEST:
            self[length] = begins
        return begins


def _begins(length: int) -> bytes:
    for digits in range(1, _MOST_DIGITS + 1):
        size = length - digits - 2 * len(ENDS)
        begins = b"%x\r\n" % size
        if size > 0 and len(begins) == digits + len(ENDS):
            return begins
    return b""


BEGINNINGS: Final = _Beginnings()
"""How a chunk of a length begins, framing counted; empty where none is so long."""
