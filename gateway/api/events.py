"""`GET /events`: the page's state as server-sent events, once a second.

The state is made once for all viewers, by a task that lives as long as there is one. A viewer has a short queue of its
own; whoever does not read until it is full is cut off. There are no more viewers than `limit`, and when the gateway
drains, their streams end at once: a browser asks again by itself, and is then told everything anew.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
from contextlib import suppress
from typing import Final, Protocol

from aiohttp import web

from gateway.api.errors import RequestError

_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
_log: Final = logging.getLogger(__name__)
_AHEAD: Final = 15
_RETRY: Final = b"retry: 1000\n"


class Board(Protocol):
    """Where the states come from."""

    async def tick(self) -> bytes:
        """Give what changed since the last tick, as JSON without a line break."""
        ...

    def full(self) -> bytes:
        """Give everything as of the last tick, likewise."""
        ...

    def rest(self) -> None:
        """Take note that nobody watches."""
        ...


class Viewer:
    """One stream. Mutable: what waits to be written, whether something is on its way, and whether it was greeted."""

    def __init__(self, request: web.Request) -> None:
        """Stream to this request."""
        self._request = request
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._is_writing = False
        self.is_greeted = False

    def send(self, event: bytes) -> bool:
        """Queue an event; tells whether there was room. The stream of a viewer without is cut."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._cut()
            return False
        return True

    def end(self) -> None:
        """End the stream well, or cut it if its viewer does not read."""
        if self._is_writing or self._waiting.full():
            self._cut()
        else:
            self._waiting.put_nowait(None)

    async def run(self) -> web.StreamResponse:
        """Write what comes until the end."""
        response = web.StreamResponse(headers=_HEADERS)
        with suppress(ConnectionError):
            await response.prepare(self._request)
            while (event := await self._waiting.get()) is not None:
                self._is_writing = True
                await response.write(event)
                self._is_writing = False
            await response.write_eof()
        return response

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


class Events:
    """The handler of `/events`.

    Mutable: the viewers, the task that serves them, the number of the last event, and whether it is all over.
    """

    def __init__(self, board: Board, *, interval: float = 1.0, limit: int = 100) -> None:
        """Show this board each `interval` seconds, to `limit` viewers at most."""
        self._board = board
        self._interval = interval
        self._limit = limit
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._number = 0
        self._is_closed = False

    @property
    def viewers(self) -> int:
        """How many watch."""
        return len(self._viewers)

    def routes(self) -> list[web.RouteDef]:
        """Give the route to register."""
        return [web.get("/events", self.stream, allow_head=False)]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with everything, and then with what changes, until the viewer leaves.

        Raises:
            RequestError: 503 while draining, and for one viewer too many.

        """
        if self._is_closed:
            raise RequestError(503, "the gateway is stopping", code="draining")
        if len(self._viewers) >= self._limit:
            raise RequestError(503, f"{self._limit} viewers watch already", code="too_many_viewers")
        viewer = Viewer(request)
        self._viewers.add(viewer)
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._tick(), name="events")
            elif self._number:
                self._greet(viewer)
            return await viewer.run()
        finally:
            self._leave(viewer)

    def close(self) -> None:
        """End all streams, and begin none."""
        self._is_closed = True
        for viewer in tuple(self._viewers):
            viewer.end()

    def _leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers and self._task is not None:
            self._task.cancel()
            self._task = None
            self._number = 0
            self._board.rest()

    async def _tick(self) -> None:
        """Give everyone the state, each interval."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                self._tell(await self._board.tick())
            except Exception:  # noqa: BLE001 - a state that cannot be made is no reason to make no more
                _log.exception("the page's state could not be made")
            due = max(due + self._interval, loop.time())
            await asyncio.sleep(due - loop.time())

    def _tell(self, state: bytes) -> None:
        event = self._event(state)
        for viewer in tuple(self._viewers):
            if not viewer.is_greeted:
                self._greet(viewer)
            elif not viewer.send(event):
                self._viewers.discard(viewer)

    def _greet(self, viewer: Viewer) -> None:
        viewer.is_greeted = True
        viewer.send(_RETRY + self._event(self._board.full()))

    def _event(self, state: bytes) -> bytes:
        self._number += 1
        return b"id: %d\ndata: %b\n\n" % (self._number, state)
