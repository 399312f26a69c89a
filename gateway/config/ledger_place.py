"""Where the ledger is: `sqlite:///relative.db`, `sqlite:////absolute.db`, or a PostgreSQL connection URI.

The forms are SQLAlchemy's for SQLite and libpq's for PostgreSQL
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS). A URL may hold a password: it is
never shown, and a URL that came from variables is shown as their names alone.
"""

from collections.abc import Iterator
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct
from pydantic import SecretStr

from gateway.config.environment import Interpolated

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")
_SECRET_PARAMETERS = frozenset({"password", "sslpassword"})
_EXAMPLES = "sqlite:///ledger.db or postgresql://user@host/database"


class BadPlaceError(ValueError):
    """Text that does not name a ledger; the message quotes none of it."""


class Place(Struct, frozen=True):
    """Where a ledger is; `shown` is the same without secrets.

    `path` is the file of a SQLite ledger, relative to the working directory unless absolute.
    """

    kind: Literal["sqlite", "postgresql"]
    shown: str
    url: SecretStr
    path: str = ""

    @classmethod
    def of(cls, url: str) -> "Place":
        """Parse a URL.

        Raises:
            BadPlaceError: it is not a URL, or a URL of another kind.

        """
        told = url.source if isinstance(url, Interpolated) else None
        text = str(url)
        if not text.isprintable() or text != text.strip():
            raise BadPlaceError(f"found a URL with spaces at its ends or control characters, expected {_EXAMPLES}")
        if text.startswith("sqlite:"):
            return cls("sqlite", told or text, SecretStr(text), _path(text))
        if text.startswith(_POSTGRES):
            return cls("postgresql", told or _without_secrets(_split(text)), SecretStr(text))
        raise BadPlaceError(f"found a URL of another kind, expected {_EXAMPLES}")

    def secrets(self) -> frozenset[str]:
        """Return what no log line may contain."""
        return frozenset(_secrets(self.url.get_secret_value())) if self.kind == "postgresql" else frozenset()

    def __str__(self) -> str:
        return self.shown


def _path(text: str) -> str:
    path = text.removeprefix(_SQLITE)
    if path == text or not path or path.endswith("/") or path == ":memory:" or "?" in path:
        raise BadPlaceError(
            "found a SQLite URL without a file, expected sqlite:///ledger.db or sqlite:////srv/ledger.db"
        )
    return path


def _split(text: str) -> SplitResult:
    """Split a connection URI; libpq allows several hosts, each with a port, where a URL has one."""
    malformed = BadPlaceError(f"found a URL with a malformed host or port, expected {_EXAMPLES}")
    try:
        url = urlsplit(text)
        port = None if "," in url.netloc else url.port
    except ValueError:
        raise malformed from None
    if port == 0:
        raise malformed
    if url.fragment or any(map(str.isspace, text)):
        raise BadPlaceError(f"found a fragment or a space in the URL, expected {_EXAMPLES}: write it as %23 or %20")
    return url


def _without_secrets(url: SplitResult) -> str:
    return f"postgresql://{url.netloc.rpartition('@')[2]}{url.path}"


def _secrets(text: str) -> Iterator[str]:
    url = _split(text)
    yield text
    login = url.netloc.rpartition("@")[0]
    password = login.partition(":")[2]
    if password:
        yield from (password, unquote(password))
    for name, value in parse_qsl(url.query):
        if name in _SECRET_PARAMETERS:
            yield value
