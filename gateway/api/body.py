"""A request's body: what its head must say, its bytes, and the few fields of it that routing needs.

A body is read whole before anything is decided, within a limit and a deadline; only the fields of `Peek` are decoded.
The deadline grows with what has arrived, so that a slow upload passes and a stalled or trickled one does not.
"""

import asyncio
import re
from io import BytesIO
from typing import Final

import msgspec
from aiohttp import StreamReader, web
from multidict import CIMultiDictProxy

from gateway.adapters.edited import LARGE
from gateway.adapters.openai_compatible import Operation
from gateway.api.errors import RequestError

JSON: Final = "application/json"
_GRACE: Final = 30.0
_MOST_DIGITS: Final = 9
_SLOWEST: Final = 16_384
_CREDIT: Final = 8
"""A body's declared length is reserved in memory when it is at most this many times what has arrived."""


class Limits(msgspec.Struct, frozen=True):
    """The limits of a request: bytes of its body, and the seconds for which the body may stall."""

    body: int = 32 << 20
    stall: float = _GRACE


class Peek(msgspec.Struct):
    """The fields of a body that routing needs. Of `stream_options`, only its presence matters."""

    model: str
    stream: bool | None = None
    stream_options: msgspec.Raw = msgspec.Raw()
    n: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()

    @property
    def choices(self) -> int:
        """How many choices the answer will have, `n` for each prompt; 0 where that is not known."""
        number = bytes(self.n)
        if number in {b"", b"null"}:
            return self._prompts
        return self._prompts * int(number) if number.isdigit() and len(number) <= _MOST_DIGITS else 0

    @property
    def _prompts(self) -> int:
        """How many prompts there are: a list of numbers is one prompt, written as tokens."""
        if _PROMPTS.match(self.prompt) is None:
            return 1
        return len(_items.decode(self.prompt))

    def adds_usage(self, operation: Operation) -> bool:
        """Return whether to ask the upstream for a stream's usage where the client does not."""
        return self.stream is True and not self.stream_options and operation in _TELLING


_TELLING: Final = frozenset({"chat/completions", "completions"})
"""The operations that report a stream's usage only when asked to."""
_SHOWN: Final = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_peek: Final = msgspec.json.Decoder(Peek)
_HALF: Final = re.compile(rb"(?i)\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})|(?P<second>\\ud[c-f][0-9a-f]{2})\Z")
"""Half of a surrogate pair: a first one without a second, or a second one at the end (RFC 8259 8.2)."""
_FIRST: Final = re.compile(rb"(?i)\\ud[89ab][0-9a-f]{2}")
_PAIR: Final = 12
_PROMPTS: Final = re.compile(rb"\[[ \t\r\n]*+[^ \t\r\n0-9]")
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])


def check_head(headers: CIMultiDictProxy[str], kind: str, length: int, limit: int) -> None:
    """Check what the head says of the body; `kind` is its media type, `length` and `limit` are in bytes.

    Raises:
        RequestError: 400 for a body that is not JSON, 415 for a compressed one, 413 above the limit (RFC 9110 15.5).

    """
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = repr(kind[:100]) if kind else "none"
        raise RequestError(400, f"content-type: found {shown}, expected application/json", param="content-type")
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestError(
            415, "content-encoding: expected none", code="unsupported_encoding", param="content-encoding"
        )
    if length > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes", code="request_too_large")


async def read_body(content: StreamReader, limits: Limits, length: int) -> bytes:
    """Read the body.

    Raises:
        RequestError: 413 above the limit, 408 when it stalls (RFC 9110 15.5.14, 15.5.9), 400 when it is badly framed.

    """
    try:
        body = await (content.read() if content.is_eof() else _arrived(content, limits, length))
    except TimeoutError as error:
        raise RequestError(408, "the request's body stopped arriving", code="request_timeout") from error
    except web.RequestPayloadError as error:
        raise RequestError(400, "the request's body is malformed or incomplete", code="invalid_body") from error
    if len(body) > limits.body:
        raise _too_large(limits.body)
    return body


async def _arrived(content: StreamReader, limits: Limits, expected: int) -> bytes:
    """Collect a body in one buffer: joining its parts at the end would hold it in memory twice."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    body = BytesIO()
    is_roomy = expected <= LARGE
    async with asyncio.timeout(limits.stall) as deadline:
        while part := await content.readany():
            body.write(part)
            size = body.tell()
            if size > limits.body:
                raise _too_large(limits.body)
            if not is_roomy and size < expected <= size * _CREDIT:
                is_roomy = True
                _make_room(body, expected)
            deadline.reschedule(began + limits.stall + size / _SLOWEST)
    return body.getvalue()


def _make_room(body: BytesIO, length: int) -> None:
    """Extend a buffer to its final length: one that grows is moved at times, and is in memory twice meanwhile."""
    size = body.tell()
    body.seek(length - 1)
    body.write(b"\0")
    body.seek(size)


def peek_body(body: bytes) -> Peek:
    """Decode what routing needs to know of a body.

    Raises:
        RequestError: it is not a JSON object, or `model` or `stream` is not valid.

    """
    if not body:
        raise RequestError(400, "the body is empty, expected a JSON object", code="invalid_json")
    try:
        return _peek.decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # the cause would hold the body
        raise RequestError(400, f"the body is not valid JSON: {_position(error, body)}", code="invalid_json") from None


def _field_error(message: str) -> RequestError:
    """Name the field that msgspec's message is about (`Expected `str`, got `int` - at `$.model``)."""
    if "required field `model`" in message:
        return RequestError(400, "model is missing", code="missing_field", param="model")
    for param in ("model", "stream"):
        if f"$.{param}" in message:
            expected = "a string" if param == "model" else "true or false"
            found = message.partition("got `")[2].partition("`")[0]
            found = _SHOWN.get(found, found)
            return RequestError(400, f"{param}: found {found}, expected {expected}", code="invalid_type", param=param)
    return RequestError(400, "the body is not a JSON object", code="invalid_type")


def _position(error: Exception, body: bytes) -> str:
    """Say what is wrong and where, without anything that the decoder may quote from the body."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    _, marker, told = str(error).partition("(byte ")
    place = int(told.rstrip(")")) if marker else len(body)
    if not marker or "hex escape" in str(error) or "surrogate" in str(error):  # a half at the end reads as cut short
        begins = max(0, place - _PAIR)
        for half in _HALF.finditer(body[begins:place]):
            at = begins + half.start()
            first = at - _PAIR // 2
            is_whole = half["second"] and _FIRST.fullmatch(body, first, at) and _is_escape(body, first)
            if _is_escape(body, at) and not is_whole:
                return f"half of a surrogate pair at byte {at}, as of an emoji that was cut in two"
    return f"unexpected at byte {place}" if marker else "it is cut short"


def _is_escape(body: bytes, at: int) -> bool:
    """Return whether the backslash there is not itself escaped."""
    return not (at - len(body[:at].rstrip(b"\\"))) % 2
