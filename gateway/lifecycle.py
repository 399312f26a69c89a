"""Start, signals, drain, stop.

    SIGTERM, SIGINT   stop: readiness turns 503, the door closes, requests in flight end; at the deadline they are cut
    the same again    cut at once
    SIGHUP            read the configuration again

The address is taken before anything else is done, so that a second gateway on it writes nothing into the first one's
log. It is listened on once the configuration is read.

While it drains, a connection that is still open gets its answers with `Connection: close`, so that no client is cut
off between two requests. A request is in flight until its answer's last byte is with the kernel.
"""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import uvloop
from aiohttp import HttpVersion10, HttpVersion11, StreamReader, http_parser, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from gateway.api.context import SERVER, request_id_of
from gateway.api.errors import error_response
from gateway.capacity import Capacity, bounds, open_files
from gateway.heap import settle
from gateway.listener import Listener
from gateway.server import GATEWAY, HANDLER_ARGS, Options, create_app

_GOOD_NEWS: Final = frozenset({"connections.accepted", "connections.free"})
_POLL: Final = 0.02
_LAST_WORDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and for how many seconds requests in flight may go on after the signal to stop.

    `connections` is the most that clients may have; None: what the limit of open files allows.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain: float = 30.0
    connections: int | None = None


class Protocol(web.RequestHandler):
    """Aiohttp's protocol, but for errors that it would answer itself.

    Its answer to a malformed request quotes the bytes, which may hold a key; this one does not. Its parser, when it
    fails inside a body, tells the next request's handler and not the body's reader; this one tells both. `capacity`
    holds each connection until its last byte has left.
    """

    __slots__ = ("_body", "_capacity")

    def __init__(self, capacity: Capacity, *args: object, **more: object) -> None:
        """Make one for a connection to come."""
        super().__init__(*args, **more)  # type: ignore[arg-type] # aiohttp's own
        self._body: StreamReader = EMPTY_PAYLOAD
        self._capacity = capacity

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
        """Parse bytes; `_body` is where the newest request's body arrives.

        A reader that the same bytes have woken would not look for the break before it waits again: it is told then.
        """
        super().data_received(data)
        for message, body in self._messages:
            if not isinstance(message, _ErrInfo):
                self._body = body
            elif not self._body.is_eof():
                broken = web.RequestPayloadError("the body is not well framed")
                self._loop.call_soon(self._body.set_exception, broken)

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
        text = "the gateway failed" if status >= 500 else "the request is not well-formed HTTP"  # noqa: PLR2004 - 5xx
        code = "internal_error" if status >= 500 else "malformed_request"  # noqa: PLR2004 - as above
        headers = {"Server": SERVER, "x-request-id": request_id_of(None)}
        response = error_response(status, text, code=code, headers=headers)
        response.force_close()
        return response


class CannotServeError(Exception):
    """The gateway cannot serve here; the message says why."""


class CannotListenError(CannotServeError):
    """The address cannot be listened on; the message says why."""


class Door:
    """A gateway and where it listens.

    `ports` are those it got, `urls` where it is reached. It changes by its open connections, and by the two events:
    `stopping`, set by the first wish to stop, and `cutting`, set by the second.
    """

    def __init__(self, options: Options) -> None:
        """Wire the gateway; nothing runs and nothing listens yet."""
        app = create_app(options)
        self.gateway = app[GATEWAY]
        self.capacity = Capacity(self._tell)
        self.listener = Listener(self._protocol, self.capacity.has_room, self._tell)
        self.capacity.left = self.listener.resume
        app.middlewares.append(self.capacity.admit)
        app.on_response_prepare.append(self.capacity.close_spare)
        self.runner = web.AppRunner(app, shutdown_timeout=_LAST_WORDS)
        self.ports: tuple[int, ...] = ()
        self.urls: tuple[str, ...] = ()
        self.stopping = asyncio.Event()
        self.cutting = asyncio.Event()

    async def open(self, listen: Listen) -> None:
        """Take the address, start the gateway, and listen.

        Raises:
            CannotListenError: the address is taken or not ours.

        """
        self.capacity.bounds = bounds(listen.connections, open_files())
        try:
            with _taking(listen):
                await self.listener.bind(listen.host, listen.port)
            addresses = [bound.getsockname()[:2] for bound in self.listener.sockets]
            self.ports = tuple(port for _, port in addresses)
            self.urls = self.gateway.urls = tuple(f"http://{_bracketed(host)}:{port}" for host, port in addresses)
            await self.runner.setup()
            with _taking(listen):
                self.listener.start()
        except BaseException:
            await self.close(0)
            raise

    def stop(self) -> None:
        """Begin to stop; asked again, cut."""
        if self.stopping.is_set():
            self.cutting.set()
        self.stopping.set()

    async def close(self, drain: float) -> None:
        """Let requests in flight end for `drain` seconds, cut the rest, and stop."""
        self.gateway.drain()
        self.listener.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain
        await self._wait(lambda: not self.gateway.active, deadline)
        self.gateway.cut = self.gateway.active
        self.gateway.executor.cutting = True
        if self.runner.server is not None:
            self.runner.server.pre_shutdown()  # ends what is idle
            await self.runner.server.shutdown(_LAST_WORDS)
        await self._wait(lambda: not self.capacity.connections, max(deadline, loop.time() + _LAST_WORDS))
        for transport in list(self.capacity.connections.values()):
            transport.abort()  # type: ignore[attr-defined] # a TCP connection's has it
        await self.runner.cleanup()

    def _protocol(self) -> Protocol:
        arguments = {name: value for name, value in HANDLER_ARGS.items() if name != "handler_cancellation"}
        return Protocol(self.capacity, self.runner.server, loop=asyncio.get_running_loop(), **arguments)

    def _tell(self, event: str, fields: Mapping[str, object]) -> None:
        say = self.gateway.log.info if event in _GOOD_NEWS else self.gateway.log.warning
        say(event, **fields)

    async def _wait(self, done: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not done() and not self.cutting.is_set() and loop.time() < deadline:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.cutting.wait(), _POLL)


async def open_door(options: Options, listen: Listen) -> Door:
    """Start the gateway and listen.

    Raises:
        CannotListenError: the address is taken or not ours.

    """
    door = Door(options)
    await door.open(listen)
    return door


async def serve(options: Options, listen: Listen, opened: Callable[[Door], Awaitable[None]]) -> None:
    """Serve until a signal says to stop; `opened` is called once connections are accepted.

    Raises:
        CannotServeError: the address is taken or not ours, or aiohttp is not fit for it.

    """
    check_runtime()
    raise_file_limit()
    door = Door(options)
    door.gateway.tidy = settle
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, door.stop)
    loop.add_signal_handler(signal.SIGHUP, door.gateway.reloader.request)
    await door.open(listen)
    try:
        await opened(door)
        await door.stopping.wait()
    finally:
        await door.close(listen.drain)


def run(main: Awaitable[None]) -> None:
    """Run a program on uvloop."""

    async def entry() -> None:
        await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(entry())


def check_runtime() -> None:
    """Refuse aiohttp's slow and lenient Python parser.

    Raises:
        CannotServeError: aiohttp was built without its C parser.

    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        message = "aiohttp runs without its C parser, install a wheel of it or unset AIOHTTP_NO_EXTENSIONS"
        raise CannotServeError(message)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each request holds two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _taking(listen: Listen) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{_bracketed(listen.host)}:{listen.port}"
        raise CannotListenError(f"cannot listen on {where}: {_reason(error)}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return (error.strerror or str(error)).lower()
    return os.strerror(error.errno).lower() if error.errno else str(error)
