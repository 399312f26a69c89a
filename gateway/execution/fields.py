"""Header fields, as pairs and as they are written (RFC 9112 5)."""

from collections.abc import Iterable
from typing import Final

EVENT_STREAM: Final = "text/event-stream"


class Fields:
    """Header fields in order. They are serialised once, however often they are sent."""

    __slots__ = ("pairs", "text")

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Serialise them, each with its line end.

        Raises:
            ValueError: one of them contains a line end, which would smuggle in another field.

        """
        self.pairs: Final = tuple(pairs)
        self.text: Final = "".join([f"{name}: {value}\r\n" for name, value in self.pairs])
        if self.text.count("\r") != len(self.pairs) or self.text.count("\n") != len(self.pairs):
            raise ValueError("a header field contains a line break")


NONE: Final = Fields(())


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type, in lower case; that of bytes if it names none (RFC 9110 8.3).

    Its parameters are ignored. aiohttp has the email package parse them, which raises for some.
    """
    kind = content_type.partition(";")[0].strip().lower()
    return kind if kind.count("/") == 1 else "application/octet-stream"
