"""A client's connection: aiohttp's protocol with other handling of errors.

aiohttp's answer to a malformed request quotes the bytes, which may contain a key; this one does not. When its parser
fails inside a body, aiohttp tells the next request's handler and not the body's reader; this one tells both. In aiohttp
a task that is cancelled while it waits for the client to read leaves a cancelled future to the next one; here the next
one gets a new future. aiohttp closes the connection after a truncated answer as after a whole one, which in HTTP/1.0
look the same; this one resets it.
"""

import asyncio
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from gateway.api.context import check_framing, request_id_of
from gateway.api.errors import RequestError, error_response
from gateway.capacity import Capacity
from gateway.execution.client import SERVER, close
from gateway.server import HANDLER_ARGS, LONGEST_FIELD, LONGEST_LINE, Options

ARGUMENTS: Final = {name: value for name, value in HANDLER_ARGS.items() if name != "handler_cancellation"}
_FIRST_REQUEST: Final = 5.0
"""Seconds that a client has for its request where no connection is kept: aiohttp would wait for ever."""


class Connection(web.RequestHandler):
    """One client's connection; `capacity` counts it until its last byte has been sent.

    Mutable, besides aiohttp's own state: the reader of the newest request's body.
    """

    __slots__ = ("_body", "_capacity")

    def __init__(self, capacity: Capacity, server: web.Server, options: Options) -> None:
        """Make the protocol of a new connection."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=options.keep_alive or _FIRST_REQUEST,
            **ARGUMENTS,  # type: ignore[arg-type] # aiohttp's own
        )
        # aiohttp's parser counts a request whose body came after its head once too often, and then stops before the
        # queue is full: nothing would resume it
        self._max_msg_queue_size -= 1
        self._capacity = capacity
        self._body: StreamReader = EMPTY_PAYLOAD

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self._current_request is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        self._capacity.enter(self, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting the connection."""
        self._capacity.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes.

        A reader that the same bytes have woken would wait again without checking for the error, so the exception is set
        after it has run.
        """
        super().data_received(data)
        for message, body in self._messages:
            if not isinstance(message, _ErrInfo):
                self._body = EMPTY_PAYLOAD if body.is_eof() else body
            elif not self._body.is_eof():
                broken = web.RequestPayloadError("the body is not well framed")
                self._loop.call_soon(self._body.set_exception, broken)

    def force_close(self) -> None:
        """Close; inside an HTTP/1.0 answer send an RST, because a FIN would mark it as complete (RFC 9112 8)."""
        request, transport = self._current_request, self.transport
        is_old = request is not None and request.version < HttpVersion11
        if is_old and transport is not None and not transport.is_closing():
            close(transport, reset=True)
        super().force_close()

    async def _drain_helper(self) -> None:
        """Wait until the client has room; drop a future that was cancelled with the task that waited before."""
        if self._drain_waiter is not None and self._drain_waiter.cancelled():
            self._drain_waiter = None
        await super()._drain_helper()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, only in an HTTP version that is supported (RFC 9110 6.2).

        aiohttp's refusal of an unknown Expect, which no middleware sees, quotes the field and is replaced. If the body
        has not arrived yet, the client may never send it (RFC 9110 10.1.1), so the connection is closed; so it is if
        the request is not well framed.
        """
        if isinstance(resp, web.HTTPException):
            resp = error_response(resp.status, resp.reason.lower())
            if not request.content.is_eof() or not _is_framed(request):
                resp.force_close()
        if request.version not in (HttpVersion10, HttpVersion11):
            request._cache["version"] = HttpVersion11  # noqa: SLF001 - aiohttp takes the answer's version from it
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Log as aiohttp does, answer with an OpenAI-shaped error, and close the connection."""
        super().handle_error(request, status, exc, message)
        response = _too_long() if isinstance(exc, LineTooLong) else failure(status)
        response.headers["Server"], response.headers["x-request-id"] = SERVER, request_id_of(None)
        return response


def _too_long() -> web.Response:
    """Refuse a head with a line that is too long (RFC 6585 5)."""
    text = f"the request's line is longer than {LONGEST_LINE} bytes, or a header field than {LONGEST_FIELD}"
    response = error_response(431, text, code="head_too_large")
    response.force_close()
    return response


def failure(status: int) -> web.Response:
    """Return an error answer that closes the connection; a 5xx means that the gateway failed."""
    text = "the gateway failed" if status >= 500 else "the request is not well-formed HTTP"  # noqa: PLR2004 - 5xx
    code = "internal_error" if status >= 500 else "malformed_request"  # noqa: PLR2004 - as above
    response = error_response(status, text, code=code)
    response.force_close()
    return response


def _is_framed(request: web.BaseRequest) -> bool:
    try:
        check_framing(request)
    except RequestError:
        return False
    return True
