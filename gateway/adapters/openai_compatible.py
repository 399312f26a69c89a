"""The wire format that every kind speaks: OpenAI's, over a base URL and an optional bearer key.

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
    """A base URL, taken apart.

    `origin` is scheme, host and port (RFC 6454; the port left out where it is the scheme's own); `path` has no
    trailing slash; `host_port` always names the port.
    """

    origin: str
    path: str
    host_port: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Take an http or https URL apart that `config` has found valid; scheme and host come out in lower case."""
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
        """Give each operation's URL; a base URL without a path gets `/v1`, one with a path is used as it stands."""
        base = self.origin + (self.path or "/v1")
        return MappingProxyType({operation: f"{base}/{operation}" for operation in OPERATIONS})

    def health_url(self, path: str | None) -> str:
        """Give the URL that a health probe asks; `path` starts with a slash."""
        return self.origin + (path or DEFAULT_HEALTH_PATH)


def authorization(key: str | None) -> Mapping[str, str]:
    """Give the header fields that carry the deployment's key (RFC 6750)."""
    return MappingProxyType({"Authorization": f"Bearer {key}"} if key else {})


class UnreplaceableModelError(ValueError):
    """The body's `model` could not be replaced; the message says why."""


WITH_USAGE: Final = b',"stream_options":{"include_usage":true}}'
"""What stands in the place of an object's last brace, to ask for the usage of a stream."""


def with_usage(body: bytes) -> bytes:
    """Ask for the usage of a stream (`stream_options.include_usage`), in a JSON object that has other fields only."""
    return body.rstrip()[:-1] + WITH_USAGE


class _Body(msgspec.Struct):
    model: str


_decoder: Final = msgspec.json.Decoder(_Body)
_MODEL: Final = re.compile(
    rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
    rb'[ \t\r\n]*+:[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")'
)
"""A field called `model`, in any spelling of its letters (RFC 8259 7), whose value is text."""
_PLAIN: Final = re.compile(rb'"model"')  # such an expression looks through a body faster than `find`
_ESCAPED: Final = b"\\u006"
"""How each other spelling of a letter of its begins."""

Span = tuple[int, int]
"""From where to where bytes stand in a body."""


def replace_model(body: bytes, model: str) -> bytes:
    """Replace the value of the top-level `model`, leaving every other byte as it is.

    Raises:
        UnreplaceableModelError: as `place_of_model` does.

    """
    start, end = place_of_model(body)
    return body[:start] + msgspec.json.encode(model) + body[end:]


def place_of_model(body: bytes) -> Span:
    """Say where the value of the top-level `model` stands.

    Text that is the value of a field called `model` is easily found; whether that field is at the top is the
    decoder's to say. So each such text is replaced by its number, and the number that the decoder reads as `model` is
    the one. A body is never taken apart, and the work grows with its length alone.

    Raises:
        UnreplaceableModelError: `model` is missing or no text, stands at the top twice (which of the two an upstream
            would believe is anyone's guess: RFC 8259 4), or over 10,000 fields or texts are called so.

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
    """Find the fields called `model`, in their order, and nothing for what is another thing called so.

    The expression tries each quote, and a text may hold little else: nearly always the name is found without it.
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
