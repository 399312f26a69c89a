"""What nearly all events of one stream have in common: they are the same bytes except for the text.

So an event that has been decoded is a template for those that follow. It is cut at the text: `prefix`, text, `suffix`.
In an event that begins and ends the same way, the text is what stands between, and nothing need be decoded. That is
exact, not a guess:

- The text is a whole JSON string: the prefix ends with its opening quote, the suffix begins with its closing one. Other
  characters in its place, none of them a quote, a backslash or a control character, leave all JSON tokens of the event
  as they are, except for the value of that string.
- One trial, with another text in its place, shows that this string is the one that is read. JSON does not select a
  member by the value of another, so this holds for every text that is not empty.
- The event is one line of `data:` and the empty line, and the text has no line end: what begins and ends the same way
  is one event.
"""

from typing import Final, NamedTuple

from gateway.execution.chunks import MalformedError, plain, read
from gateway.execution.framing import ENDS
from gateway.execution.sse import is_one_line

_FIELD: Final = b"data:"
_OTHER: Final = "~"


def is_verbatim(text: str) -> bool:
    """Return whether a text stands in JSON as it is, and is not empty; some texts that do are excluded."""
    return bool(text) and text.isprintable() and '"' not in text and "\\" not in text


class Template:
    """The bytes around a text that is added to a `part` of the answer.

    `around` is their number; `ends` is the end of an HTTP chunk that is one whole event.
    """

    __slots__ = ("around", "ends", "part", "prefix", "suffix")

    def __init__(self, part: str, prefix: bytes, suffix: bytes) -> None:
        """Take what stands before the text and after it."""
        self.part = part
        self.prefix = prefix
        self.suffix = suffix
        self.ends = suffix + ENDS
        self.around = len(prefix) + len(suffix)

    @classmethod
    def of(cls, event: bytes, part: str, text: str) -> "Template | None":
        """Cut an event at the text that it says; None if the text does not stand in it as it is. `holds` checks it."""
        if not is_verbatim(text) or not is_one_line(event):
            return None
        body = text.encode()
        for quote in (b':"', b': "'):
            prefix, found, suffix = event.rpartition(quote + body + b'"')
            if found:
                return cls(part, prefix + quote, b'"' + suffix)
        return None

    def texts(self, chunk: bytes) -> list[str] | None:
        """Return what several events say; None for a single one, or if one of them, or their end, has another form."""
        before, *events = chunk.split(self.prefix)
        if before or len(events) == 1:
            return None
        texts: list[str] = []
        for event in events:
            middle = event.removesuffix(self.suffix)
            try:
                text = middle.decode()
            except UnicodeDecodeError:
                return None
            if len(middle) == len(event) or not is_verbatim(text):
                return None
            texts.append(text)
        return texts

    def holds(self, text: str) -> bool:
        """Return whether the event says another text, and nothing else, with that text in its place."""
        other = text + _OTHER
        try:
            chunk = read((self.prefix + other.encode() + self.suffix).removeprefix(_FIELD))
        except MalformedError:
            return False
        return chunk is not None and plain(chunk) == (self.part, other)


class Known(NamedTuple):
    """How events look that may pass without being read: their template, and where their texts are kept.

    When `kept` is longer than `most` bytes, the next event must be read.
    """

    template: Template
    kept: bytearray
    most: int


class Reader:
    """Base class for whatever reads all of an answer: it has no template."""

    __slots__ = ()

    @property
    def known(self) -> None:
        """None: nothing may pass without being read."""

    def took(self, events: int, size: int) -> None:
        """Do nothing: nothing passes without being read."""

    def repeated(self, _: bytes) -> int:
        """Take no chunk without reading it."""
        return 0
