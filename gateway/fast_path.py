"""The fast path through aiohttp's protocol.

Nearly every request is a POST of JSON to one of four paths, in HTTP/1.1, with nothing in its head that needs a closer
look. It takes the fast path: aiohttp's parser reads it, and then it is answered on the connection itself, in one task,
without a `web.Request`, middlewares and a `web.StreamResponse`. Everything else is aiohttp's, which does not notice:
while a request takes the fast path, the future by which aiohttp's handler waits for the next message is out of reach.
So a connection may carry both, in any order, and what comes in advance (pipelining) waits its turn.

From a connection's third request on there is mostly nothing to parse: its head says what the last one said (`heads`).
Such a request is taken past the parser too, if that stands between two messages.

This module leans on what aiohttp does not promise: the names inside `RequestHandler`, as they are in 3.14.
"""

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.hdrs import CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, METH_POST, ORIGIN, UPGRADE
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from multidict import CIMultiDictProxy

from gateway.adapters.openai_compatible import OPERATIONS, Operation
from gateway.api.context import is_host, request_id_of
from gateway.api.errors import RequestError, refusal
from gateway.api.openai import JSON, Asked, kept
from gateway.capacity import Capacity
from gateway.connection import Connection, failure
from gateway.execution.client import ClientLeftError, WireClient
from gateway.execution.fields import Fields
from gateway.execution.heads import LastHead
from gateway.server import Gateway

_OPERATIONS: Final = {f"/v1/{operation}": operation for operation in OPERATIONS}
_JSON: Final = frozenset({JSON, f"{JSON}; charset=utf-8", f"{JSON};charset=utf-8", f"{JSON};charset=UTF-8"})
"""As clients write it; .NET's and many of Java's name what is the only one anyway (RFC 8259 8.1)."""
_REQUEST_ID: Final = "x-request-id"
_LINE_END: Final = b"\r\n"
_BLANK: Final = b"\r\n\r\n"
_SMALL: Final = 1 << 16
"""How long a body may be that is taken past the parser in parts: nobody would stop reading for so much."""
_UNKNOWN: Final = -1
_TASK: Final = "fast path"
"""What tasks are called: one without a name is given one, which takes as long as a tenth of making it."""


class _Usual(msgspec.Struct, frozen=True, gc=False):
    """What the head of a request says."""

    operation: Operation
    request_id: str | None
    headers: CIMultiDictProxy[str]
    fields: Fields


class FastPath(Connection):
    """A connection that knows the fast path.

    Mutable, beside aiohttp's own: what takes the fast path (the task, the client's side of it, and whether it is the
    last request), and meanwhile the future by which aiohttp's own handler waits, out of its reach; whether the client
    `is_full`; the last head, how many heads there were, and how many bytes are to come until the parser stands between
    two messages, if that is known; and the body that is taken past the parser, and how much of it is still due.
    """

    __slots__ = (
        "_ahead",
        "_client",
        "_due",
        "_ends",
        "_filling",
        "_gateway",
        "_last",
        "_parked",
        "_seen",
        "_short",
        "is_full",
        "outbox",
    )

    def __init__(self, capacity: Capacity, server: web.Server, gateway: Gateway) -> None:
        """Make one for a connection to come."""
        super().__init__(capacity, server, gateway.options)
        self._gateway = gateway
        self.outbox = gateway.outbox
        self.is_full = False
        self._short: asyncio.Task[None] | None = None
        self._ends = False
        self._client: WireClient | None = None
        self._parked: asyncio.Future[None] | None = None
        self._last: LastHead[_Usual] | None = None
        self._seen = 0
        self._ahead = 0
        self._filling: StreamReader | None = None
        self._due = 0

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return super().idle and self._short is None

    def is_last(self) -> bool:
        """Return whether the connection ends with the answer that takes the fast path."""
        return self._ends or self._gateway.draining

    async def room(self) -> None:
        """Wait until the client has room."""
        await self._drain_helper()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection; nobody is left to be answered."""
        super().connection_lost(exc)
        if self._short is not None:
            self._short.cancel()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own
        """Read on, if that was stopped: aiohttp says so at the end of each body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """Wait for the first request that is aiohttp's, and begin its loop; what has come by now is taken up first."""
        self._waiter = waiter = self._loop.create_future()
        self._take_up()
        try:
            await waiter
        finally:
            self._waiter = None
        await super().start()

    def pause_writing(self) -> None:
        """Tell whoever pours an answer that the client is full."""
        super().pause_writing()
        self.is_full = True
        if self._client is not None and self._client.pourer is not None:
            self._client.pourer.pause()

    def resume_writing(self) -> None:
        """Tell whoever pours an answer that the client has room."""
        super().resume_writing()
        self.is_full = False
        if self._client is not None and self._client.pourer is not None:
            self._client.pourer.resume()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's own
        """Let what takes the fast path end within `timeout` seconds, and cut it then."""
        if self._short is not None:
            await asyncio.wait((self._short,), timeout=timeout)
            if self._short is not None:
                self._short.cancel()
        await super().shutdown(timeout)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, if there is something to parse, and take up what they bring."""
        if self._filling is not None:
            data = self._fill(self._filling, data)
            if not data:
                return
        if self._last is not None and not self._ahead and self._repeats(self._last, data):
            return
        ahead, had = self._ahead, len(self._messages)
        waiter, self._waiter = self._waiter, None
        super().data_received(data)
        self._waiter = waiter
        self._ahead = ahead - len(data) if ahead else self._left_of(data, had)
        self._take_up()

    def _repeats(self, last: "LastHead[_Usual]", data: bytes) -> bool:
        """Begin with a request whose head says what the last one said; tell whether it is one."""
        waiter, usual = self._waiter, last.meaning
        if waiter is None or usual is None or waiter.done():
            return False
        found = last.repeated(data)
        if found is None:
            return False
        at, length = found
        came = len(data) - at
        if came == length and length:
            content: StreamReader = EMPTY_PAYLOAD
            body = data[at:]
        elif came < length <= _SMALL:
            content, body = StreamReader(self, _SMALL, loop=self._loop), None
            self._filling, self._due = content, length
            self._fill(content, data[at:])
        else:
            return False
        self._parked, self._waiter = waiter, None
        self._ends = False
        request_id = request_id_of(usual.request_id)
        asked = Asked(usual.operation, request_id, usual.headers, content, JSON, body, length, usual.fields)
        self._short = asyncio.Task(self._answered(asked), loop=self._loop, name=_TASK)
        return True

    def _fill(self, body: StreamReader, data: bytes) -> bytes:
        """Take a part of a body past the parser; give what follows on it."""
        due = self._due
        part = data[:due]
        body.feed_data(part)
        self._due = due - len(part)
        if not self._due:
            body.feed_eof()
            self._filling = None
        return data[due:]

    def _left_of(self, data: bytes, had: int) -> int:
        """Tell how much of its message is still to come after `data`, which began with it; less than 0: not known.

        What is known of its head is kept, if another one may say the same. Empty lines before it are no part of it
        (RFC 9112 2.2).
        """
        data = data.lstrip(_LINE_END)
        if not data:
            return 0
        if had or len(self._messages) != 1:
            return _UNKNOWN
        message, body = self._messages[0]
        if isinstance(message, _ErrInfo) or message.chunked or message.upgrade:
            return _UNKNOWN
        self._seen += 1
        headers = message.headers
        length = int(headers.get(CONTENT_LENGTH, 0))
        left = data.find(_BLANK) + len(_BLANK) + length - len(data)
        if bool(left) is body.is_eof():
            return _UNKNOWN
        if self._seen > 1 and not message.should_close:
            operation = self._fast_path(message)
            if operation is not None and self._gateway.openai.may_repeat(headers):
                if self._last is None:
                    self._last = LastHead(of_answer=False)
                fields = self._gateway.openai.forwarded(headers)
                self._last.learn(data, length, _Usual(operation, headers.get(_REQUEST_ID), kept(headers), fields))
        return left

    def _take_up(self) -> None:
        """Begin with the next request, if there is one and none is being answered: the fast path, or aiohttp's."""
        waiter = self._waiter
        if not self._messages or waiter is None or waiter.done():
            return
        message, body = self._messages[0]
        if isinstance(message, _ErrInfo) or (operation := self._fast_path(message)) is None:
            waiter.set_result(None)
            return
        del self._messages[0]
        self._parked, self._waiter = waiter, None
        assert self._parser is not None  # noqa: S101 - the connection is there
        self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        self._ends = message.should_close
        headers = message.headers
        length, request_id = int(headers.get(CONTENT_LENGTH, 0)), request_id_of(headers.get(_REQUEST_ID))
        asked = Asked(operation, request_id, headers, body, JSON, _whole(body), length)
        self._short = asyncio.Task(self._answered(asked), loop=self._loop, name=_TASK)

    def _fast_path(self, message: RawRequestMessage) -> Operation | None:
        """Say which operation is asked for, if there is nothing about the request that needs a closer look."""
        if message.method != METH_POST or message.version != HttpVersion11:
            return None
        operation = _OPERATIONS.get(message.path)
        if operation is None or message.chunked or message.upgrade or message.compression:
            return None
        headers = message.headers
        if headers.get(CONTENT_TYPE) not in _JSON or not is_host(headers[HOST]):
            return None
        if EXPECT in headers or UPGRADE in headers or CONTENT_ENCODING in headers or ORIGIN in headers:
            return None
        return None if self._gateway.draining or self in self._capacity.spare else operation

    async def _answered(self, asked: Asked) -> None:
        """Answer a request on the fast path, and make ready for the next one."""
        gateway = self._gateway
        client = self._client = WireClient(self, asked.request_id)
        self.outbox.requests += 1
        try:
            try:
                response = await gateway.openai.answer(asked, client)
            except RequestError as error:
                response = refusal(error)
            if response is not None:
                await self._respond(response, asked, client)
        except ClientLeftError:
            pass
        except asyncio.CancelledError:
            self.force_close()
            return  # nobody waits for the task; one that was cancelled keeps the request until the collector comes
        except Exception as error:  # noqa: BLE001 - whatever it is, it must end this answer
            await self._failed(client, error)
        finally:
            self.outbox.requests -= 1
            self._client = None
        if not asked.is_read():
            await self._read_out(asked.content)
        self._ends = client.closes
        self._next()

    async def _respond(self, response: web.Response, asked: Asked, client: WireClient) -> None:
        """Answer with what was made ready; a client may take it as a reason not to send the rest of its body."""
        client.closes = not asked.is_read()
        await client.respond(response, self._gateway.manager.generation)

    async def _read_out(self, body: StreamReader) -> None:
        """Read what is left of a body that nobody wanted: else closing would reset the connection, and the answer.

        The answer has been given by now: the request is no longer active.
        """
        if self.transport is None or self.transport.is_closing():
            return
        with suppress(TimeoutError, web.RequestPayloadError):
            async with asyncio.timeout(self._lingering_time):
                while not body.is_eof():
                    await body.readany()

    async def _failed(self, client: WireClient, error: Exception) -> None:
        """Log as aiohttp does; say so, if nothing has been said, and close the connection."""
        self.log_exception("Error handling request", exc_info=error)
        if self.transport is None:
            return
        client.closes = True
        with suppress(ClientLeftError):
            if client.begun:
                client.flush()
            else:
                await client.respond(failure(500), self._gateway.manager.generation)
        if self.transport is not None:
            self.transport.close()

    def _next(self) -> None:
        """Close the connection, or wait for what comes next on it."""
        self._short = None
        self._waiter, self._parked = self._parked, None
        if self.transport is None or self.transport.is_closing():
            return
        if self._ends or self._close or self._force_close:
            self.outbox.flush()
            self.transport.close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        if self._messages:
            self._take_up()


def _whole(body: StreamReader) -> bytes | None:
    """Return a body that has come with its head."""
    if not body.is_eof() or body is EMPTY_PAYLOAD:
        return None
    parts = body._buffer  # noqa: SLF001 - reading wakes the parser for each part
    return parts[0] if len(parts) == 1 else b"".join(parts)
