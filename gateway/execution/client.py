"""The client's side of an answer: on aiohttp's response, or on the connection itself.

`WebClient` is the plain way. `WireClient` writes the same bytes to the client's transport, without the other work of
aiohttp's response, and without waiting: while the answer pours, the pourer is notified when the client is full.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.http import StreamWriter

from gateway.execution.fields import EVENT_STREAM, NONE, Fields, media_type
from gateway.execution.framing import framed
from gateway.execution.outbox import Outbox

SERVER: Final = "hybrid-inference-gateway"
_LAST_WORDS: Final = 1.0
_POSTED: Final = 1 << 14
"""The longest body, in bytes, that is sent together with others, without waiting for the client to have room for it."""
_LINGER_NOT: Final = struct.pack("ii", 1, 0)
_STREAMED: Final = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class ClientLeftError(Exception):
    """The client's connection is gone."""


class _Whole(web.StreamResponse):
    """A body of known length; its head goes out with its first bytes."""

    _send_headers_immediately = False  # as aiohttp's `web.Response`


class WebClient:
    """The client's side on aiohttp's server.

    Mutable: the response and its writer, once it has begun; whether its end or its last words have been written; and
    the configuration's `generation`, once it is known.
    """

    def __init__(self, request: web.Request) -> None:
        """Answer this request."""
        self._request = request
        self.response: web.StreamResponse | None = None
        self.generation: int | None = None
        self._writer: object = None
        self._ended = False

    @property
    def begun(self) -> bool:
        """Whether anything has gone out."""
        return self.response is not None

    @property
    def full(self) -> bool:
        """Whether more is waiting for the client to read than should be."""
        return self._request.protocol.writing_paused

    async def begin(self, status: int, headers: Fields, length: int | None) -> None:
        """Send the head, or prepare it to go out with the body; every status that is begun has a body."""
        response = self.response = (web.StreamResponse if length is None else _Whole)(status=status)
        response.headers.extend(headers.pairs)
        if self.generation is not None:
            response.headers["x-gateway-generation"] = str(self.generation)
        if media_type(response.headers.get("Content-Type", "")) == EVENT_STREAM:
            response.headers.extend(_STREAMED)
        response.content_length = length
        try:
            self._writer = await response.prepare(self._request)
        except ConnectionError as error:
            raise ClientLeftError from error
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientLeftError

    async def send(self, data: bytes) -> None:
        """Send bytes, waiting for a slow reader."""
        assert self.response is not None  # noqa: S101 - the order of calls is the executor's
        try:
            await self.response.write(data)
        except ConnectionError as error:
            raise ClientLeftError from error

    async def finish(self, trailer: Fields = NONE) -> None:
        """End the body properly; a trailer needs a chunked one (RFC 9112 7.1.2).

        The trailer is not announced: Node's servers throw if a proxy passes on the field `Trailer` but no chunks.
        """
        assert self.response is not None  # noqa: S101 - as above
        fields = trailer.text
        self._ended = True
        try:
            if fields and isinstance(self._writer, StreamWriter) and self._writer.chunked:
                self._writer.chunked = False
                await self.response.write(f"0\r\n{fields}\r\n".encode())
            await self.response.write_eof()
        except ConnectionError as error:
            raise ClientLeftError from error

    async def answer(self, status: int, headers: Fields, body: bytes) -> None:
        """Send a whole answer."""
        await self.begin(status, headers, len(body))
        await self.send(body)
        await self.finish()

    async def break_off(self, last_words: bytes) -> None:
        """Send the last words, if any, and close without ending the message; reset a client that does not read."""
        words, self._ended = b"" if self._ended else last_words, True
        heard = await _is_heard(self, words)
        transport = self._request.transport
        if transport is not None:
            close(transport, reset=self._request.version < HttpVersion11 or not heard)

    async def room(self) -> None:
        """Wait until the client has room for more."""
        if isinstance(self._writer, StreamWriter):
            try:
                await self._writer.drain()
            except ConnectionError as error:
                raise ClientLeftError from error


class Line(Protocol):
    """A client's connection, as far as an answer needs it."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport, None once it is gone."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether more is waiting for the client to read than should be."""
        ...

    @property
    def outbox(self) -> Outbox:
        """What this turn of the loop has to send."""
        ...

    def is_last(self) -> bool:
        """Return whether the connection ends with this answer."""
        ...

    def room(self) -> Awaitable[None]:
        """Wait until the client has room."""
        ...


class Pourer(Protocol):
    """Pours an answer out to a client."""

    def pause(self) -> None:
        """Stop pouring: the client is full."""
        ...

    def resume(self) -> None:
        """Resume pouring."""
        ...


class WireClient(msgspec.Struct, eq=False):
    """The client's side of one HTTP/1.1 answer (RFC 9112), on its connection. The head goes out with the first bytes.

    Mutable: whether it has `begun`, whether it `closes` the connection; the configuration's `generation`, once the
    request is routed; the `pourer`, which is notified when the client is full; the head, until it is sent; whether the
    body is chunked; and whether its end or its last words have been written.
    """

    _line: Line
    _request_id: str
    begun: bool = False
    closes: bool = False
    generation: int | None = None
    pourer: Pourer | None = None
    _head: bytes = b""
    _chunked: bool = False
    _ended: bool = False

    def __repr__(self) -> str:
        return f"<WireClient {self._request_id}>"

    @property
    def full(self) -> bool:
        """Whether more is waiting for the client to read than should be."""
        return self._line.is_full

    @property
    def outbox(self) -> Outbox:
        """Where writes to this connection may be posted; whoever writes to the client directly flushes first."""
        return self._line.outbox

    @property
    def raw(self) -> asyncio.Transport | None:
        """The transport, if whole chunks (RFC 9112, 7.1) may be written to it: inside a chunked body. Else None."""
        return self._line.transport if self._chunked and not self._head else None

    async def begin(self, status: int, headers: Fields, length: int | None) -> None:
        """Prepare the head, which goes out with the first bytes of the body; every status that is begun has a body."""
        self._head = self._head_of(status, headers, length)
        if self._line.transport is None or self._line.transport.is_closing():
            raise ClientLeftError

    def answer(self, status: int, headers: Fields, body: bytes) -> Awaitable[None] | None:
        """Send a whole answer; return what must be awaited, if anything."""
        head = self._head_of(status, headers, len(body))
        line = self._line
        transport = line.transport
        if self.closes or line.is_full or len(body) > _POSTED:
            self._head = head
            self._write(body)
            self._ended = True
            return self.room()
        if transport is None or transport.is_closing():
            raise ClientLeftError
        line.outbox.post(transport, head + body)
        self._ended = True
        return None

    def _head_of(self, status: int, headers: Fields, length: int | None) -> bytes:
        """Begin the answer; return its head."""
        self.begun = True
        if not self.closes and self._line.is_last():
            self.closes = True
        if length is not None:
            framing = f"Content-Length: {length}\r\n"
        else:
            self._chunked = True
            framing = _CHUNKED_STREAM if _are_of_a_stream(headers) else _CHUNKED
        line = _LINES.get(status) or f"HTTP/1.1 {status} \r\n"
        return (
            f"{line}{headers.text}{framing}{_stamp.now()}"
            f"x-request-id: {self._request_id}\r\nx-gateway-generation: {self.generation}\r\n"
            f"{_CLOSES if self.closes else ''}\r\n"
        ).encode()

    def write(self, data: bytes) -> None:
        """Send a part of the body without waiting.

        Raises:
            ClientLeftError: the client is gone.

        """
        if self._chunked:
            data = framed(data)
        transport = self._line.transport
        if self._head or transport is None or transport.is_closing():
            self._write(data)
        else:
            transport.write(data)

    async def send(self, data: bytes) -> None:
        """Send bytes, waiting for a slow reader."""
        self.write(data)
        await self.room()

    async def finish(self, trailer: Fields = NONE) -> None:
        """End the body properly; a trailer needs a chunked one (RFC 9112 7.1.2)."""
        if self._chunked:
            self._write(f"0\r\n{trailer.text}\r\n".encode())
        self.flush()
        self._ended = True
        await self.room()

    async def respond(self, response: web.Response, generation: int) -> None:
        """Send a whole answer that is ready; for a request that was not routed, it reports this `generation`."""
        if self.generation is None:
            self.generation = generation
        body = response.body
        assert isinstance(body, bytes)  # noqa: S101 - they are small
        self.closes = self.closes or response.keep_alive is False
        sent = self.answer(response.status, Fields(response.headers.items()), body)
        if sent is not None:
            await sent

    async def break_off(self, last_words: bytes) -> None:
        """Send the last words, if any, and close without ending the message; reset a client that does not read."""
        self.closes = True
        with suppress(ClientLeftError):
            self.flush()
        words, self._ended = b"" if self._ended else last_words, True
        heard = await _is_heard(self, words)
        transport = self._line.transport
        if transport is not None:
            close(transport, reset=not heard)

    def flush(self) -> None:
        """Send the head, if it is still waiting for the first bytes."""
        if self._head:
            self._write(b"")

    def _write(self, data: bytes) -> None:
        transport = self._line.transport
        if transport is None or transport.is_closing():
            raise ClientLeftError
        head, self._head = self._head, b""
        if not head:
            transport.write(data)
        elif len(data) <= _POSTED:
            transport.write(head + data)
        else:
            transport.writelines((head, data))  # which uvloop does without a copy

    async def room(self) -> None:
        """Wait until the client has room for more."""
        if self._line.is_full:
            try:
                await self._line.room()
            except ConnectionError as error:
                raise ClientLeftError from error


Client = WebClient | WireClient
"""The client's side of an answer."""


async def _is_heard(client: Client, last_words: bytes) -> bool:
    """Send the last words, if any; return false if the client does not read."""
    try:
        async with asyncio.timeout(_LAST_WORDS):
            if last_words:
                await client.send(last_words)
            await client.room()
    except TimeoutError:
        return False
    except ClientLeftError:
        pass
    return True


def close(transport: asyncio.Transport, *, reset: bool) -> None:
    """Close; with an RST on `reset`: the FIN of `abort` alone properly ends a body without a length (RFC 9112 8)."""
    if not reset:
        transport.close()
        return
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


def _are_of_a_stream(fields: Fields) -> bool:
    return any(name.lower() == "content-type" and media_type(value) == EVENT_STREAM for name, value in fields.pairs)


_CHUNKED: Final = "Transfer-Encoding: chunked\r\n"
_CHUNKED_STREAM: Final = _CHUNKED + Fields(_STREAMED).text
_CLOSES: Final = "Connection: close\r\n"


class _Stamp:
    """The fields that every answer of one second has (RFC 9110 6.6.1, 10.2.4). Mutable: the text, once a second."""

    __slots__ = ("_from", "_text", "_until")

    def __init__(self) -> None:
        self._from = self._until = 0.0
        self._text = ""

    def now(self) -> str:
        now = time.time()
        if not self._from <= now < self._until:
            self._from = now // 1
            self._until = self._from + 1
            self._text = f"Date: {formatdate(now, usegmt=True)}\r\nServer: {SERVER}\r\n"
        return self._text


_stamp: Final = _Stamp()
