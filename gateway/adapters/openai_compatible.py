"""The wire format that every kind speaks: OpenAI's, at a base URL, with an optional bearer key.

https://platform.openai.com/docs/api-reference. Everything here is pure: text and bytes in, text and bytes out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec

Operation = Literal["chat/completions", "completions", "responses", "embeddings"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)

DEFAULT_HEALTH_PATH: Final = "/health"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MOST_MODELS: Final = 10_000


class Address(msgspec.Struct, frozen=True):
    """A base URL, split into parts.

    `origin` is scheme, host and port (RFC 6454; without the scheme's default port); `path` has no trailing slash;
    `host_port` always names the port.
    """

    origin: str
    path: str
    host_port: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Split an http or https URL that `config` has found valid; scheme and host are put in lower case."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        default = _DEFAULT_PORTS[parts.scheme]
        port = parts.port or default
        origin = f"{parts.scheme}://{host}" + ("" if port == default else f":{port}")
        return cls(origin, parts.path.rstrip("/"), f"{host}:{port}")

    @property
    def identity(self) -> str:
        """What two spellings of one endpoint share: origin and path, without a trailing `/v1`."""
        return self.origin + self.path.removesuffix("/v1").rstrip("/")

    def operation_urls(self) -> Mapping[Operation, str]:
        """Return each operation's URL; a base URL without a path gets `/v1`, one with a path is used as it is."""
        base = self.origin + (self.path or "/v1")
        return MappingProxyType({operation: f"{base}/{operation}" for operation in OPERATIONS})

    def health_url(self, path: str | None) -> str:
        """Return the URL that a health probe requests; `path` starts with a slash."""
        return self.origin + (path or DEFAULT_HEALTH_PATH)


def authorization(key: str | None) -> Mapping[str, str]:
    """Return the header fields that carry the deployment's key (RFC 6750)."""
    return MappingProxyType({"Authorization": f"Bearer {key}"} if key else {})


class UnreplaceableModelError(ValueError):
    """The body's `model` could not be replaced; the message says why."""


WITH_USAGE: Final = b',"stream_options":{"include_usage":true}}'
"""What replaces an object's last brace, to ask for the usage of a stream."""


def with_usage(body: bytes) -> bytes:
    """Ask for the usage of a stream (`stream_options.include_usage`) in a JSON object that has only other fields."""
    return body.rstrip()[:-1] + WITH_USAGE


class _Body(msgspec.Struct):
    model: str


_decoder: Final = msgspec.json.Decoder(_Body)
_MODEL: Final = re.compile(
    rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
    rb'[ \t\r\n]*+:[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")'
)
"""A field called `model`, in any spelling of its letters (RFC 8259 7), whose value is a string."""
_NAME: Final = b'"model"'
_PLAIN: Final = re.compile(_NAME)  # such an expression searches a body faster than `find`
_START, _END = _NAME[:2], _NAME[2:]
"""In a long text, Python finds five bytes in a quarter of the time that it needs for more."""
_ESCAPED: Final = b"\\u006"
"""How every escaped spelling of a letter of `model` begins."""

Span = tuple[int, int]
"""The start and the end of bytes in a body."""


def replace_model(body: bytes, model: str) -> bytes:
    """Replace the value of the top-level `model`, leaving every other byte as it is.

    Raises:
        UnreplaceableModelError: as `place_of_model` does.

    """
    return _replaced(body, place_of_model(body), model)


def replace_read_model(body: bytes, model: str) -> bytes:
    """Do what `replace_model` does with a body whose top-level `model` has been read, as text.

    If only one field or text is called `model`, it is the one. That saves decoding the body a second time.

    Raises:
        UnreplaceableModelError: as `place_of_model` does.

    """
    if _ESCAPED not in body:
        start = body.find(_END) - len(_START)
        match = _MODEL.match(body, start) if start >= 0 and body.find(_END, start + len(_NAME)) < 0 else None
        if match is not None:
            return _replaced(body, match.span(1), model)
    return replace_model(body, model)


def _replaced(body: bytes, span: Span, model: str) -> bytes:
    start, end = span
    return body[:start] + msgspec.json.encode(model) + body[end:]


def place_of_model(body: bytes) -> Span:
    """Return the span of the value of the top-level `model`.

    String values of fields called `model` are easy to find, but only the decoder knows which field is at the top level.
    So each such value is replaced by its number, and the number that the decoder reads as `model` is the right one. The
    body is never decoded in full, and the work grows with its length alone.

    Raises:
        UnreplaceableModelError: the body is not JSON; `model` is missing, not a string, or at the top level twice
            (which of the two an upstream would use is unknown: RFC 8259 4); or over 10,000 fields or strings are
            `model`.

    """
    found = [*islice(_called_so(body), _MOST_MODELS + 1)]
    if len(found) > _MOST_MODELS:
        raise UnreplaceableModelError(f"found over {_MOST_MODELS} fields or texts called model, expected fewer")
    spans = [match.span(1) for match in found if match is not None]
    numbers = (b'"%d"' % number for number in range(len(spans)))
    place = int(_read_model(_spliced(body, spans, numbers)))
    if len(spans) > 1:
        alone = (b'""' if number == place else b"0" for number in range(len(spans)))
        _read_model(_spliced(body, spans, alone))
    return spans[place]


def _called_so(body: bytes) -> Iterator[re.Match[bytes] | None]:
    """Yield a match for each field called `model`, in order, and None for any other string that is `model`.

    `_MODEL` tries every quote, and a body may hold little else: it searches a body only if that may spell the name with
    escapes, which is rare.
    """
    if _ESCAPED in body:
        yield from _MODEL.finditer(body)
        return
    position = 0
    while (name := _PLAIN.search(body, position)) is not None:
        match = _MODEL.match(body, name.start())
        yield match
        position = match.end() if match else name.start() + 1


def _read_model(body: bytes) -> str:
    try:
        return _decoder.decode(body).model
    except msgspec.ValidationError:
        raise UnreplaceableModelError("model: expected it once, as text") from None
    except (msgspec.DecodeError, RecursionError):
        raise UnreplaceableModelError("the body is not valid JSON, or nested too deeply") from None


def _spliced(body: bytes, spans: Iterable[Span], values: Iterable[bytes]) -> bytes:
    whole = memoryview(body)
    parts: list[bytes | memoryview] = []
    position = 0
    for (start, end), value in zip(spans, values, strict=True):
        parts += (whole[position:start], value)
        position = end
    return b"".join((*parts, whole[position:]))
