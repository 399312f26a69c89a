"""Requests from browser pages of other origins: the CORS protocol (https://fetch.spec.whatwg.org/#http-cors-protocol).

By default none are allowed: otherwise any page could spend the keys of a gateway that its reader's browser can reach.
Before a browser sends JSON to another origin it asks (a preflight), and unless the answer allows it, it sends nothing.
"""

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import web
from aiohttp.hdrs import (
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
    HOST,
    METH_OPTIONS,
    ORIGIN,
    VARY,
)

from gateway.api.context import Handler
from gateway.api.errors import RequestError

ANY: Final = "*"
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,?#@*]+")
_DEFAULT_PORT: Final = re.compile(r"(https://.*):443|(http://.*):80")
_API: Final = "/v1/"
_ADDRESS: Final = re.compile(r"[0-9.]+")
_REMEMBERED: Final = "7200"
"""Seconds for which a preflight is valid: the most that Chromium accepts."""


def origins(text: str) -> frozenset[str]:
    """Parse origins (RFC 6454 6.2) separated by commas, or `*` for any.

    They must match what browsers send: a default port is dropped, and hosts are ASCII, without a star in them.

    Raises:
        ValueError: one is not an origin; the message has what was found, and what is expected.

    """
    named = [part.strip().lower().removesuffix("/") for part in text.split(",")]
    for origin in named:
        if origin != ANY and not (origin.isascii() and _ORIGIN.fullmatch(origin)):
            raise ValueError(f"found {origin!r}, expected an origin such as https://chat.example.com, or *")
    return frozenset(found.expand(r"\1\2") if (found := _DEFAULT_PORT.fullmatch(each)) else each for each in named)


def check_page(headers: Mapping[str, str], allowed: frozenset[str]) -> None:
    """Refuse a page whose own name resolves to the gateway (DNS rebinding): its browser sees no other origin.

    No page of the gateway itself sends a POST. Pages under a local name (`.localhost`, or without a dot) or an IP
    address, or behind a proxy that speaks TLS, are let through.

    Raises:
        RequestError: 403.

    """
    origin, host = headers.get(ORIGIN, "").lower(), headers.get(HOST, "").lower()
    if origin != f"http://{host}" or not allowed.isdisjoint({ANY, origin}):
        return
    name = host.partition(":")[0]
    if "." in name and not name.endswith(".localhost") and not _ADDRESS.fullmatch(name):
        message = "pages of this origin may not send requests, unless --cors-origins names it"
        raise RequestError(403, message, code="origin_not_allowed")


class Cors:
    """Answers preflights of these origins, and lets their pages read the API's answers. It does not allow cookies."""

    def __init__(self, allowed: frozenset[str]) -> None:
        """Allow these origins, in lower case, or any with `*`."""
        self._allowed = allowed

    @web.middleware
    async def preflights(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a preflight; pass any other request to the handler."""
        headers = request.headers
        if request.method != METH_OPTIONS or ACCESS_CONTROL_REQUEST_METHOD not in headers or not self._allows(request):
            return await handler(request)
        answer = web.Response(status=204)
        answer.headers[ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST"
        answer.headers[ACCESS_CONTROL_MAX_AGE] = _REMEMBERED
        if ACCESS_CONTROL_REQUEST_HEADERS in headers:  # a star would not cover Authorization
            answer.headers[ACCESS_CONTROL_ALLOW_HEADERS] = headers[ACCESS_CONTROL_REQUEST_HEADERS]
        return answer

    async def stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set the fields that say which origin's pages may read an answer that is about to be sent."""
        if ANY not in self._allowed and request.path.startswith(_API):
            response.headers.add(VARY, ORIGIN)
        if self._allows(request):
            response.headers[ACCESS_CONTROL_ALLOW_ORIGIN] = ANY if ANY in self._allowed else request.headers[ORIGIN]
            response.headers[ACCESS_CONTROL_EXPOSE_HEADERS] = "*"

    def _allows(self, request: web.Request) -> bool:
        origin = request.headers.get(ORIGIN)
        return (
            origin is not None
            and request.path.startswith(_API)
            and (ANY in self._allowed or origin.lower() in self._allowed)
        )
