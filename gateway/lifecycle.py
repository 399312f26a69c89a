"""Start, signals, drain, stop.

    SIGTERM, SIGINT   stop: readiness turns 503, the sockets close, requests in flight end; at the deadline they are cut
    a second one      cut at once
    SIGHUP            read the configuration again

The address is bound before anything else is done, so that a second gateway on it writes nothing into the first one's
log. The gateway listens once the configuration is read; a signal to stop does not wait for that.

While the gateway drains, open connections get their answers with `Connection: close`, so that no client is cut off
between two requests. A request is in flight until the last byte of its answer is in the kernel.
"""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import uvloop
from aiohttp import http_parser, web

from gateway.capacity import Capacity, bounds, open_files
from gateway.connection import Connection
from gateway.execution.client import close
from gateway.fast_path import FastPath
from gateway.heap import settle
from gateway.listener import Listener
from gateway.server import GATEWAY, Options, create_app

_GOOD_NEWS: Final = frozenset({"connections.accepted", "connections.free"})
_TURNS: Final = 8
"""The loop iterations in which requests that have arrived may start, before `close` checks for active ones."""
_POLL: Final = 0.02
_LAST_WORDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and for how many seconds requests in flight may go on after the signal to stop.

    `connections` is the highest number of client connections; None means what the limit of open files allows.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain: float = 30.0
    connections: int | None = None


class CannotServeError(Exception):
    """The gateway cannot serve here; the message says why."""


class CannotListenError(CannotServeError):
    """The gateway cannot listen on the address; the message says why."""


class Door:
    """A gateway and where it listens.

    `ports` are those it got, `urls` where it is reached. Mutable, besides these: its open connections, and the two
    events: `stopping`, set by the first request to stop, and `cutting`, set by the second.
    """

    def __init__(self, options: Options) -> None:
        """Wire the gateway, without running or listening yet."""
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
        """Bind the address, start the gateway, and listen.

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
        """Begin to stop; on a second call, cut requests in flight."""
        if self.stopping.is_set():
            self.cutting.set()
        self.stopping.set()

    async def close(self, drain: float) -> None:
        """Give requests in flight `drain` seconds to end, cut the rest, and stop."""
        self.gateway.drain()
        self.listener.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await self._wait(lambda: not self.gateway.active, deadline)
        self.gateway.cut = self.gateway.active
        self.gateway.executor.cutting = True
        if self.runner.server is not None:
            self.runner.server.pre_shutdown()  # closes idle connections
            await self.runner.server.shutdown(_LAST_WORDS)
        await self._wait(lambda: not self.capacity.connections, max(deadline, loop.time() + _LAST_WORDS))
        for transport in list(self.capacity.connections.values()):
            close(transport, reset=True)  # type: ignore[arg-type] # a TCP connection has a full transport
        await self.runner.cleanup()

    def _protocol(self) -> Connection:
        server = self.runner.server
        assert server is not None  # noqa: S101 - it is set up before it listens
        if self.gateway.upstream.transport == "direct":
            return FastPath(self.capacity, server, self.gateway)
        return Connection(self.capacity, server, self.gateway.options)

    def _tell(self, event: str, fields: Mapping[str, object]) -> None:
        say = self.gateway.log.info if event in _GOOD_NEWS else self.gateway.log.warning
        say(event, **fields)

    async def _wait(self, done: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not done() and not self.cutting.is_set() and loop.time() < deadline:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.cutting.wait(), _POLL)


async def serve(
    options: Options, listen: Listen, opened: Callable[[Door], Awaitable[None]], *, outlives_terminal: bool = True
) -> None:
    """Serve until a signal to stop arrives; `opened` is called once connections are accepted.

    With `outlives_terminal` false, SIGHUP is a signal to stop, unless it is ignored (nohup).

    Raises:
        CannotServeError: the address is taken or not ours, or aiohttp lacks its C parser.

    """
    check_runtime()
    raise_file_limit()
    door = Door(options)
    door.gateway.tidy = settle
    loop = asyncio.get_running_loop()
    opening = loop.create_task(door.open(listen))

    def stop() -> None:
        door.stop()
        opening.cancel()  # reading the configuration may hang for ever

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if outlives_terminal:
        loop.add_signal_handler(signal.SIGHUP, door.gateway.reloader.request)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop)
    try:
        await opening
    except asyncio.CancelledError:
        if door.stopping.is_set():
            return
        raise
    try:
        await opened(door)
        await door.stopping.wait()
    finally:
        await door.close(listen.drain)


def run(main: Coroutine[object, None, None]) -> None:
    """Run a program on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def check_runtime() -> None:
    """Refuse to run on aiohttp's slow and lenient Python parser.

    Raises:
        CannotServeError: aiohttp was built without its C parser.

    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        message = "aiohttp runs without its C parser, install a wheel of it or unset AIOHTTP_NO_EXTENSIONS"
        raise CannotServeError(message)


def raise_file_limit() -> None:
    """Raise the limit of open files as far as the system allows: each request holds two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _taking(listen: Listen) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        where = ", ".join(f"{_bracketed(host.strip())}:{listen.port}" for host in listen.host.split(","))
        raise CannotListenError(f"cannot listen on {where}: {_reason(error)}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "its host is malformed"  # a part of the name is empty, or longer than 63 characters
    if isinstance(error, socket.gaierror):
        return (error.strerror or str(error)).lower()
    return os.strerror(error.errno).lower() if error.errno else str(error)
