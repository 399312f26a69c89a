"""Requests on a session's own connections, without what `ClientSession` does beside each of them.

What it does is for programs of every kind: it parses the URL, merges header fields, asks the cookie jar, traces, and
writes the body in a task of its own. Here all of that is known beforehand, or not wanted. The connections stay the
session's: its connector pools them, resolves names, does TLS, and counts.

This is the one module that leans on what aiohttp does not promise: the connector's pool, `ResponseHandler` and the
serializer of header fields, as they are in 3.14. What is rare (a large body, a connection that is not to be kept, a URL
that names a user) goes through the session.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import TimerNoop
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EmptyStreamReader, StreamReader
from yarl import URL

from gateway.execution.answer import Facts, facts, length_of
from gateway.execution.fields import Fields
from gateway.execution.flow import Flow
from gateway.execution.heads import LastHead

LARGEST: Final = 1 << 16
KEEPALIVE: Final = 4.0
"""Seconds that a connection may wait for its next request: the shortest-lived server (uvicorn) closes it after 5."""
_KNOWN: Final = 4096
_SCHEMES: Final = frozenset({"http", "https"})
_NEVER_PAUSED: Final = 1 << 30
_FINAL: Final = 200
_SWITCHING: Final = 101
_timer: Final = TimerNoop()


def is_tested(version: str) -> bool:
    """Tell whether this module was tested with a version of aiohttp."""
    return version.startswith("3.14.")


class Connector(aiohttp.TCPConnector):
    """A pool whose connections let an answer's body pour."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - the connector's own
        """Make one; in a running loop."""
        super().__init__(**settings)
        self._factory = partial(_Protocol, loop=self._loop)  # type: ignore[assignment] # a subclass of it


class _Protocol(ResponseHandler):
    """Aiohttp's protocol, which knows the head that is awaited, and the flow of the answer that comes.

    Mutable: those; the last heads of the place that was asked; and what is still `due` of a body whose head repeated
    one that told a length, which is then not aiohttp's parser's.
    """

    flow: Flow | None = None
    _awaited: "asyncio.Future[_Said] | None" = None
    _last: "LastHeads"
    _due = 0

    @property
    def is_usable(self) -> bool:
        """Whether a next request may be sent: it is connected, said nothing unasked, and all went well."""
        transport = self.transport
        return not (
            transport is None
            or self._should_close
            or self._tail
            or self._buffer
            or self._upgraded
            or self._exception is not None
            or transport.is_closing()
        )

    def ask(self, data: bytes, last: "LastHeads") -> "asyncio.Future[_Said]":
        """Send a request; give what comes to what the head of its answer says."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError
        self._parser = None
        self._last = last
        awaited = self._awaited = self._loop.create_future()
        transport.write(data)
        return awaited

    def data_received(self, data: bytes) -> None:
        """Let what the bytes bring of a body go on at once: one write a read, however many chunks that holds."""
        flow, parser = self.flow, self._parser
        if flow is None:
            if self._awaited is None:
                super().data_received(data)
            elif parser is not None or not self._repeats(self._awaited, data):
                self._parse(self._awaited, data)
            return
        if self._due:
            self._fill(flow, data)
        elif parser is None:
            super().data_received(data)
        else:
            try:
                messages, _, _ = parser.feed_data(data)
            except Exception as error:  # noqa: BLE001 - the parser's: as aiohttp does, but for a flow in its end
                self._broken(error)
            else:
                if messages:  # nobody asked for them: what comes next on this connection is not to be trusted
                    self.force_close()
        flow.give()

    def _repeats(self, awaited: "asyncio.Future[_Said]", data: bytes) -> bool:
        """Take an answer whose head says what the last one said; tell whether it is one."""
        last = self._last.whole
        found = last.repeated(data)
        transport = self.transport
        if found is None or last.meaning is None or transport is None:
            return False
        at, length = found
        self._awaited = None
        flow = Flow(transport, [], over=not length)
        self._due = length
        if len(data) > at:
            self._fill(flow, data[at:])
        if not flow.over:
            self.flow = flow
        if not awaited.done():
            awaited.set_result(_Said(last.meaning, length, flow))
        return True

    def _fill(self, flow: Flow, data: bytes) -> None:
        """Take a part of a body of known length."""
        due = self._due
        if len(data) > due:  # nobody asked for the rest: what comes next on this connection is not to be trusted
            self.force_close()
            data = data[:due]
        if data:
            flow.parts.append(data)
        self._due = due - len(data)
        if not self._due:
            flow.ended()

    def _parse(self, awaited: "asyncio.Future[_Said]", data: bytes) -> None:
        """Let aiohttp's parser read the head of an answer."""
        is_first = self._parser is None
        if is_first:
            self.set_response_params(
                timer=_timer, read_until_eof=True, auto_decompress=False, read_bufsize=_NEVER_PAUSED
            )
        assert self._parser is not None  # noqa: S101 - it is set
        try:
            messages, self._upgraded, _ = self._parser.feed_data(data)
        except Exception as error:  # noqa: BLE001 - the parser's: as aiohttp does
            self._broken(error)
            self._fails(HttpProcessingError())
            return
        for message, body in messages:
            if self._awaited is None or self.transport is None:
                self.force_close()
                return
            if message.code < _FINAL and message.code != _SWITCHING:
                is_first = False
                continue
            if message.should_close:
                self.force_close()
            self._awaited = None
            length, known = length_of(message.headers), None
            is_first = is_first and not message.should_close and message.code == _FINAL
            last = self._last.chunked if length is None else self._last.whole
            if is_first and length is None and last.repeated(data):
                known = last.meaning
            said = _Said(known or facts(message.code, message.headers), length, _flow(self, body))
            if is_first and known is None:
                last.learn(data, length, said.facts)
            if not awaited.done():
                awaited.set_result(said)

    def _broken(self, error: Exception) -> None:
        """Give up a connection whose answer is not HTTP."""
        if self.transport is not None:
            self.transport.close()
        self.set_exception(HttpProcessingError(), error)

    def _fails(self, error: BaseException) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited.done():
            awaited.set_exception(error)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own
        """Read on, if that was stopped: aiohttp says so at the end of each body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let a body that is not whole break: aiohttp tells of some ends only."""
        flow, self.flow = self.flow, None
        if flow is not None:
            flow.reset = exc is not None
        super().connection_lost(exc)
        self._fails(self.exception() or aiohttp.ServerDisconnectedError())
        if flow is not None:
            flow.broke(aiohttp.ClientPayloadError("the connection ended inside the body"))
            flow.give()


class _Pouring(StreamReader):
    """A body that the parser fills, turned into a flow: `_protocol` is that. It has no place for anything else."""

    __slots__ = ()
    _protocol: Flow  # type: ignore[assignment] # this is the trick

    def becomes(self, flow: Flow) -> None:
        """Let what comes go to the flow, and the queues of its own go."""
        self._protocol = flow
        self._buffer = self._eof_callbacks = ()  # type: ignore[assignment] # nothing is put there
        self._http_chunk_splits = None

    def feed_data(self, data: bytes, size: int = 0) -> bool:  # noqa: ARG002 - the parser's call
        """Let bytes through; `give` hands them on."""
        self._protocol.parts.append(data)
        return False

    def feed_eof(self) -> None:
        """Note the end."""
        self._eof = True
        self._protocol.ended()

    def set_exception(self, exc: BaseException, exc_cause: object = None) -> None:  # noqa: ARG002 - as above
        """Note that it broke off."""
        self._protocol.broke(exc)

    begin_http_chunk_receiving = end_http_chunk_receiving = bytes  # type: ignore[assignment] # where chunks end is
    # of no interest, and this is the cheapest call that does nothing


def _flow(protocol: _Protocol, body: StreamReader) -> Flow:
    """Let a body, of which a part may have come, pour."""
    transport = protocol.transport
    assert transport is not None  # noqa: S101 - it has just brought the head
    if isinstance(body, EmptyStreamReader):
        return Flow(transport, [], over=True)
    flow = Flow(transport, list(body._buffer), over=body.is_eof())  # noqa: SLF001 - what has come
    if not flow.over:
        protocol.flow = flow
        body.__class__ = _Pouring
        body.becomes(flow)  # type: ignore[attr-defined] # it is one now
    return flow


def _was_used(connection: Connection) -> bool:
    """Tell whether a connection has carried an answer: a parser is made for each."""
    return connection.protocol is not None and connection.protocol._parser is not None  # noqa: SLF001 - aiohttp's own


class LastHeads:
    """The last heads of a place's answers: of those whose body is of a known length, and of those in chunks."""

    __slots__ = ("chunked", "whole")

    def __init__(self) -> None:
        """Know none."""
        self.whole: LastHead[Facts] = LastHead(of_answer=True)
        self.chunked: LastHead[Facts] = LastHead(of_answer=True)


class _Said(NamedTuple):
    """What the head of an answer says, how long the body is where that was told, and the body."""

    facts: Facts
    length: int | None
    flow: Flow


class DirectResponse:
    """An answer's head, and its body to come: as much of `ClientResponse` as an `Answer` needs.

    Mutable: the connection, until it waits for the next request or is closed.
    """

    __slots__ = ("_connection", "_origin", "body", "facts", "length")

    def __init__(self, origin: "Origin", connection: Connection, said: _Said) -> None:
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


class Exchange(Protocol):
    """A request on its way: `sent` is called when it has been sent, `reused` set if its connection was used before."""

    reused: bool

    @property
    def sent(self) -> Callable[[], None]:
        """What is called when the request has been sent."""
        ...


class Asked(Protocol):
    """What is asked for: the header fields that are the request's own, and its id."""

    @property
    def fields(self) -> Fields:
        """The header fields."""
        ...

    @property
    def request_id(self) -> str:
        """Its id."""
        ...


class Origin:
    """A scheme, host and port (RFC 9110, 4.3.1): requests to its URLs share connections.

    Mutable: the connections that wait for the next request, each since when, the newest last.
    """

    __slots__ = ("_connector", "_loop", "_request", "_sweeper", "_waiting")

    def __init__(self, connector: aiohttp.BaseConnector, request: aiohttp.ClientRequest) -> None:
        """Ask this connector for connections, as this request would."""
        self._connector = connector
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Connection, float]] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def connected(self, seconds: float) -> Connection:
        """Connect within so many seconds.

        Raises:
            aiohttp.ClientError, OSError: there is no connection.

        """
        return await self._connector.connect(self._request, traces=[], timeout=_within(seconds))

    def keep(self, connection: Connection) -> None:
        """Let a connection wait for the next request, if it can be used again."""
        protocol = connection.protocol
        if not isinstance(protocol, _Protocol) or not protocol.is_usable:
            connection.close()
            return
        protocol.flow = None
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
            assert isinstance(protocol, _Protocol)  # noqa: S101 - it was kept
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


class Place:
    """Where a URL leads.

    Mutable: the heads of the requests, as far as they are the same each time, by the deployment's header fields; and
    the last heads of answers.
    """

    __slots__ = ("_heads", "_last", "_lines", "_origin")

    def __init__(self, origin: Origin, lines: str) -> None:
        """Send requests to this origin; each begins with these lines."""
        self._origin = origin
        self._lines = lines
        self._heads: dict[int, tuple[Mapping[str, str], str]] = {}
        self._last = LastHeads()

    async def post(
        self,
        fixed: Mapping[str, str],
        asked: Asked,
        body: bytes,
        *,
        connect_timeout: float,
        exchange: Exchange,
    ) -> DirectResponse:
        """Send a request and wait for the head of its answer, as `Upstream.open` says.

        `fixed` are the deployment's header fields, `asked` has the request's.

        Raises:
            aiohttp.ClientError, OSError: no head came.

        """
        known = self._heads.get(id(fixed))
        begins = known[1] if known is not None and known[0] is fixed else self._begins(fixed)
        head = (
            f"{begins}{asked.fields.text}x-request-id: {asked.request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        connection = self._origin.kept()
        if connection is not None:
            exchange.reused = True
        else:
            connection = await self._origin.connected(connect_timeout)
            exchange.reused = _was_used(connection)  # the session leaves some in the connector's pool
        try:
            protocol = connection.protocol
            assert isinstance(protocol, _Protocol)  # noqa: S101 - our connector makes no others
            awaited = protocol.ask(head + body, self._last)
            exchange.sent()
            return DirectResponse(self._origin, connection, await awaited)
        except HttpProcessingError:
            connection.close()
            raise aiohttp.ClientPayloadError from None  # it quotes the answer
        except BaseException:
            connection.close()
            raise

    def _begins(self, fixed: Mapping[str, str]) -> str:
        """Write how the head of a deployment's requests begins.

        Raises:
            ValueError: a field would smuggle another one in.

        """
        if len(self._heads) >= _KNOWN:
            self._heads.clear()
        begins = self._lines + Fields(fixed.items()).text
        self._heads[id(fixed)] = fixed, begins  # what is kept has its id for itself
        return begins


class Direct:
    """Sends requests over a session's connections.

    Mutable: where the URLs lead that were asked for, and their origins.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """Use this session's connector, and its header fields."""
        assert session.connector is not None  # noqa: S101 - it is open
        self._session = session
        self._connector = session.connector
        self._fields = dict(session.headers)
        self._places: dict[str, Place | None] = {}
        self._origins: dict[Hashable, Origin] = {}

    def place(self, url: str) -> Place | None:
        """Say where a URL leads; None where the session is to be asked."""
        try:
            return self._places[url]
        except KeyError:
            if len(self._places) >= _KNOWN:
                self.close()
            place = self._places[url] = self._found(url)
            return place

    def close(self) -> None:
        """Forget the places, and close the connections that wait there."""
        for origin in self._origins.values():
            origin.close()
        self._origins.clear()
        self._places.clear()

    def _found(self, text: str) -> Place | None:
        try:
            url = URL(text)
        except ValueError:
            return None
        if url.scheme not in _SCHEMES or not url.raw_host or url.raw_user or url.raw_password:
            return None
        loop = asyncio.get_running_loop()
        request = aiohttp.ClientRequest("POST", url, loop=loop, session=self._session)
        line = f"POST {url.raw_path_qs} HTTP/1.1\r\n"
        fields = Fields({"Host": request.headers["Host"], **self._fields}.items()).text
        key = request.connection_key
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = Origin(self._connector, request)
        return Place(origin, line + fields)


@lru_cache(maxsize=64)
def _within(connect: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect)
