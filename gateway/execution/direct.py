"""Requests on a session's own connections, without what `ClientSession` does beside each of them.

What it does is for programs of every kind: it parses the URL, merges header fields, asks the cookie jar, traces, and
writes the body in a task of its own. Here all of that is known beforehand, or not wanted. The connections stay the
session's: its connector pools them, resolves names, does TLS, and counts.

What is rare (a large body, a connection that is not to be kept, a URL that names a user) goes through the session. What
leans on aiohttp's inside is `protocol`.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

import aiohttp
import msgspec
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.adapters.openai_compatible import OPERATIONS, Operation
from gateway.execution.fields import Fields
from gateway.execution.protocol import AnswerProtocol, LastHeads, Said
from gateway.routing.snapshot import Deployment, Identity

LARGEST: Final = 1 << 16
KEEPALIVE: Final = 4.0
"""Seconds that a connection may wait for its next request: the shortest-lived server (uvicorn) closes it after 5."""
_KNOWN: Final = 4096
_SCHEMES: Final = frozenset({"http", "https"})


class DirectResponse:
    """An answer's head, and its body to come: as much of `ClientResponse` as an `Answer` needs.

    Mutable: the connection, until it waits for the next request or is closed.
    """

    __slots__ = ("_connection", "_origin", "body", "facts", "length")

    def __init__(self, origin: "Origin", connection: Connection, said: Said) -> None:
        """Take an answer whose head was read."""
        self.facts, self.length, self.body = said
        self._origin = origin
        self._connection: Connection | None = connection

    @property
    def was_reset(self) -> bool:
        """Whether the connection ended by a reset, or by an error of ours."""
        return self.body.reset

    def release(self) -> None:
        """Keep the connection for the next request, if it can be used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.body.go_on()
            self._origin.keep(connection)

    def close(self) -> None:
        """Close the connection: the rest of the body is not wanted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Exchange(msgspec.Struct):
    """A request on its way: `sent` is called when a part of it is sent, `reused` set where its connection was used."""

    sent: Callable[[], None]
    reused: bool = False


class Origin:
    """A scheme, host and port (RFC 9110, 4.3.1): requests to its URLs share connections.

    Mutable: the connections that wait for the next request, each since when, the newest last; and the timer that closes
    those that have waited too long.
    """

    __slots__ = ("_connector", "_loop", "_request", "_sweeper", "_waiting")

    def __init__(self, connector: aiohttp.BaseConnector, request: aiohttp.ClientRequest) -> None:
        """Ask this connector for connections, as this request would."""
        self._connector = connector
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Connection, float]] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def connected(self, seconds: float | None) -> Connection:
        """Connect within so many seconds; None: without limit.

        Raises:
            aiohttp.ClientError, OSError: there is no connection.

        """
        timeout = aiohttp.ClientTimeout(total=None, connect=seconds)
        return await self._connector.connect(self._request, traces=[], timeout=timeout)

    def keep(self, connection: Connection) -> None:
        """Let a connection wait for the next request, if it can be used again."""
        protocol = connection.protocol
        if not isinstance(protocol, AnswerProtocol) or not protocol.is_usable:
            connection.close()
            return
        protocol.waits()
        self._waiting.append((connection, self._loop.time()))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)

    def close(self) -> None:
        """Close the connections that wait."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection, _ in self._waiting:
            connection.close()
        self._waiting.clear()

    def kept(self) -> Connection | None:
        """Take a connection that waits; one that said something meanwhile is no longer to be trusted."""
        while self._waiting:
            connection, since = self._waiting.pop()
            protocol = connection.protocol
            assert isinstance(protocol, AnswerProtocol)  # noqa: S101 - it was kept
            if protocol.is_usable and self._loop.time() - since <= KEEPALIVE:
                return connection
            connection.close()
        return None

    def _sweep(self) -> None:
        """Close what has waited too long; look again when the next one will have."""
        now = self._loop.time()
        old = sum(1 for _, since in self._waiting if now - since >= KEEPALIVE)
        for connection, _ in self._waiting[:old]:
            connection.close()
        del self._waiting[:old]
        self._sweeper = None
        if self._waiting:
            self._sweeper = self._loop.call_at(self._waiting[0][1] + KEEPALIVE, self._sweep)


class Place(NamedTuple):
    """Where a URL leads: whom to ask, and the `lines` that each request begins with; and the last heads of answers."""

    origin: Origin
    lines: str
    last: LastHeads


class Way:
    """How a deployment is asked for one thing: of its requests, what is the same each time is written once.

    With a thousand deployments nothing of this is in the processor's cache when a request comes. So all that it needs
    is here, one step away.
    """

    __slots__ = ("_begins", "_last", "_origin", "deployment")

    def __init__(self, place: Place, deployment: Deployment) -> None:
        """Ask this deployment at its place.

        Raises:
            ValueError: a header field of the deployment's would smuggle another one in.

        """
        self.deployment = deployment
        self._origin = place.origin
        self._begins = place.lines + Fields(deployment.headers.items()).text
        self._last = place.last

    async def post(
        self, fields: Fields, request_id: str, body: bytes, *, connect_timeout: float, exchange: Exchange
    ) -> DirectResponse:
        """Send a request with these header fields beside the deployment's, and wait for the head of its answer.

        Raises:
            aiohttp.ClientError, OSError: no head came.

        """
        head = (
            f"{self._begins}{fields.text}x-request-id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        connection = self._origin.kept()
        is_kept = connection is not None
        if connection is None:
            connection = await self._origin.connected(connect_timeout)
        try:
            protocol = connection.protocol
            assert isinstance(protocol, AnswerProtocol)  # noqa: S101 - our connector makes no others
            exchange.reused = is_kept or protocol.was_used  # the session leaves some in the connector's pool
            awaited = protocol.ask(head + body, self._last)
            exchange.sent()
            try:
                return DirectResponse(self._origin, connection, await awaited)
            finally:
                del awaited  # an error in it would hold this frame, which holds it
        except HttpProcessingError:
            connection.close()
            raise aiohttp.ClientPayloadError from None  # it quotes the answer
        except BaseException:
            connection.close()
            raise


class Direct:
    """Sends requests over a session's connections.

    Mutable: where requests lead, by method and URL, and their origins; and the ways to deployments, by operation and
    identity.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """Use this session's connector, and its header fields."""
        assert session.connector is not None  # noqa: S101 - it is open
        self._session = session
        self._connector = session.connector
        self._fields = dict(session.headers)
        self._places: dict[tuple[str, str], Place | None] = {}
        self._origins: dict[Hashable, Origin] = {}
        self._ways: dict[Operation, dict[Identity, Way]] = {operation: {} for operation in OPERATIONS}

    def way(self, deployment: Deployment, operation: Operation) -> Way | None:
        """Give the way to a deployment; None where the session is to be asked.

        Raises:
            ValueError: a header field of the deployment's would smuggle another one in.

        """
        way = self._ways[operation].get(deployment.identity)
        return way if way is not None and way.deployment is deployment else self._way(deployment, operation)

    def _way(self, deployment: Deployment, operation: Operation) -> Way | None:
        place, ways = self._place("POST", deployment.urls[operation]), self._ways[operation]
        if place is None:
            return None
        if len(ways) >= _KNOWN:
            ways.clear()
        way = ways[deployment.identity] = Way(place, deployment)
        return way

    def _place(self, method: str, url: str) -> Place | None:
        try:
            return self._places[method, url]
        except KeyError:
            if len(self._places) >= _KNOWN:
                self.close()
            place = self._places[method, url] = self._found(method, url)
            return place

    async def get(self, url: str) -> DirectResponse | None:
        """Ask for a URL on a connection of its own, which is to be closed; None where the session is to be asked.

        Raises:
            aiohttp.ClientError, OSError: no head came.

        """
        place = self._place("GET", url)
        if place is None:
            return None
        connection = await place.origin.connected(None)
        try:
            protocol = connection.protocol
            assert isinstance(protocol, AnswerProtocol)  # noqa: S101 - our connector makes no others
            awaited = protocol.ask(f"{place.lines}Connection: close\r\n\r\n".encode(), place.last)
            try:
                return DirectResponse(place.origin, connection, await awaited)
            finally:
                del awaited  # as above
        except HttpProcessingError:
            connection.close()
            raise aiohttp.ClientPayloadError from None  # as above
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Forget the places, and close the connections that wait there."""
        for origin in self._origins.values():
            origin.close()
        self._origins.clear()
        self._places.clear()
        for ways in self._ways.values():
            ways.clear()

    def _found(self, method: str, text: str) -> Place | None:
        try:
            url = URL(text)
        except ValueError:
            return None
        if url.scheme not in _SCHEMES or not url.raw_host or url.raw_user or url.raw_password:
            return None
        loop = asyncio.get_running_loop()
        request = aiohttp.ClientRequest(method, url, loop=loop, session=self._session)
        line = f"{method} {url.raw_path_qs} HTTP/1.1\r\n"
        fields = Fields({"Host": request.headers["Host"], **self._fields}.items()).text
        key = request.connection_key
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = Origin(self._connector, request)
        return Place(origin, line + fields, LastHeads())
