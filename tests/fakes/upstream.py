"""A byte-scripted upstream: says exactly the bytes a test gives it, and records exactly the bytes it got.

    async with ScriptedUpstream([Send(json_answer({"ok": True}))]) as upstream:
        ...  # talk to upstream.url
        assert upstream.requests[0].target == "/v1/chat/completions"

A script is the list of steps that answers every request, or a function of the request's index (from 0, over all
connections) and the request. After its steps the next request of the connection is read, unless they ended it.
"""

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.fakes.answers import chunk, json_answer, last_chunk, sse, sse_answer, sse_head, status
from tests.fakes.connection import PATIENCE, Connection, Cut, Headers, arrived, first_of, split_head, values

__all__ = [
    "Close",
    "Hang",
    "Pause",
    "Request",
    "Reset",
    "Script",
    "ScriptedUpstream",
    "Send",
    "Step",
    "Vanish",
    "chunk",
    "fd_count",
    "json_answer",
    "last_chunk",
    "refused_url",
    "sse",
    "sse_answer",
    "sse_head",
    "status",
]  # the builders are offered from here too


class Step:
    """One thing that the upstream does with a connection."""

    __slots__ = ()

    async def run(self, connection: Connection) -> None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Send(Step):
    """Write these bytes, and wait until the kernel has them."""

    data: bytes

    async def run(self, connection: Connection) -> None:
        await connection.write(self.data)


@dataclass(frozen=True, slots=True)
class Pause(Step):
    """Wait for an event of the test, or until the peer is gone."""

    until: asyncio.Event

    async def run(self, connection: Connection) -> None:
        await first_of(asyncio.create_task(self.until.wait()), asyncio.create_task(connection.wait_ended()))


@dataclass(frozen=True, slots=True)
class Reset(Step):
    """End the connection with an RST. It takes with it what does not fit the peer's receive buffer (some 100 kB)."""

    async def run(self, connection: Connection) -> None:
        await connection.reset()


@dataclass(frozen=True, slots=True)
class Vanish(Step):
    """Be heard no more: nothing that comes is acknowledged, and nothing is said."""

    async def run(self, connection: Connection) -> None:
        connection.vanish()
        await connection.wait_ended()


@dataclass(frozen=True, slots=True)
class Close(Step):
    """End the connection with a FIN."""

    async def run(self, connection: Connection) -> None:
        await connection.close()


@dataclass(frozen=True, slots=True)
class Hang(Step):
    """Say nothing more, until the peer is gone or the upstream is torn down."""

    async def run(self, connection: Connection) -> None:
        await connection.wait_ended()


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived: `head` is its bytes up to and with the empty line, `body` is decoded from chunks."""

    head: bytes
    method: str
    target: str
    headers: Headers
    body: bytes
    connection: int

    def values(self, name: str) -> list[str]:
        return values(self.headers, name)

    def json(self) -> Any:
        return json.loads(self.body)


Script = Sequence[Step] | Callable[[int, Request], Sequence[Step]]


class ScriptedUpstream:
    """Serves each request from a script of steps; records what arrived.

    `requests` are the whole requests in order of arrival. `connections` were accepted so far, `open` are open now;
    where they are numbered, it is from 1.
    `on_accept` are steps taken before a connection's first request is read. `port` lets a box come back where it was.
    An exception of the script is raised at the end of the `async with`.
    """

    def __init__(self, script: Script = (), *, on_accept: Sequence[Step] = (), port: int = 0) -> None:
        self.requests: list[Request] = []
        self._script = script
        self._on_accept = on_accept
        self._port = port
        self._connections: list[Connection] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(made=self._accept, changed=self._news.set), "127.0.0.1", self._port
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await arrived()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.abort()
        await self._server.wait_closed()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def __repr__(self) -> str:
        connections = " ".join(f"{c.ended or ''}{'/closed' if c.lost else '/open'}" for c in self._connections)
        targets = " ".join(f"{request.method} {request.target}" for request in self.requests)
        return f"<ScriptedUpstream {self.url} connections=[{connections}] requests=[{targets}]>"

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """Its origin, http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def open(self) -> int:
        return sum(not connection.lost for connection in self._connections)

    @property
    def leftover(self) -> list[bytes]:
        """The bytes that made no whole request (yet), of each connection that has some."""
        return [connection.unsettled for connection in self._connections if connection.unsettled]

    def received(self, n: int = 1) -> bytes:
        """Every byte of the n-th connection (from 1)."""
        return bytes(self._connections[n - 1].received)

    async def closed_by_peer(self, n: int = 1) -> None:
        """Wait until the n-th connection (from 1) was closed or reset by the peer."""
        assert n > 0, "connections count from 1"
        await self.until(lambda: len(self._connections) >= n and self._connections[n - 1].ended is not None)

    async def arrived(self, n: int = 1) -> None:
        """Wait until n requests have arrived whole."""
        await self.until(lambda: len(self.requests) >= n)

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        await self.until(lambda: self.open == 0)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` does; it is asked again at every byte, request and end of a connection."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise AssertionError(f"waited in vain: {self!r}") from error

    def _accept(self, connection: Connection) -> None:
        if self._server is not None and not self._server.is_serving():
            connection.transport.abort()
            return
        self._connections.append(connection)
        self._tasks.append(asyncio.create_task(self._serve(connection, len(self._connections))))
        self._news.set()

    async def _serve(self, connection: Connection, number: int) -> None:
        try:
            await _run(connection, self._on_accept)
            while True:
                request = await _read_request(connection, number)
                connection.settle()
                self.requests.append(request)
                self._news.set()
                await _run(connection, self._steps(request))
        except (Cut, ConnectionError):
            pass  # the peer left, or a step ended the connection
        finally:
            await connection.abort()

    def _steps(self, request: Request) -> Sequence[Step]:
        return self._script(len(self.requests) - 1, request) if callable(self._script) else self._script


async def _read_request(connection: Connection, number: int) -> Request:
    head = await connection.read_until(b"\r\n\r\n")
    start, headers = split_head(head)
    method, target, _ = start.split(" ")
    if values(headers, "transfer-encoding"):
        body = await connection.read_chunked()
    else:
        body = await connection.read_exactly(int((values(headers, "content-length") or ["0"])[0]))
    return Request(head, method, target, headers, body, number)


async def _run(connection: Connection, steps: Sequence[Step]) -> None:
    for step in steps:
        await step.run(connection)


def refused_url() -> str:
    """A URL on which nothing listens, nor anybody else may: the next one of a few whose ports this process holds."""
    return f"http://127.0.0.1:{next(_refused)}"


def _held_port() -> int:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    port = int(held.getsockname()[1])
    held.detach()  # for good
    return port


_refused = itertools.cycle([_held_port() for _ in range(8)])


def fd_count() -> int:
    """How many file descriptors this process has open (Linux)."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # less the one that lists
