"""Header fields, as pairs and as they are written (RFC 9112 5)."""

from collections.abc import Iterable
from typing import Final

EVENT_STREAM: Final = "text/event-stream"


class Fields:
    """Header fields in their order. They are written once, however often they are sent."""

    __slots__ = ("pairs", "text")

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write them, each with the end of its line.

        Raises:
            ValueError: one holds the end of a line: another one would be smuggled in.

        """
        self.pairs: Final = tuple(pairs)
        self.text: Final = "".join([f"{name}: {value}\r\n" for name, value in self.pairs])
        if self.text.count("\r") != len(self.pairs) or self.text.count("\n") != len(self.pairs):
            raise ValueError("a header field holds the end of a line")


NONE: Final = Fields(())


def media_type(content_type: str) -> str:
    """Read the media type in a Content-Type, in lower case; what names none is taken for bytes (RFC 9110 8.3).

    Its parameters are not looked at. aiohttp has them parsed by the email package, which raises for some.
    """
    kind = content_type.partition(";")[0].strip().lower()
    return kind if kind.count("/") == 1 else "application/octet-stream"
