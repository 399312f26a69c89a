"""Aiohttp client sessions. Its exceptions become failures here, those of an answer's body in `answer.py`, nowhere else.

What differs from aiohttp's defaults, and why: no limit on connections (the gateway's own is the one that counts), no
total timeout (models think for minutes), no cookies, no redirects (they would carry the key away), no inflating (bytes
pass as they came), and idle connections are dropped before the server with the shortest keep-alive (uvicorn, 5 s) drops
them.

A pool that is never idle would never resolve its names again. So a session is retired after a while: new requests get a
new one, and the old one closes when its last answer has ended.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Literal, Self

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway import __version__
from gateway.adapters.edited import Body, pieces
from gateway.adapters.openai_compatible import Operation
from gateway.execution.answer import Answer, AttemptFailedError, Head, Response, as_cause, errno_of
from gateway.execution.direct import KEEPALIVE, LARGEST, Direct, Exchange, Link
from gateway.execution.fields import Fields
from gateway.execution.outbox import Outbox
from gateway.execution.protocol import Connector, PlainConnector, is_tested
from gateway.execution.resolving import Resolver
from gateway.routing.failures import Cause, Failure
from gateway.routing.snapshot import Deployment
from gateway.sockets import GONE, keep_asking

Transport = Literal["direct", "session"]
"""How requests are carried: on connections, by the gateway itself; or by aiohttp's handlers and sessions."""
TRANSPORTS: Final[tuple[Transport, ...]] = ("direct", "session")
USER_AGENT: Final = f"hybrid-inference-gateway/{__version__}"
_SESSION_AGE: Final = 300.0
_PROBED: Final = 4096
_WHOLE: Final = 1 << 16
"""The longest body, in bytes, that a session is given in one piece; it tells when each piece has been taken."""

_FAULTS: Final = (aiohttp.ClientError, HttpProcessingError, OSError, UnicodeError)
"""What is raised if no head comes."""
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_OURS_IN_DNS: Final = frozenset({socket.EAI_SYSTEM, socket.EAI_MEMORY})
_LOSSES: Final = {
    **dict.fromkeys(_OURS, Cause.LOCAL_FAULT),
    **dict.fromkeys((errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH), Cause.UNREACHABLE),
}
"""Why a connection ended: we lacked a resource, or the other machine could no longer be reached."""
_CONNECT_CAUSES: Final = {
    errno.ECONNREFUSED: Cause.CONNECT_REFUSED,
    errno.ECONNRESET: Cause.CONNECT_RESET,
    errno.EPIPE: Cause.CONNECT_RESET,
    errno.ETIMEDOUT: Cause.CONNECT_TIMEOUT,
}


class Call(msgspec.Struct, frozen=True, gc=False):
    """What a client asked for, ready to be sent: the body, the header fields that may pass, and the request's id."""

    operation: Operation
    body: Body
    fields: Fields
    request_id: str

    def __repr__(self) -> str:
        return f"<{self.operation}, {len(self.body)} bytes>"


class _Pool(msgspec.Struct, eq=False):
    """A session, and the fast path over its connections.

    Mutable: how many answers are being read from it; and, once it is retired, `old`, which is called when none is left.
    """

    session: aiohttp.ClientSession
    direct: Direct | None
    open: int = 0
    old: Callable[[], None] | None = None

    def left(self) -> None:
        """Note that an answer is no longer being read."""
        self.open -= 1
        if self.old is not None and not self.open:
            self.old()

    def gave_up(self, link: Link | None) -> None:
        """Note that an answer is no longer awaited; close its connection of the fast path, if it has one."""
        if link is not None:
            link.connection.close()
        self.left()

    async def close(self) -> None:
        """Close every connection."""
        if self.direct is not None:
            self.direct.close()
        await self.session.close()


class Upstream:
    """Opens answers.

    Mutable: the current sessions, pooled and not, each with the timer that retires it; those that are retired, and
    those that are closing.
    """

    def __init__(
        self,
        *,
        session_age: float = _SESSION_AGE,
        transport: Transport = "direct",
        outbox: Outbox | None = None,
    ) -> None:
        """`session_age` is in seconds. Requests are posted in the `outbox`.

        `transport` is what is wanted; the attribute is what is in use: with an untested aiohttp, `session`.
        """
        self._age = session_age
        self._outbox = outbox or Outbox()
        self.transport: Transport = transport if is_tested(aiohttp.__version__) else "session"
        self._resolver = Resolver()
        self._pooled: _Pool | None = None
        self._fresh: _Pool | None = None
        self._timers: dict[_Pool, asyncio.TimerHandle] = {}
        self._retired: set[_Pool] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def open(
        self,
        deployment: Deployment,
        call: Call,
        connect_timeout: float,
        exchange: Exchange | None = None,
        *,
        fresh: bool = False,
    ) -> Answer:
        """Send the call to a deployment and wait for the head of its answer; there is no limit on that wait.

        `connect_timeout` (seconds) covers name, connection and TLS. `fresh` requires a new connection. The `exchange`
        is notified of the request's progress.

        Raises:
            AttemptFailedError: no head came.

        """
        pool = (self._fresh if fresh else self._pooled) or self._begun(fresh=fresh)
        pool.open += 1
        if exchange is None:
            exchange = Exchange()
        exchange.reused = False
        link: Link | None = None
        try:
            prepared = None if fresh or pool.direct is None else pool.direct.prepared(deployment, call.operation)
            if prepared is not None and len(call.body) <= LARGEST:
                link = prepared.origin.kept()
                if link is None:
                    link = await prepared.origin.connected(connect_timeout)
                    exchange.reused = link.protocol.was_used  # the session leaves used ones in the connector's pool
                else:
                    exchange.reused = True
                awaited = prepared.post(link, call.fields, call.request_id, call.body, exchange)
                try:
                    response: Head = prepared.answer(link, await awaited)
                finally:
                    del awaited  # an error in it would refer to this frame, and this frame to it
            else:
                response = await _asked(pool.session, deployment, call, connect_timeout, exchange)
        except _FAULTS as error:
            pool.gave_up(link)
            failure = self._failure(error, deployment.urls[call.operation], reused=exchange.reused)
            raise AttemptFailedError(failure) from as_cause(error)
        except BaseException:
            pool.gave_up(link)
            raise
        facts = response.facts
        answer = Answer(response, facts, facts.status, response.body, pool.left)
        if not facts.framed:
            answer.close()
            raise AttemptFailedError(Failure(Cause.MALFORMED_ANSWER, "the answer is not HTTP", answer.status))
        return answer

    async def probe(self, url: str, *, timeout: float) -> tuple[int, bytes]:  # noqa: ASYNC109 - aiohttp's own
        """Request a URL on a connection of its own, without a key; return the answer's status and its body's beginning.

        Raises:
            AttemptFailedError: no answer came within `timeout` seconds.

        """
        pool = self._fresh or self._begun(fresh=True)
        pool.open += 1
        try:
            async with asyncio.timeout(timeout):
                response = await _got(pool, url)
                try:
                    return response.facts.status, (await response.body.readany())[:_PROBED]
                finally:
                    response.close()
        except _FAULTS as error:
            raise AttemptFailedError(self._failure(error, url, reused=False)) from as_cause(error)
        finally:
            pool.left()

    @property
    def connections(self) -> int:
        """How many connections there are, idle ones included."""
        return sum(_connections(pool.session.connector) for pool in {*self._timers, *self._retired})

    async def close(self) -> None:
        """Close every session."""
        pools = (*self._timers, *self._retired)
        for timer in self._timers.values():
            timer.cancel()
        self._pooled = self._fresh = None
        self._timers.clear()
        self._retired.clear()
        await asyncio.gather(*(pool.close() for pool in pools), *self._closing)

    def _failure(self, error: Exception, url: str, *, reused: bool) -> Failure:
        """Translate what aiohttp raised; a timeout while a name was being looked up is a failure of DNS."""
        failure = failure_of(error, reused=reused)
        if failure.cause is Cause.CONNECT_TIMEOUT and URL(url).raw_host in self._resolver.sought:
            return Failure(Cause.DNS, "name lookup timed out")
        return failure

    def _begun(self, *, fresh: bool) -> _Pool:
        """Open a session, which is retired when it is old."""
        session = _session(self._connector(fresh=fresh))
        pool = _Pool(session, Direct(session) if self.transport == "direct" else None)
        if fresh:
            self._fresh = pool
        else:
            self._pooled = pool
        self._timers[pool] = asyncio.get_running_loop().call_later(self._age, self._retire, pool)
        return pool

    def _connector(self, *, fresh: bool) -> aiohttp.BaseConnector:
        connector = partial(Connector, self._outbox) if self.transport == "direct" else PlainConnector
        make = partial(connector, resolver=self._resolver, limit=0, socket_factory=_socket)
        return make(force_close=True) if fresh else make(keepalive_timeout=KEEPALIVE)

    def _retire(self, pool: _Pool) -> None:
        """Open nothing more with a session: it closes after its last answer."""
        del self._timers[pool]
        if pool is self._fresh:
            self._fresh = None
        else:
            self._pooled = None
        self._retired.add(pool)
        pool.old = partial(self._end, pool)
        if not pool.open:
            pool.old()

    def _end(self, pool: _Pool) -> None:
        pool.old = None  # it holds the pool
        if pool in self._retired:
            self._retired.discard(pool)
            closing = asyncio.create_task(pool.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(*address[:3])
    keep_asking(made, GONE)
    return made


async def _got(pool: _Pool, url: str) -> Head:
    if pool.direct is not None and (direct := await pool.direct.get(url)) is not None:
        return direct
    response: Response = await pool.session.get(  # type: ignore[assignment] # the session's response_class
        url, allow_redirects=False, trace_request_ctx=Exchange()
    )
    return response


async def _asked(
    session: aiohttp.ClientSession, deployment: Deployment, call: Call, connect: float, exchange: Exchange
) -> Response:
    body = call.body
    response: Response = await session.post(  # type: ignore[assignment] # the session's response_class
        deployment.urls[call.operation],
        data=body if isinstance(body, bytes) and len(body) <= _WHOLE else _Pieces(body),
        headers={
            **dict(call.fields.pairs),
            "x-request-id": call.request_id,
            **deployment.headers,
            "Content-Length": str(len(body)),
        },
        timeout=aiohttp.ClientTimeout(total=None, connect=connect),
        allow_redirects=False,
        trace_request_ctx=exchange,
    )
    return response


class _Pieces:
    """A body that aiohttp sends piece by piece."""

    def __init__(self, body: Body) -> None:
        self._pieces = pieces(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _connections(connector: aiohttp.BaseConnector | None) -> int:
    if connector is None:
        return 0
    return len(connector._acquired) + sum(map(len, connector._conns.values()))  # noqa: SLF001 - aiohttp exposes neither


def _session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_reused)
    tracing.on_request_headers_sent.append(_sent)
    tracing.on_request_chunk_sent.append(_sent)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        response_class=Response,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        auto_decompress=False,
        trace_configs=[tracing],
    )


async def _reused(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.reused = True


async def _sent(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.sent()


def failure_of(error: Exception, *, reused: bool) -> Failure:
    """Translate what aiohttp raised before an answer's head came; `reused`: the connection was a pooled one."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            ours = error.os_error.errno in _OURS_IN_DNS or _is_ours(error.os_error) or _is_out_of_descriptors()
            return Failure(Cause.LOCAL_FAULT if ours else Cause.DNS, "name lookup failed")
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as wrong):
            return Failure(Cause.TLS, wrong.verify_message.partition(",")[0])  # what follows names the host
        case aiohttp.ClientSSLError() | ssl.SSLError() | aiohttp.ServerFingerprintMismatch():
            return Failure(Cause.TLS, type(error).__name__)
        case aiohttp.ClientConnectorError():
            return _connect_failure(error.os_error, error.host)
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return Failure(Cause.CONNECT_TIMEOUT, "no connection in time")
        case HttpProcessingError() | aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            return Failure(Cause.MALFORMED_ANSWER, "the answer is not HTTP")
        case OSError() if (cause := _LOSSES.get(error.errno or 0)) is not None:
            return Failure(cause, errno_of(error))
        case UnicodeError():
            return Failure(Cause.DNS, "the host is not a valid host name")
        case aiohttp.ServerDisconnectedError() if not isinstance(error.message, str):
            return Failure(Cause.DISCONNECTED, "closed in the middle of the answer's head")
        case _:
            return Failure(Cause.DISCONNECTED, errno_of(error) or "closed without an answer", stale=reused)


def _connect_failure(error: OSError, host: str) -> Failure:
    """Separate our faults from the endpoint's: EADDRNOTAVAIL means no free port or, for IPv6, no IPv6 here."""
    without_ipv6 = error.errno == errno.EADDRNOTAVAIL and ":" in host
    if _is_ours(error) and not without_ipv6:
        return Failure(Cause.LOCAL_FAULT, errno_of(error))
    return Failure(_CONNECT_CAUSES.get(error.errno or 0, Cause.UNREACHABLE), errno_of(error) or "no address answered")


def _is_out_of_descriptors() -> bool:
    """Return whether we have run out of descriptors: what the resolver reports then depends on its plug-ins."""
    try:
        socket.socket().close()
    except OSError as error:
        return _is_ours(error)
    return False


def _is_ours(error: OSError) -> bool:
    return error.errno in _OURS
