"""Requests on a session's own connections, without what `ClientSession` does beside each of them.

What it does is for programs of every kind: it parses the URL, merges header fields, asks the cookie jar, traces, and
writes the body in a task of its own. Here all of that is known beforehand, or not wanted. The connections stay the
session's: its connector pools them, resolves names, does TLS, and counts.

This is the one module that leans on what aiohttp does not promise: the connector's pool, `ResponseHandler` and the
serializer of header fields, as they are in 3.14. What is rare (a large body, a connection that is not to be kept, a URL
that names a user) goes through the session.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.helpers import HeadersMixin, TimerNoop
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import _serialize_headers
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy
from yarl import URL

from gateway.execution.answer import heed

LARGEST: Final = 1 << 16
_KNOWN: Final = 4096
_SCHEMES: Final = frozenset({"http", "https"})
_READ_BUFFER: Final = 1 << 18
_FINAL: Final = 200
_SWITCHING: Final = 101
_timer: Final = TimerNoop()


def is_tested(version: str) -> bool:
    """Tell whether this module was tested with a version of aiohttp."""
    return version.startswith("3.14.")


class DirectResponse(HeadersMixin):
    """An answer's head, and its body to come: as much of `ClientResponse` as an `Answer` needs.

    Mutable: the connection, until it is back in the pool or closed. `ended` tells when it is lost.
    """

    def __init__(self, connection: Connection, status: int, headers: CIMultiDictProxy[str], body: StreamReader) -> None:
        """Take an answer whose head was read."""
        self.status = status
        self.headers = self._headers = headers
        self.content = body
        closed = None if connection.protocol is None else connection.protocol.closed
        self.ended: asyncio.Future[None] = closed or asyncio.get_running_loop().create_future()
        self.ended.remove_done_callback(heed)
        self.ended.add_done_callback(heed)
        self._connection: Connection | None = connection
        body.on_eof(self.release)

    def release(self) -> None:
        """Give the connection back; the pool closes one that cannot be used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def close(self) -> None:
        """Close the connection: the rest of the body is not wanted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Place(NamedTuple):
    """Where a URL leads: what the connector wants to know, and the request's first lines."""

    request: aiohttp.ClientRequest
    key: ConnectionKey
    line: str
    host: str


class Direct:
    """Sends requests over a session's connections. Mutable: where the URLs lead that were asked for."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """Use this session's connector, and its header fields."""
        assert session.connector is not None  # noqa: S101 - it is open
        self._session = session
        self._connector = session.connector
        self._fields = dict(session.headers)
        self._places: dict[str, _Place | None] = {}

    def place(self, url: str) -> _Place | None:
        """Say where a URL leads; None where the session is to be asked."""
        try:
            return self._places[url]
        except KeyError:
            if len(self._places) >= _KNOWN:
                self._places.clear()
            place = self._places[url] = self._found(url)
            return place

    def _found(self, text: str) -> _Place | None:
        try:
            url = URL(text)
        except ValueError:
            return None
        if url.scheme not in _SCHEMES or not url.raw_host or url.raw_user or url.raw_password:
            return None
        loop = asyncio.get_running_loop()
        request = aiohttp.ClientRequest("POST", url, loop=loop, session=self._session)
        return _Place(request, request.connection_key, f"POST {url.raw_path_qs} HTTP/1.1", request.headers["Host"])

    async def post(
        self,
        place: _Place,
        headers: dict[str, str],
        body: bytes,
        *,
        connect_timeout: float,
        sent: Callable[[], None],
        reused: Callable[[], None],
    ) -> DirectResponse:
        """Send a request and wait for the head of its answer, as `Upstream.open` says.

        `reused` is called when the connection comes out of the pool.

        Raises:
            aiohttp.ClientError, OSError: no head came.

        """
        connection = await self._connector._get(place.key, [])  # noqa: SLF001 - `connect` tells only traces of it
        if connection is not None:
            reused()
        else:
            timeout = _within(connect_timeout)
            connection = await self._connector.connect(place.request, traces=[], timeout=timeout)
        try:
            return await self._ask(connection, self._head(place, headers, len(body)), body, sent)
        except BaseException:
            connection.close()
            raise

    def _head(self, place: _Place, headers: dict[str, str], length: int) -> bytes:
        fields = {"Host": place.host, **self._fields, **headers}
        if "Accept" not in headers:
            fields["Accept"] = "*/*"
        fields["Content-Length"] = str(length)
        return _serialize_headers(place.line, fields)  # type: ignore[arg-type] # it asks for `items` only

    async def _ask(self, connection: Connection, head: bytes, body: bytes, sent: Callable[[], None]) -> DirectResponse:
        protocol = connection.protocol
        assert protocol is not None  # noqa: S101 - it has just come from the connector
        protocol.set_response_params(
            timer=_timer, read_until_eof=True, auto_decompress=False, read_bufsize=_READ_BUFFER
        )
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError
        transport.write(head + body)
        sent()
        while True:
            try:
                message, content = await protocol.read()
            except HttpProcessingError:
                raise aiohttp.ClientPayloadError from None  # it quotes the answer
            if message.code >= _FINAL or message.code == _SWITCHING:
                return DirectResponse(connection, message.code, message.headers, content)


@lru_cache(maxsize=64)
def _within(connect: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect)
