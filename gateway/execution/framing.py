"""HTTP/1.1 chunks (RFC 9112, 7.1), in the form that nearly every sender uses: lower case, no leading zeros.

The length of a whole chunk then determines how it begins, so a chunk that fits can be passed on as it is.
"""

from typing import Final

ENDS: Final = b"\r\n"
_LONGEST: Final = 4096
_MOST_DIGITS: Final = 8


def framed(data: bytes) -> bytes:
    """Return a chunk that holds `data`, which must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Beginnings(dict[int, bytes]):
    """How chunks begin, by their length. Mutable: caches the beginnings that were asked for, of short chunks only."""

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
"""How a chunk begins, by its whole length, framing included; empty if no chunk has that length."""
