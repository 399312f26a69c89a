"""Upstream bytes to the client, as they come.

Once the first byte is out there are two ends only: the answer's own, and a visible break. A break inside an event
stream says so in one last event, and the connection closes without the chunk that would end it well (RFC 9112 8: an
incomplete message). Every other break is the closed connection alone. A client on HTTP/1.0 knows an end by the close
itself, so there the connection is reset.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from aiohttp import HttpVersion11, web

from gateway.execution.outcome import Usage
from gateway.execution.sse import ChatStream, usage_in
from gateway.execution.upstream import Answer, AttemptFailedError
from gateway.routing.failures import Cause, Failure

EVENT_STREAM: Final = "text/event-stream"
_TAIL: Final = 4096
_AFTERMATH: Final = 2.0
_LAST_WORDS: Final = 1.0
_DONE: Final = b"data: [DONE]\n\n"
_LINGER_NOT: Final = struct.pack("ii", 1, 0)
_STREAMED: Final = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))


class ClientLeftError(Exception):
    """The client's connection is gone."""


class Client(Protocol):
    """The client's side of an answer."""

    @property
    def begun(self) -> bool:
        """Whether anything has gone out."""
        ...

    async def begin(self, status: int, headers: Iterable[tuple[str, str]], length: int | None) -> None:
        """Commit to an answer: send its head."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a part of the body; returns when the client has room for more."""
        ...

    async def finish(self) -> None:
        """End the answer well."""
        ...

    async def break_off(self, last_words: bytes) -> None:
        """End the answer so that nobody takes it for whole."""
        ...


class Watch:
    """What the executor wants to know of an answer that passes: the first content's coming, the tokens, the size."""

    def __init__(self, clock: Callable[[], float], *, events: bool) -> None:
        """Watch a stream of chat events, or any other body, from its first byte; `clock` is monotonic, in seconds."""
        self.size = 0
        self.first_content: float | None = None
        self._clock = clock
        self._stream = ChatStream() if events else None
        self._tail = b""

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes; tell whether content was in them."""
        self.size += len(chunk)
        if self._stream:
            content = self._stream.feed(chunk)
        else:
            self._tail = (self._tail + chunk)[-_TAIL:]
            content = True
        if content and self.first_content is None:
            self.first_content = self._clock()
        return content

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer told of."""
        return self._stream.usage if self._stream else usage_in(self._tail)

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return self._stream.truncated if self._stream else False

    @property
    def complete(self) -> bool:
        """Whether all of the stream that counts has come: its finish reason, or its `[DONE]`."""
        return self._stream is not None and (self._stream.finished or self._stream.done)

    @property
    def lacks_done(self) -> bool:
        """Whether everything has come but the stream's `[DONE]`."""
        return self._stream is not None and self._stream.finished and not self._stream.done

    def end(self) -> None:
        """Note that the answer is over."""
        if self._stream:
            self._stream.end()

    @property
    def failed(self) -> bool:
        """Whether the stream told of an error, in an event of the upstream's own."""
        return self._stream is not None and self._stream.failed

    def last_words(self, event: bytes) -> bytes:
        """Give what may be said when the answer ends here: the event, set apart from what was cut, or nothing.

        Nothing is added to an upstream's own error event: one is enough.
        """
        if self._stream is None or self._stream.failed:
            return b""
        return event if self._stream.at_boundary else b"\n\n" + event


async def relay(answer: Answer, first: bytes, client: Client, watch: Watch, idle: float) -> None:
    """Pass a whole body on, `first` being its beginning.

    The upstream may be silent for `idle` seconds (0: without limit). What breaks its silence is content; comments do
    not. The time that a slow client takes is not counted. A complete stream is given a moment for what may follow, and
    then ended well, however the upstream ends it.

    Raises:
        AttemptFailedError: the upstream broke off or fell silent; what came before has been sent.
        ClientLeftError: the client is gone.

    """
    loop = asyncio.get_running_loop()
    chunk = first
    deadline: float | None = None
    ends: float | None = None
    try:
        while chunk:
            content = watch.feed(chunk)
            await client.send(chunk)
            if watch.complete:
                deadline = ends = ends or loop.time() + _AFTERMATH
            elif idle and (content or deadline is None):
                deadline = loop.time() + idle
            async with asyncio.timeout_at(deadline):
                chunk = await answer.chunk()
    except TimeoutError:
        if not watch.complete:
            raise AttemptFailedError(Failure(Cause.STALLED, f"no content for {idle:g} s")) from None
    except AttemptFailedError:
        if not watch.complete:
            raise
    await _end(client, watch)


async def _end(client: Client, watch: Watch) -> None:
    """End an answer well of which nothing more comes, if it is whole."""
    watch.end()
    if watch.failed:
        raise AttemptFailedError(Failure(Cause.ERROR_ANSWER, "an error event in mid-stream"))
    if watch.truncated:
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the stream ended without a finish reason"))
    if watch.lacks_done:
        await client.send(watch.last_words(_DONE))
    await client.finish()


class WebClient:
    """The client's side on aiohttp's server. Its one mutable thing is the response once it has begun."""

    def __init__(self, request: web.Request) -> None:
        """Answer this request."""
        self._request = request
        self.response: web.StreamResponse | None = None

    @property
    def begun(self) -> bool:
        """Whether anything has gone out."""
        return self.response is not None

    async def begin(self, status: int, headers: Iterable[tuple[str, str]], length: int | None) -> None:
        """Send the head; RFC 9110 6.4.1 for those without a body."""
        response = self.response = web.StreamResponse(status=status)
        response.headers.extend(headers)
        if response.content_type == EVENT_STREAM:
            response.headers.extend(_STREAMED)
        response.content_length = length
        try:
            await response.prepare(self._request)
        except ConnectionError as error:
            raise ClientLeftError from error

    async def send(self, data: bytes) -> None:
        """Send bytes, waiting for a slow reader."""
        assert self.response is not None  # noqa: S101 - the order of calls is the executor's
        try:
            await self.response.write(data)
        except ConnectionError as error:
            raise ClientLeftError from error

    async def finish(self) -> None:
        """End the body well."""
        assert self.response is not None  # noqa: S101 - as above
        try:
            await self.response.write_eof()
        except ConnectionError as error:
            raise ClientLeftError from error

    async def break_off(self, last_words: bytes) -> None:
        """Say the last words, if any, and close without ending the message; a client that does not read is cut off."""
        heard = True
        if last_words:
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await self.send(last_words)
            except TimeoutError:
                heard = False
            except ClientLeftError:
                pass
        transport = self._request.transport
        if transport is None:
            return
        if self._request.version < HttpVersion11 or not heard:
            _reset(transport)
        else:
            transport.close()


def _reset(transport: asyncio.Transport) -> None:
    """Close with an RST: `abort` alone sends a FIN, which ends a body without a length well (RFC 9112 8)."""
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()
