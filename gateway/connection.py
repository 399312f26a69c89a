"""A client's connection: aiohttp's protocol, but for errors that it would answer itself.

Its answer to a malformed request quotes the bytes, which may hold a key; this one does not. Its parser, when it fails
inside a body, tells the next request's handler and not the body's reader; this one tells both. Who gives up waiting for
a client to read spoils it for who waits next; here each waits anew. It closes as if an answer that is cut had ended,
which in HTTP/1.0 it then has; this one resets.
"""

import asyncio
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from gateway.api.context import request_id_of
from gateway.api.errors import error_response
from gateway.capacity import Capacity
from gateway.execution.client import SERVER, close
from gateway.server import HANDLER_ARGS, LONGEST_FIELD, LONGEST_LINE, Options

ARGUMENTS: Final = {name: value for name, value in HANDLER_ARGS.items() if name != "handler_cancellation"}


class Connection(web.RequestHandler):
    """One client's; `capacity` holds it until its last byte has left.

    Mutable, beside aiohttp's own: where the newest request's body arrives.
    """

    __slots__ = ("_body", "_capacity")

    def __init__(self, capacity: Capacity, server: web.Server, options: Options) -> None:
        """Make one for a connection to come."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=options.keep_alive,
            **ARGUMENTS,  # type: ignore[arg-type] # aiohttp's own
        )
        # aiohttp's parser counts a request, whose body came after its head, once too often, and then stops before the
        # queue is full: nobody would tell it to go on
        self._max_msg_queue_size -= 1
        self._capacity = capacity
        self._body: StreamReader = EMPTY_PAYLOAD

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self._current_request is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in."""
        self._capacity.enter(self, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._capacity.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes.

        A reader that the same bytes have woken would not look for the break before it waits again: it is told then.
        """
        super().data_received(data)
        for message, body in self._messages:
            if not isinstance(message, _ErrInfo):
                self._body = EMPTY_PAYLOAD if body.is_eof() else body
            elif not self._body.is_eof():
                broken = web.RequestPayloadError("the body is not well framed")
                self._loop.call_soon(self._body.set_exception, broken)

    def force_close(self) -> None:
        """Close; with an RST inside an answer in HTTP/1.0, which a FIN might end well (RFC 9112 8)."""
        request, transport = self._current_request, self.transport
        is_old = request is not None and request.version < HttpVersion11
        if is_old and transport is not None and not transport.is_closing():
            close(transport, reset=True)
        super().force_close()

    async def _drain_helper(self) -> None:
        """Wait until the client has room; who gave up waiting has cancelled the future that the next one would get."""
        if self._drain_waiter is not None and self._drain_waiter.cancelled():
            self._drain_waiter = None
        await super()._drain_helper()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, in no other version than our own (RFC 9110 6.2).

        The refusal of a strange Expect, which no middleware sees, quotes it and is replaced; a body that is still to
        come may then never come (RFC 9110 10.1.1).
        """
        if isinstance(resp, web.HTTPException):
            resp = error_response(resp.status, resp.reason.lower())
            if not request.content.is_eof():
                resp.force_close()
        if request.version not in (HttpVersion10, HttpVersion11):
            request._cache["version"] = HttpVersion11  # noqa: SLF001 - aiohttp answers in what it finds there
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Log as aiohttp does, answer in OpenAI's shape, close the connection."""
        super().handle_error(request, status, exc, message)
        response = _too_long() if isinstance(exc, LineTooLong) else failure(status)
        response.headers["Server"], response.headers["x-request-id"] = SERVER, request_id_of(None)
        return response


def _too_long() -> web.Response:
    """Refuse a head of which a line is too long (RFC 6585 5)."""
    text = f"the request's line is longer than {LONGEST_LINE} bytes, or a header field than {LONGEST_FIELD}"
    response = error_response(431, text, code="head_too_large")
    response.force_close()
    return response


def failure(status: int) -> web.Response:
    """Say that something went wrong, with a 5xx with us; the connection ends."""
    text = "the gateway failed" if status >= 500 else "the request is not well-formed HTTP"  # noqa: PLR2004 - 5xx
    code = "internal_error" if status >= 500 else "malformed_request"  # noqa: PLR2004 - as above
    response = error_response(status, text, code=code)
    response.force_close()
    return response
