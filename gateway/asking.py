"""Requests to a running gateway, for the commands `check --diff` and `stats`."""

import urllib.request
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

_REACHED_AT: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - not bound


class UnreachableError(Exception):
    """The running gateway could not be asked, or did not answer the question; the message says why."""


def default_url(environ: Mapping[str, str]) -> str:
    """Return the address at which a `gateway serve` with the same environment would be reached from here.

    Raises:
        UnreachableError: the environment makes no valid address.

    """
    host = environ.get("GATEWAY_HOST", "").partition(",")[0].strip()
    host = _REACHED_AT.get(host, host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    port = environ.get("GATEWAY_PORT") or environ.get("PORT") or ""
    url = f"http://{host}:{port if port.isdecimal() else 8080}"
    if not is_url(url):
        raise UnreachableError(f"cannot ask {url}, which the environment gives: say where the gateway is with --url")
    return url


def is_url(text: str) -> bool:
    """Return whether `text` may be a gateway's address; one with a user name is not, because that would not be sent."""
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        return is_one and "@" not in parts.netloc and text.isprintable() and " " not in text
    except ValueError:
        return False


def ask(address: str, seconds: float, most: int) -> bytes:
    """Return the answer to a GET, up to `most` bytes. Blocking; no proxy is used.

    Raises:
        UnreachableError: there is no answer, or none within this many seconds.
        HTTPError: the answer is an error.

    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with closing(opener.open(address, timeout=seconds)) as answer:
            body: bytes = answer.read(most)
            return body
    except HTTPError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise UnreachableError(f"cannot ask {address}: {_told(reason, seconds)}") from error


def printable(line: str) -> str:
    """Escape control characters for a terminal: the text comes from another program."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def _told(reason: object, seconds: float) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer in {seconds:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    if isinstance(reason, UnicodeError):
        return "its host is malformed, or there is more than ASCII in it"
    return type(reason).__name__ if isinstance(reason, Exception) else str(reason)
