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
from aiohttp.http import StreamWriter

from gateway.execution.chunks import usage_in
from gateway.execution.deadline import Deadline
from gateway.execution.joining import DiffersError
from gateway.execution.outcome import Usage
from gateway.execution.passage import Passed
from gateway.execution.upstream import Answer, AttemptFailedError
from gateway.routing.failures import Cause, Failure

EVENT_STREAM: Final = "text/event-stream"
_TAIL: Final = 4096
_AFTERMATH: Final = 1.0
_LAST_WORDS: Final = 1.0
_LINGER_NOT: Final = struct.pack("ii", 1, 0)
_STREAMED: Final = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
_TRAILER: Final = ("Trailer", "x-gateway-rescue, x-gateway-deployment, x-gateway-attempts")


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

    async def finish(self, trailer: Iterable[tuple[str, str]] = ()) -> None:
        """End the answer well; a trailer goes to those only who were told of one in the head (`Trailer`)."""
        ...

    async def break_off(self, last_words: bytes) -> None:
        """End the answer so that nobody takes it for whole."""
        ...


class Passing(Protocol):
    """What an answer's bytes go through on their way to the client."""

    size: int
    first_content: float | None

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer told of."""
        ...

    @property
    def lost(self) -> Usage | None:
        """The tokens that broken streams took beyond that."""
        ...

    @property
    def malformed(self) -> int:
        """How many events were left out."""
        ...

    @property
    def complete(self) -> bool:
        """Whether all of the answer that counts has come, whatever may follow."""
        ...

    @property
    def failed(self) -> bool:
        """Whether the answer tells of an error."""
        ...

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        ...

    def feed(self, chunk: bytes) -> Passed:
        """Take the next bytes."""
        ...

    def end(self) -> bytes:
        """Note that the answer is over, and give what may still pass."""
        ...

    def last_words(self, event: bytes) -> bytes:
        """Give what may be said when the answer ends here."""
        ...


class Body:
    """Passes any body but an event stream, as it is. Mutable: what is known of it.

    A JSON object that is cut short, and well framed all the same, must not end well: of one whose length was told, the
    last byte is kept back.
    """

    lost: Final = None
    malformed: Final = 0
    complete: Final = False
    failed: Final = False

    def __init__(self, clock: Callable[[], float], *, is_object: bool = False, length: int | None = None) -> None:
        """`clock` is monotonic, in seconds; `is_object`: JSON is expected, of `length` bytes if that is known."""
        self.size = 0
        self.first_content: float | None = None
        self._clock = clock
        self._is_object = is_object
        self._length = length
        self._tail = b""

    def feed(self, chunk: bytes) -> Passed:
        """Take the next bytes; all of them are content."""
        self._tail = (self._tail + chunk[-_TAIL:])[-_TAIL:]
        if self.size + len(chunk) == self._length and self.truncated:
            chunk = chunk[:-1]
        self.size += len(chunk)
        if self.first_content is None:
            self.first_content = self._clock()
        return Passed(chunk, content=True)

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return self._is_object and not self._tail.rstrip().endswith(b"}")

    def end(self) -> bytes:
        """Note that it is over; there is nothing to add."""
        return b""

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer told of."""
        return usage_in(self._tail)

    def last_words(self, _: bytes) -> bytes:
        """Say nothing: it would be taken for a part of the body."""
        return b""


async def relay(answer: Answer, first: bytes, client: Client, passing: Passing, idle: float) -> None:
    """Pass a whole body on, `first` being its beginning; the client is left to be told of the end.

    The upstream may be silent for `idle` seconds (0: without limit). What breaks its silence is content; comments do
    not. The time that a slow client takes is not counted. A complete stream is given a moment for what may follow, and
    then ended well, however the upstream ends it.

    Raises:
        AttemptFailedError: the upstream broke off, fell silent, or says something else than the client has already;
            what came before has been sent.
        ClientLeftError: the client is gone.

    """
    try:
        await _pass_on(answer, first, client, passing, idle)
        last = passing.end()
    except DiffersError:
        raise AttemptFailedError(Failure(Cause.REPLAY_DIFFERS, "the same request had another answer")) from None
    if passing.failed:
        raise AttemptFailedError(Failure(Cause.ERROR_ANSWER, "an error event in mid-stream"))
    if passing.truncated:
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "it ended before it was whole"))
    if last:
        await client.send(last)


async def _pass_on(answer: Answer, first: bytes, client: Client, passing: Passing, idle: float) -> None:
    try:
        with Deadline(asyncio.get_running_loop()) as clock:
            await _pass_each(answer, first, client, passing, idle, clock)
    except TimeoutError:
        if not passing.complete:
            raise AttemptFailedError(Failure(Cause.STALLED, f"no content for {idle:g} s")) from None
    except AttemptFailedError:
        if not passing.complete:
            raise


async def _pass_each(  # noqa: PLR0917 - the loop of every stream: an object for them would cost at each turn
    answer: Answer, chunk: bytes, client: Client, passing: Passing, idle: float, clock: Deadline
) -> None:
    now = asyncio.get_running_loop().time
    deadline: float | None = None
    ends: float | None = None
    while chunk:
        data, content = passing.feed(chunk)
        if data:
            clock.at(None)
            await client.send(data)
        if passing.failed:
            return
        if passing.complete:
            deadline = ends = ends or now() + _AFTERMATH
        elif idle and (content or deadline is None):
            deadline = now() + idle
        if not answer.over:
            clock.at(deadline)
        chunk = await answer.chunk()


class _Whole(web.StreamResponse):
    """A body of known length; its head goes out with its first bytes."""

    _send_headers_immediately = False  # as aiohttp's `web.Response`


class WebClient:
    """The client's side on aiohttp's server. Mutable: the response and its writer, once it has begun."""

    def __init__(self, request: web.Request) -> None:
        """Answer this request."""
        self._request = request
        self.response: web.StreamResponse | None = None
        self._writer: object = None

    @property
    def begun(self) -> bool:
        """Whether anything has gone out."""
        return self.response is not None

    async def begin(self, status: int, headers: Iterable[tuple[str, str]], length: int | None) -> None:
        """Send the head, or ready it to go out with the body; RFC 9110 6.4.1 for those without a body."""
        response = self.response = (web.StreamResponse if length is None else _Whole)(status=status)
        response.headers.extend(headers)
        if response.content_type == EVENT_STREAM:
            response.headers.extend(_STREAMED)
            if self._request.version >= HttpVersion11:
                response.headers.add(*_TRAILER)
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

    async def finish(self, trailer: Iterable[tuple[str, str]] = ()) -> None:
        """End the body well; a trailer needs a chunked one (RFC 9112 7.1.2)."""
        assert self.response is not None  # noqa: S101 - as above
        fields = "".join(f"{name}: {value}\r\n" for name, value in trailer)
        try:
            if fields and isinstance(self._writer, StreamWriter) and self._writer.chunked:
                self._writer.chunked = False
                await self.response.write(f"0\r\n{fields}\r\n".encode())
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
