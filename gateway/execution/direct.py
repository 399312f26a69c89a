"""Requests on a session's own connections, without what `ClientSession` does beside each of them.

What it does is for programs of every kind: it parses the URL, merges header fields, asks the cookie jar, traces, and
writes the body in a task of its own. Here all of that is known beforehand, or not wanted. The connections stay the
session's: its connector pools them, resolves names, does TLS, and counts.

What is rare (a large body, a connection that is not to be kept, a URL that names a user) goes through the session. What
leans on aiohttp's inside is `protocol`.
"""

import asyncio
from typing import Final, NamedTuple

import aiohttp
import msgspec
from aiohttp.connector import Connection
from yarl import URL

from gateway.adapters.openai_compatible import OPERATIONS, Operation
from gateway.execution.answer import Facts
from gateway.execution.fields import Fields
from gateway.execution.flow import Flow
from gateway.execution.protocol import AnswerProtocol, LastHeads, Said
from gateway.routing.snapshot import Deployment, Identity

LARGEST: Final = 1 << 16
KEEPALIVE: Final = 4.0
"""Seconds that a connection may wait for its next request: the shortest-lived server (uvicorn) closes it after 5."""
_KNOWN: Final = 4096
_SCHEMES: Final = frozenset({"http", "https"})


class Link(msgspec.Struct, eq=False):
    """A connection of the session's, its protocol, and since when it waits for the next request, in the loop's time."""

    connection: Connection
    protocol: AnswerProtocol
    since: float = 0.0


class DirectResponse(msgspec.Struct, eq=False):
    """An answer's head, and its body to come: as much of `ClientResponse` as an `Answer` needs.

    Mutable: the `link`, until it waits for the next request or is closed.
    """

    origin: "Origin"
    link: Link | None
    facts: Facts
    length: int | None
    body: Flow

    @property
    def lost_by(self) -> BaseException | None:
        """The error that the connection ended by."""
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
        """Note that a part of it has been sent, the last one included."""


class Origin:
    """A scheme, host and port (RFC 9110, 4.3.1): requests to its URLs share connections.

    Mutable: the connections that wait for the next request, the newest last; and the timer that closes those that have
    waited too long.
    """

    __slots__ = ("_connector", "_loop", "_request", "_sweeper", "_waiting")

    def __init__(self, connector: aiohttp.BaseConnector, request: aiohttp.ClientRequest) -> None:
        """Ask this connector for connections, as this request would."""
        self._connector = connector
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Link] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def connected(self, seconds: float | None) -> Link:
        """Connect within so many seconds; None: without limit.

        Raises:
            aiohttp.ClientError, OSError: there is no connection.

        """
        timeout = aiohttp.ClientTimeout(total=None, connect=seconds)
        connection = await self._connector.connect(self._request, traces=[], timeout=timeout)
        protocol = connection.protocol
        assert isinstance(protocol, AnswerProtocol)  # noqa: S101 - our connector makes no others
        return Link(connection, protocol)

    def keep(self, link: Link) -> None:
        """Let a connection wait for the next request, if it can be used again."""
        if not link.protocol.is_connected():
            link.connection.close()
            return
        link.protocol.waits()
        link.since = self._loop.time()
        self._waiting.append(link)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)

    def close(self) -> None:
        """Close the connections that wait."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for link in self._waiting:
            link.connection.close()
        self._waiting.clear()

    def kept(self) -> Link | None:
        """Take a connection that waits; one that said something meanwhile is no longer to be trusted."""
        while self._waiting:
            link = self._waiting.pop()
            if link.protocol.is_quiet() and self._loop.time() - link.since <= KEEPALIVE:
                return link
            link.connection.close()
        return None

    def _sweep(self) -> None:
        """Close what has waited too long; look again when the next one will have."""
        now = self._loop.time()
        old = sum(1 for link in self._waiting if now - link.since >= KEEPALIVE)
        for link in self._waiting[:old]:
            link.connection.close()
        del self._waiting[:old]
        self._sweeper = None
        if self._waiting:
            self._sweeper = self._loop.call_at(self._waiting[0].since + KEEPALIVE, self._sweep)


class Destination(NamedTuple):
    """Where a URL leads: whom to ask, and the `lines` that each request begins with; and the last heads of answers."""

    origin: Origin
    lines: str
    last: LastHeads


class PreparedRequest:
    """How a deployment is asked for one thing: of its requests, what is the same each time is written once.

    With a thousand deployments nothing of this is in the processor's cache when a request comes. So all that it needs
    is here, one step away.
    """

    __slots__ = ("_begins", "_last", "deployment", "origin")

    def __init__(self, destination: Destination, deployment: Deployment) -> None:
        """Ask this deployment at its destination.

        Raises:
            ValueError: a header field of the deployment's would smuggle another one in.

        """
        self.deployment = deployment
        self.origin = destination.origin
        self._begins = destination.lines + Fields(deployment.headers.items()).text
        self._last = destination.last

    def post(self, link: Link, fields: Fields, request_id: str, body: bytes) -> asyncio.Future[Said]:
        """Send a request with these header fields beside the deployment's; give what comes to its answer's head.

        Raises:
            aiohttp.ClientConnectionResetError: the connection is gone.

        """
        head = (
            f"{self._begins}{fields.text}x-request-id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        return link.protocol.ask(head + body, self._last)

    def answer(self, link: Link, said: Said) -> DirectResponse:
        """Give the answer whose head has come."""
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
        """Give what asks a deployment for this; None where the session is to be asked.

        Raises:
            ValueError: a header field of the deployment's would smuggle another one in.

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
        """Ask for a URL on a connection of its own, which is to be closed; None where the session is to be asked.

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
        """Forget the places, and close the connections that wait there."""
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
