"""`GET /events`: the page's state as server-sent events, once a second.

The state is built once for all viewers, by a task that runs as long as there are any. Each viewer has a short queue of
its own, and is cut off when that is full. There are at most `limit` viewers. When the gateway drains, their streams end
at once: a browser reconnects by itself, and then gets the full state again.

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
    """The source of the states."""

    async def tick(self) -> bytes:
        """Return what changed since the last tick, as JSON without a line break."""
        ...

    def full(self) -> bytes:
        """Return the full state as of the last tick, as JSON without a line break."""
        ...

    def rest(self) -> None:
        """Take note that nobody is watching."""
        ...


class Viewer:
    """One stream. Mutable: the events to write, whether one is being written, and whether the full state was queued."""

    def __init__(self, request: web.Request) -> None:
        """Stream the answer to this request."""
        self._request = request
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._is_writing = False
        self.is_greeted = False

    def send(self, event: bytes) -> bool:
        """Queue an event and return whether there was room; without room, cut the stream off."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._cut()
            return False
        return True

    def end(self) -> None:
        """End the stream cleanly, or cut it off if its viewer is not reading."""
        if self._is_writing or self._waiting.full():
            self._cut()
        else:
            self._waiting.put_nowait(None)

    async def run(self) -> web.StreamResponse:
        """Write queued events until the stream ends."""
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

    Mutable: the viewers, the task that serves them, the number of the last event, and whether it is closed.
    """

    def __init__(self, board: Board, *, interval: float = 1.0, limit: int = 100) -> None:
        """Send this board's state every `interval` seconds, to at most `limit` viewers."""
        self._board = board
        self._interval = interval
        self._limit = limit
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._number = 0
        self._is_closed = False

    @property
    def viewers(self) -> int:
        """How many viewers there are."""
        return len(self._viewers)

    def routes(self) -> list[web.RouteDef]:
        """Return the route to register."""
        return [web.get("/events", self.stream, allow_head=False)]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with the full state, and then with changes, until the viewer leaves.

        Raises:
            RequestError: 503 while draining, or when there are too many viewers.

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
        """End all streams, and refuse new ones."""
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
        """Send every viewer the state, once per interval."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                self._tell(await self._board.tick())
            except Exception:  # noqa: BLE001 - one state that cannot be made must not stop the rest
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
