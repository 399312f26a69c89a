"""The kinds of value that the fields of both files hold, and what each refuses.

Numbers, counts and flags accept interpolated text that reads as one (`"${FRACTION:-0.6}"`), and no other text.
A refusal is a PydanticCustomError of type `expected` (the rest of "found X, expected ...") or `found` (a whole
message, for a value that must not be shown).
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal, NoReturn, get_args
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    Strict,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from gateway.config.environment import Interpolated
from gateway.config.ledger_place import BadPlaceError, Place
from gateway.config.scalars import resolve, surprise

Kind = Literal[
    "openai",
    "openai_compatible",
    "vllm",
    "sglang",
    "llamacpp",
    "ollama",
    "lmstudio",
    "llama",
    "deepseek",
    "gemini",
    "openrouter",
]
KINDS: tuple[str, ...] = get_args(Kind)

LARGEST_WEIGHT = 1e9
LONGEST_SECONDS = 86_400.0
LONGEST_DAYS = 36_500.0
MOST_ATTEMPTS = 100
MOST_FAILURES = 1_000

_REGISTERED_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[!-~]+")
_PATH = re.compile(r"/[!-\"$-~]*")


@dataclass(frozen=True, slots=True)
class Unset:
    """Stands for the value of a variable that is not set, or that is empty where an address is needed.

    `written` is an address as written in the file, part of which may be a secret; it is empty for a key.
    """

    variable: str
    written: str = field(default="", repr=False)


def _refuse(expected: str) -> NoReturn:
    raise PydanticCustomError("expected", "expected {expected}", {"expected": expected})


def _refuse_unseen(message: str) -> NoReturn:
    raise PydanticCustomError("found", "{message}", {"message": message})


def _unwrapped(value: object) -> object:
    """Read interpolated text as a plain scalar."""
    return resolve(value) if isinstance(value, Interpolated) and surprise(value) is None else value


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip() or not text:
        _refuse("printable text without leading or trailing spaces")
    return text


def _prose(text: str) -> str:
    if not all(character.isprintable() or character in "\n\t" for character in text):
        _refuse("printable text")
    return text


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        _refuse("a path such as /health")
    return text


def _key(value: object) -> object:
    """Wrap a key as a secret; visible ASCII is what every field value may hold (RFC 9110 5.5)."""
    if value is None or value == "" or isinstance(value, Unset | SecretStr):
        return value or None
    if not isinstance(value, str):
        _refuse("a key as text: quote it")
    if not _KEY.fullmatch(value):
        whose = f"the value of {value.source}" if isinstance(value, Interpolated) else "a key"
        _refuse_unseen(f"found {whose} with a space, a control or a non-ASCII character, expected a key without them")
    return SecretStr(str(value))


def _client_key(value: object) -> object:
    """Wrap a required key as a secret: without a key, anybody would count as that client."""
    if isinstance(value, Interpolated) and not value:
        return Unset(value.variables[0])
    return _key(value) or _refuse_unseen("found no key, expected the one that this client sends")


def _some(value: object) -> object:
    """Refuse an empty value, which may be meant as none but would be treated as all."""
    return _refuse("at least one entry, or leave it out") if value is None or is_nothing(value) else value


def _base_url(value: object) -> object:
    """Check a base URL (RFC 3986, RFC 9110 4.2); it is kept as written."""
    if isinstance(value, Unset):
        return value
    if not isinstance(value, str):
        _refuse("a URL such as http://localhost:8000")
    if not value.isprintable() or any(map(str.isspace, value)):
        _refuse("a URL without spaces or control characters")
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        _refuse_unseen("found a URL with a malformed host or port, expected one such as http://localhost:8000")
    _check_url(url, port, bare_ends=value[-1:] in {"?", "#"})
    return str(value)


def _check_url(url: SplitResult, port: int | None, *, bare_ends: bool) -> None:
    hint = ": a variable is written ${NAME}" if "$" in url.netloc or url.path[:1] == "$" else ""
    if url.username is not None:
        _refuse_unseen("found a user name in the URL, expected none: only a bearer key can be sent, as api_key")
    if url.query or url.fragment or bare_ends:
        _refuse_unseen(
            "found a query or a fragment in the URL, expected none: only a bearer key can be sent, as api_key"
        )
    if url.scheme not in {"http", "https"}:
        _refuse(f"a URL that starts with http:// or https://{hint}")
    if not _is_host(url.hostname or ""):
        _refuse(f"a URL with a host, such as http://localhost:8000{hint}")
    if port == 0 or url.netloc.endswith(":"):
        _refuse("a URL with a port from 1 to 65535, or none")
    if url.path.rstrip("/").endswith("/chat/completions"):
        _refuse("the base URL, without the /chat/completions that is added to it")


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _REGISTERED_NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _price(value: object) -> object:
    number = _unwrapped(value)
    if isinstance(number, int | float) and not isinstance(number, bool) and number >= 0:
        return number
    return str(value) if isinstance(value, str) and value else _refuse("a price: a number of at least 0, or text")


def _ledger_place(value: object) -> object:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        _refuse("a URL such as sqlite:///ledger.db")
    try:
        return Place.of(value)
    except BadPlaceError as error:
        _refuse_unseen(str(error))


def is_nothing(value: object) -> bool:
    """Return whether interpolated text came out empty."""
    return isinstance(value, Interpolated) and not value


def freeze(value: object) -> object:
    """Return plain data as immutable data: tuples and read-only mappings, all the way down.

    Interpolated text becomes the scalar that it reads as; a key whose value came out empty is dropped.
    """
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items() if not is_nothing(item)})
    if isinstance(value, list | tuple):
        return tuple(map(freeze, value))
    return _unwrapped(value)


_READ = BeforeValidator(_unwrapped)

Text = Annotated[str, Strict(), AfterValidator(_printable), Field(json_schema_extra={"minLength": 1})]
Prose = Annotated[str, Strict(), AfterValidator(_prose)]
HealthPath = Annotated[str, Strict(), AfterValidator(_path), Field(json_schema_extra={"pattern": r"^/|\$\{"})]
Texts = tuple[Text, ...]
Flag = Annotated[bool, Strict(), _READ]
Count = Annotated[int, Strict(), Field(ge=1), _READ]
Attempts = Annotated[int, Strict(), Field(ge=1, le=MOST_ATTEMPTS), _READ]
Failures = Annotated[int, Strict(), Field(ge=1, le=MOST_FAILURES), _READ]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False), _READ]
Weight = Annotated[float, Strict(), Field(ge=0, le=LARGEST_WEIGHT, allow_inf_nan=False), _READ]
Interval = Annotated[float, Strict(), Field(ge=0, le=LONGEST_SECONDS, allow_inf_nan=False), _READ]
Days = Annotated[float, Strict(), Field(ge=0, le=LONGEST_DAYS, allow_inf_nan=False), _READ]
Timeout = Annotated[float, Strict(), Field(gt=0, le=LONGEST_SECONDS, allow_inf_nan=False), _READ]
BaseUrl = Annotated[
    str | Unset, PlainValidator(_base_url), WithJsonSchema({"type": "string", "pattern": r"^https?://|\$\{"})
]
Key = Annotated[
    SecretStr | Unset | None, PlainValidator(_key), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})
]
ClientKey = Annotated[
    SecretStr | Unset, PlainValidator(_client_key), WithJsonSchema({"type": "string", "minLength": 1})
]
Some = BeforeValidator(_some)
LedgerPlace = Annotated[
    Place | None,
    PlainValidator(_ledger_place),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^sqlite:///|^postgres(ql)?://|\$\{"}, {"type": "null"}]}),
]
_Price = Annotated[
    float | str,
    PlainValidator(_price),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
Pricing = Annotated[Mapping[str, _Price], AfterValidator(freeze)]
Parameters = Annotated[Mapping[str, object], AfterValidator(freeze)]
