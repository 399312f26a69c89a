"""Requests on a session's own connections, without the work that `ClientSession` does for each of them.

That work is for programs of every kind: it parses the URL, merges header fields, asks the cookie jar, traces, and
writes the body in a task of its own. Here all of that is known in advance, or not wanted. The connections stay the
session's: its connector pools them, resolves names, does TLS, and counts.

Rare requests (a large body, a connection that is not to be kept, a URL that names a user) go through the session. What
relies on aiohttp's internals is in `protocol`.
"""

import asyncio
from typing import Final, NamedTuple

import aiohttp
import msgspec
from aiohttp.connector import Connection
from yarl import URL

from gateway.adapters.edited import Body, parts_of
from gateway.adapters.openai_compatible import OPERATIONS, Operation
from gateway.execution.answer import Facts
from gateway.execution.fields import Fields
from gateway.execution.flow import Flow
from gateway.execution.protocol import AnswerProtocol, LastHeads, Said
from gateway.routing.snapshot import Deployment, Identity

LARGEST: Final = 1 << 20
"""The longest body, in bytes, that is handed to a connection at once, and waits there until its peer reads it."""
KEEPALIVE: Final = 4.0
"""Seconds for which an idle connection is kept: the server with the shortest keep-alive (uvicorn) closes it after 5."""
_JOINED: Final = 1 << 16
"""The longest body that is copied to be written with its head."""
_KNOWN: Final = 4096
_SCHEMES: Final = frozenset({"http", "https"})


class Link(msgspec.Struct, eq=False):
    """A connection of the session's, its protocol, and since when it has been idle, in the loop's time."""

    connection: Connection
    protocol: AnswerProtocol
    since: float = 0.0


class DirectResponse(msgspec.Struct, eq=False):
    """An answer's head, and its body to come: the part of `ClientResponse` that an `Answer` needs.

    Mutable: the `link`, until the connection is idle or closed.
    """

    origin: "Origin"
    link: Link | None
    facts: Facts
    length: int | None
    body: Flow

    @property
    def lost_by(self) -> BaseException | None:
        """The error that the connection ended with."""
        return self.body.lost_by

    def release(self) -> None:
        """Keep the connection for the next request, if it can be used again."""
        link, self.link = self.link, None
        if link is not None:
            self.body.resume()
            self.origin.keep(link)

    def close(self) -> None:
        """Close the connection: the rest of the body is not wanted."""
        link, self.link = self.link, None
        if link is not None:
            link.connection.close()


class Exchange(msgspec.Struct, kw_only=True):
    """A request on its way. Mutable: `reused`, whether its connection had been used before."""

    reused: bool = False

    def sent(self) -> None:
        """Note that a part of the request has been sent; called for the last part as well."""


class Origin:
    """A scheme, host and port (RFC 9110, 4.3.1): requests to its URLs share connections.

    Mutable: the idle connections, the newest last; and the timer that closes those that have been idle too long.
    """

    __slots__ = ("_connector", "_loop", "_request", "_sweeper", "_waiting")

    def __init__(self, connector: aiohttp.BaseConnector, request: aiohttp.ClientRequest) -> None:
        """Get connections from this connector, as this request would."""
        self._connector = connector
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Link] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def connected(self, seconds: float | None) -> Link:
        """Connect within so many seconds; None: no limit.

        Raises:
            aiohttp.ClientError, OSError: there is no connection.

        """
        timeout = aiohttp.ClientTimeout(total=None, connect=seconds)
        connection = await self._connector.connect(self._request, traces=[], timeout=timeout)
        protocol = connection.protocol
        assert isinstance(protocol, AnswerProtocol)  # noqa: S101 - our connector makes no others
        return Link(connection, protocol)

    def keep(self, link: Link) -> None:
        """Keep a connection for the next request, if it can be used again."""
        if not link.protocol.is_connected():
            link.connection.close()
            return
        link.protocol.waits()
        link.since = self._loop.time()
        self._waiting.append(link)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)

    def close(self) -> None:
        """Close the idle connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for link in self._waiting:
            link.connection.close()
        self._waiting.clear()

    def kept(self) -> Link | None:
        """Take an idle connection, None if there is none; one that received something meanwhile cannot be trusted."""
        while self._waiting:
            link = self._waiting.pop()
            if link.protocol.is_quiet() and self._loop.time() - link.since <= KEEPALIVE:
                return link
            link.connection.close()
        return None

    def _sweep(self) -> None:
        """Close what has been idle too long; schedule the next check."""
        now = self._loop.time()
        old = sum(1 for link in self._waiting if now - link.since >= KEEPALIVE)
        for link in self._waiting[:old]:
            link.connection.close()
        del self._waiting[:old]
        self._sweeper = None
        if self._waiting:
            self._sweeper = self._loop.call_at(self._waiting[0].since + KEEPALIVE, self._sweep)


class Destination(NamedTuple):
    """Where a URL leads: its origin, the `lines` that each request begins with, and the last heads of its answers."""

    origin: Origin
    lines: str
    last: LastHeads


class PreparedRequest:
    """How one operation is requested of a deployment: what is the same in all of these requests is written once.

    With a thousand deployments, none of this is in the processor's cache when a request comes. So all that it needs is
    here, one step away.
    """

    __slots__ = ("_begins", "_last", "deployment", "origin")

    def __init__(self, destination: Destination, deployment: Deployment) -> None:
        """Prepare requests to this deployment at its destination.

        Raises:
            ValueError: a header field of the deployment's would smuggle in another one.

        """
        self.deployment = deployment
        self.origin = destination.origin
        self._begins = destination.lines + Fields(deployment.headers.items()).text
        self._last = destination.last

    def post(self, link: Link, fields: Fields, request_id: str, body: Body, exchange: Exchange) -> asyncio.Future[Said]:
        """Send a request with these header fields besides the deployment's; return a future of its answer's head.

        The exchange is told that it has been sent, and told again and again while the peer takes a long body.

        Raises:
            aiohttp.ClientConnectionResetError: the connection is gone.

        """
        length = len(body)
        head = f"{self._begins}{fields.text}x-request-id: {request_id}\r\nContent-Length: {length}\r\n\r\n".encode()
        if length > _JOINED:
            awaited = link.protocol.ask(head, self._last, parts_of(body), exchange.sent)
        else:
            awaited = link.protocol.ask(head + bytes(body), self._last)
        exchange.sent()
        return awaited

    def answer(self, link: Link, said: Said) -> DirectResponse:
        """Return the answer whose head has come."""
        facts, length, flow = said
        return DirectResponse(self.origin, link, facts, length, flow)


class Direct:
    """Sends requests over a session's connections.

    Mutable: destinations, by method and URL, and their origins; and prepared requests, by operation and deployment.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """Use this session's connector, and its header fields."""
        assert session.connector is not None  # noqa: S101 - it is open
        self._session = session
        self._connector = session.connector
        self._fields = dict(session.headers)
        self._destinations: dict[tuple[str, str], Destination | None] = {}
        self._origins: dict[object, Origin] = {}
        self._prepared: dict[Operation, dict[Identity, PreparedRequest]] = {operation: {} for operation in OPERATIONS}

    def prepared(self, deployment: Deployment, operation: Operation) -> PreparedRequest | None:
        """Return the prepared request for a deployment's operation; None if the session is to be used.

        Raises:
            ValueError: a header field of the deployment's would smuggle in another one.

        """
        found = self._prepared[operation].get(deployment.identity)
        return found if found is not None and found.deployment is deployment else self._prepare(deployment, operation)

    def _prepare(self, deployment: Deployment, operation: Operation) -> PreparedRequest | None:
        destination, known = self._destination("POST", deployment.urls[operation]), self._prepared[operation]
        if destination is None:
            return None
        if len(known) >= _KNOWN:
            known.clear()
        made = known[deployment.identity] = PreparedRequest(destination, deployment)
        return made

    def _destination(self, method: str, url: str) -> Destination | None:
        try:
            return self._destinations[method, url]
        except KeyError:
            if len(self._destinations) >= _KNOWN:
                self.close()
            destination = self._destinations[method, url] = self._found(method, url)
            return destination

    async def get(self, url: str) -> DirectResponse | None:
        """Request a URL on a connection of its own, which must be closed; None if the session is to be used.

        Raises:
            aiohttp.ClientError, HttpProcessingError, OSError: no head came.

        """
        destination = self._destination("GET", url)
        if destination is None:
            return None
        link = await destination.origin.connected(None)
        try:
            facts, length, flow = await link.protocol.ask(
                f"{destination.lines}Connection: close\r\n\r\n".encode(), destination.last
            )
        except BaseException:
            link.connection.close()
            raise
        return DirectResponse(destination.origin, link, facts, length, flow)

    def close(self) -> None:
        """Forget the destinations, and close their idle connections."""
        for origin in self._origins.values():
            origin.close()
        self._origins.clear()
        self._destinations.clear()
        for known in self._prepared.values():
            known.clear()

    def _found(self, method: str, text: str) -> Destination | None:
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
        return Destination(origin, line + fields, LastHeads())
