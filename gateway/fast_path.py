"""The fast path through aiohttp's protocol.

Nearly every request is a POST of JSON to one of four paths, in HTTP/1.1, with nothing in its head that needs a closer
look. It takes the fast path: aiohttp's parser reads it, and then it is answered on the connection itself, in one task,
without a `web.Request`, middlewares and a `web.StreamResponse`. aiohttp handles everything else, and does not notice:
while a request takes the fast path, the future on which aiohttp's handler waits for the next message is set aside. So a
connection may carry both, in any order, and requests that arrive early (pipelining) wait their turn.

From a connection's third request on there is usually nothing to parse: its head repeats the last one (`heads`). Such a
request bypasses the parser too, if the parser is between two messages.

This module relies on what aiohttp does not promise: the private names of `RequestHandler`, as they are in 3.14.
"""

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.hdrs import (
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    METH_POST,
    ORIGIN,
    TRANSFER_ENCODING,
    UPGRADE,
)
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from multidict import CIMultiDictProxy

from gateway.adapters.openai_compatible import OPERATIONS, Operation
from gateway.api.body import JSON
from gateway.api.context import is_host, request_id_of
from gateway.api.errors import RequestError, refusal
from gateway.api.openai import Asked, kept
from gateway.capacity import Capacity
from gateway.connection import Connection, failure
from gateway.execution.client import ClientLeftError, WireClient
from gateway.execution.fields import Fields
from gateway.execution.heads import LastHead
from gateway.server import Gateway

_OPERATIONS: Final = {f"/v1/{operation}": operation for operation in OPERATIONS}
_JSON: Final = frozenset({JSON, f"{JSON}; charset=utf-8", f"{JSON};charset=utf-8", f"{JSON};charset=UTF-8"})
"""As clients write it; those of .NET and many of Java name the charset, the only one there is (RFC 8259 8.1)."""
_REQUEST_ID: Final = "x-request-id"
_LINE_END: Final = b"\r\n"
_BLANK: Final = b"\r\n\r\n"
_SMALL: Final = 1 << 20
"""The longest body, in bytes, that bypasses the parser in parts: small enough to be read without backpressure."""
_UNKNOWN: Final = -1
_TASK: Final = "fast path"
"""The name of the tasks: making up a name would take a tenth of the time of making a task."""


class _Usual(msgspec.Struct, frozen=True, gc=False):
    """The meaning of a request's head."""

    operation: Operation
    request_id: str | None
    headers: CIMultiDictProxy[str]
    fields: Fields


class FastPath(Connection):
    """A connection with the fast path.

    Mutable, besides aiohttp's own state: the request on the fast path (its task, the client's side, and whether it is
    the last request), and meanwhile the future on which aiohttp's own handler waits, set aside; whether the client
    `is_full`; the last head, how many heads there were, and how many bytes are missing until the parser is between two
    messages, if that is known; and the body that bypasses the parser, with the number of bytes still due.
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
        """Make the protocol of a new connection."""
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
        """Return whether the connection closes after the current answer on the fast path."""
        return self._ends or self._gateway.draining

    async def room(self) -> None:
        """Wait until the client has room."""
        await self._drain_helper()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting the connection, and cancel the answer."""
        super().connection_lost(exc)
        if self._short is not None:
            self._short.cancel()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own
        """Resume reading only if it was paused: aiohttp calls this at the end of each body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """Take up what has arrived, wait for the first request for aiohttp, and run aiohttp's loop."""
        self._waiter = waiter = self._loop.create_future()
        self._take_up()
        try:
            await waiter
        finally:
            self._waiter = None
        await super().start()

    def pause_writing(self) -> None:
        """Pause the pourer of the current answer: the client is full."""
        super().pause_writing()
        self.is_full = True
        if self._client is not None and self._client.pourer is not None:
            self._client.pourer.pause()

    def resume_writing(self) -> None:
        """Resume the pourer of the current answer: the client has room."""
        super().resume_writing()
        self.is_full = False
        if self._client is not None and self._client.pourer is not None:
            self._client.pourer.resume()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's own
        """Let the request on the fast path end within `timeout` seconds, then cancel it."""
        if self._short is not None:
            await asyncio.wait((self._short,), timeout=timeout)
            if self._short is not None:
                self._short.cancel()
        await super().shutdown(timeout)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, as far as that is needed, and take up the requests in them."""
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
        """Start answering a request whose head repeats the last one; return whether `data` is such a request."""
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
        own = last.request_id
        request_id = request_id_of(usual.request_id if own is None else own.strip().decode())
        asked = Asked(usual.operation, request_id, usual.headers, content, JSON, body, length, usual.fields)
        self._short = asyncio.Task(self._answered(asked), loop=self._loop, name=_TASK)
        return True

    def _fill(self, body: StreamReader, data: bytes) -> bytes:
        """Feed a part of a body that bypasses the parser; return what follows the body."""
        due = self._due
        part = data[:due]
        body.feed_data(part)
        self._due = due - len(part)
        if not self._due:
            body.feed_eof()
            self._filling = None
        return data[due:]

    def _left_of(self, data: bytes, had: int) -> int:
        """Return how many bytes of the message that began with `data` are still to come; negative if unknown.

        Learn the head, if the next one may repeat it. Empty lines before it are not part of the message (RFC 9112 2.2).
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
        """Start the next request, on the fast path or in aiohttp, if there is one and none is being answered."""
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
        """Return the operation asked for, if nothing about the request needs a closer look."""
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
        if TRANSFER_ENCODING in headers:  # an empty one is not chunked for the parser (RFC 9112 6.1)
            return None
        if self._gateway.draining or not self._gateway.options.keep_alive:
            return None
        return None if self in self._capacity.spare else operation

    async def _answered(self, asked: Asked) -> None:
        """Answer a request on the fast path, and prepare for the next one."""
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
            return  # nobody awaits the task; a CancelledError would keep the request until the collector runs
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
        """Send a response; close if the body is not read yet, because the client may not send the rest of it."""
        client.closes = not asked.is_read()
        await client.respond(response, self._gateway.manager.generation)

    async def _read_out(self, body: StreamReader) -> None:
        """Read the rest of an unwanted body: otherwise closing would reset the connection, and lose the answer.

        The answer has been sent by now, and the request is no longer active.
        """
        if self.transport is None or self.transport.is_closing():
            return
        with suppress(TimeoutError, web.RequestPayloadError):
            async with asyncio.timeout(self._lingering_time):
                while not body.is_eof():
                    await body.readany()

    async def _failed(self, client: WireClient, error: Exception) -> None:
        """Log as aiohttp does, send a 500 if no answer has begun, and close the connection."""
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
        """Close the connection, or wait for its next request."""
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
    """Return a body that has arrived with its head, or None if it has not."""
    if not body.is_eof() or body is EMPTY_PAYLOAD:
        return None
    parts = body._buffer  # noqa: SLF001 - reading wakes the parser for each part
    return parts[0] if len(parts) == 1 else b"".join(parts)
