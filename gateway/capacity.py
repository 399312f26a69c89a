"""How many client connections may be open, and what happens to one more.

A routed request holds two file descriptors: its client's and its upstream's. Of L open files that the process may have,

    reserve = min(128, L / 4)       for the log, the watched files, probes, name lookups
    limit   = (L - reserve) / 2     client connections
    spare   = reserve / 2           connections above the limit, which are only refused

A spare connection gets one answer and is closed: a 503 to a routed request, the usual answer to a request about the
gateway itself. One that sends no request is closed after a while. When the spare ones are used up too, nothing is
accepted until a connection ends; new ones wait in the kernel's backlog.
"""

import asyncio
import resource
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from aiohttp import web
from msgspec import Struct

from gateway.api.context import Handler
from gateway.api.errors import RequestError

RESERVE: Final = 128
_PATIENCE: Final = 5.0
_TOLD: Final = frozenset({"/health", "/health/ready", "/metrics", "/routing"})
_CALM: Final = 0.9


class Bounds(Struct, frozen=True):
    """How many connections are served at most, and how many above that; a `limit` of None means no limit."""

    limit: int | None
    spare: int


class Connection(Protocol):
    """What a connection has to provide."""

    @property
    def idle(self) -> bool:
        """Whether none of its requests is being answered."""
        ...


def bounds(asked: int | None, files: int | None) -> Bounds:
    """Return the bounds; `asked` is the operator's limit, `files` how many files may be open; None means no limit."""
    reserve = RESERVE if files is None else min(RESERVE, files // 4)
    derived = None if files is None else max(1, (files - reserve) // 2)
    return Bounds(asked or derived, max(1, reserve // 2))


def shortfall(limit: int | None, files: int | None) -> str | None:
    """Return a warning if this many connections may need more open files than are allowed."""
    if limit is None or files is None or limit <= (bounds(None, files).limit or 0):
        return None
    return f"{limit} connections may need {2 * limit + RESERVE} open files, the limit is {files}"


def open_files() -> int | None:
    """Return how many files this process may have open, or None without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Capacity:
    """Counts connections. `tell` logs an event with its fields; `left` is called when a connection has ended.

    Mutable: `bounds`; `connections`, each with its transport; `spare`, those above the limit, each with the timer that
    ends its wait; `refused`, the requests refused since the limit was last reached; and whether that was logged.
    """

    def __init__(self, tell: Callable[[str, Mapping[str, object]], None], patience: float = _PATIENCE) -> None:
        """Start without connections and without a limit; a spare one must send a request within `patience` seconds."""
        self.bounds = Bounds(None, 0)
        self.connections: dict[object, asyncio.BaseTransport] = {}
        self.spare: dict[object, asyncio.TimerHandle] = {}
        self.refused = 0
        self.left: Callable[[], None] = lambda: None
        self._tell = tell
        self._patience = patience
        self._told = False

    def has_room(self, arriving: int) -> bool:
        """Return whether one more may be accepted, while `arriving` ones are accepted but have not entered."""
        limit, spare = self.bounds.limit, self.bounds.spare
        return limit is None or len(self.connections) + arriving < limit + spare

    def enter(self, connection: Connection, transport: asyncio.BaseTransport) -> None:
        """Add a connection; above the limit it is a spare one."""
        self.connections[connection] = transport
        limit = self.bounds.limit
        if limit is not None and self._served > limit:
            loop = asyncio.get_running_loop()
            self.spare[connection] = loop.call_later(self._patience, self._expire, connection)

    def leave(self, connection: Connection) -> None:
        """Remove a connection."""
        self.connections.pop(connection, None)
        self._no_longer_spare(connection)
        if self._told and self._served <= (self.bounds.limit or 0) * _CALM:
            self._tell("connections.free", {"limit": self.bounds.limit, "refused": self.refused})
            self._told, self.refused = False, 0
        self.left()

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a spare connection's request, unless a served one has ended by now, or it is about the gateway."""
        connection = request.protocol
        if connection in self.spare and request.path not in _TOLD:
            if self._served >= (self.bounds.limit or 0):
                self._refuse()
                message = "the gateway has reached its connection limit, try again shortly"
                raise RequestError(503, message, code="too_many_connections")
            self._no_longer_spare(connection)
        return await handler(request)

    async def close_spare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Close a spare connection after its answer (RFC 9112 9.6)."""
        if request.protocol in self.spare:
            response.force_close()
            response.headers["Connection"] = "close"

    @property
    def _served(self) -> int:
        return len(self.connections) - len(self.spare)

    def _refuse(self) -> None:
        self.refused += 1
        if not self._told:
            self._told = True
            self._tell("connections.full", {"limit": self.bounds.limit})

    def _no_longer_spare(self, connection: object) -> None:
        if (timer := self.spare.pop(connection, None)) is not None:
            timer.cancel()

    def _expire(self, connection: Connection) -> None:
        if connection.idle:
            self.connections[connection].close()
