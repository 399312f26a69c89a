"""Message heads that say what the one before them said.

On a connection, a head mostly repeats the last one, except for the length of the body, the id that a proxy may give a
request and, in an answer, the date and other fields of no interest here. A parser reads such a head once. For the next
one it is enough to check that the bytes around the digits (the id, the date) are the same: then it means the same, with
another length (RFC 9112, 2 and 6.2) and another id.
"""

import re
from functools import lru_cache
from typing import Final, Generic, TypeVar

_REQUEST: Final = re.compile(rb"(?i)(?<=\r\n)((?:content-length|x-request-id):[ \t]*)([ -~]{1,64})(?=\r\n)")
_ANSWER: Final = re.compile(rb"(?i)(?<=\r\n)((?:content-length|date|etag|x-request-id):[ \t]*)([ -~]{1,64})(?=\r\n)")
_PRINTABLE: Final = bytes(range(32, 127))
_END: Final = b"\r\n\r\n"
_MOST_DIGITS: Final = 9
_CREDIT: Final = 8
_LONGEST: Final = 64
_Meaning = TypeVar("_Meaning")
_LENGTH: Final = 1
_ID: Final = 2
_FREE: Final = 0
"""What a part that may differ is."""
_ID_FIELD: Final = b"\r\nx-request-id:"
_Rest = tuple[tuple[int, bytes, int], ...]


class LastHead(Generic[_Meaning]):
    """The head that was read last, and what it means.

    Mutable: the head, as the bytes before the parts that may differ and those after each of them; its `meaning`, and
    the `request_id` of the last repetition, None if that is a part of the meaning; and how many more heads are learned
    if none of them is ever repeated.
    """

    __slots__ = ("_begins", "_credit", "_holes", "_rest", "_start", "meaning", "request_id")

    def __init__(self, *, of_answer: bool) -> None:
        """Start without a head; it will be a request's or, if `of_answer`, an answer's, in which more may differ."""
        self._holes = _ANSWER if of_answer else _REQUEST
        self._begins: bytes | None = None
        self._start = 0
        self._rest: _Rest = ()
        self._credit = _CREDIT
        self.meaning: _Meaning | None = None
        self.request_id: bytes | None = None

    def repeated(self, data: bytes) -> tuple[int, int] | None:
        """Return where the head ends, and its body's length in bytes, if `data` begins with a repetition of it.

        Otherwise return None. The length is 0 if the head gives none.
        """
        at, digits = self._start, b"0"
        if data[:at] != self._begins:  # `startswith` takes twice as long
            return None
        for kind, known, size in self._rest:
            end = data.find(b"\r", at, at + _LONGEST)
            after = end + size
            if data[end:after] != known:
                return None
            if kind == _LENGTH:
                digits = data[at:end]
            elif data[at:end].translate(None, _PRINTABLE):
                return None
            elif kind == _ID:
                self.request_id = data[at:end]
            at = after
        if not digits.isdigit() or len(digits) > _MOST_DIGITS:
            return None
        self._credit = _CREDIT
        return at, int(digits)

    def learn(self, data: bytes, length: int | None, meaning: _Meaning) -> None:
        """Remember the head that `data` begins with, if it is complete and can be repeated.

        A parser has read it, and found this meaning and this length of the body, None if the head gives none. It skips
        empty lines before a head; two of them alone are not a head.
        """
        head = data[: data.find(_END) + len(_END)]
        if not self._credit or not head.endswith(_END) or head == _END:
            return
        if not head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r"):
            return
        self._credit -= 1
        holes = list(self._holes.finditer(head))
        kinds = [_LENGTH if hole[1][:1] in b"cC" else _FREE if self._holes is _ANSWER else _ID for hole in holes]
        told = [hole[2] for hole, kind in zip(holes, kinds, strict=True) if kind == _LENGTH]
        lengths = [int(text) if text.isdigit() else None for text in told]
        if lengths != [length] * (length is not None):
            return
        if _ID in kinds and head.lower().count(_ID_FIELD) > 1:
            return
        starts = [*(hole.start(2) for hole in holes), len(head)]
        begins, ends = head[: starts[0]], starts[1:]
        rest = tuple(
            (kind, head[hole.end(2) : end], end - hole.end(2))
            for kind, hole, end in zip(kinds, holes, ends, strict=True)
        )
        self._begins, self._rest = _one(begins, rest) if self._holes is _ANSWER else (begins, rest)
        self._start = len(begins)
        self.meaning = meaning
        self.request_id = None


@lru_cache(maxsize=256)
def _one(begins: bytes, rest: _Rest) -> tuple[bytes, _Rest]:
    """Return the same objects for all answers that say the same: a thousand boxes of one sort share one copy in memory.

    It is not used for requests, whose heads hold their clients' keys.
    """
    return begins, rest
