"""Which requests may begin in this turn of the event loop.

A request that begins costs as much as several chunks of a stream. A thousand that arrive at once would together delay
the streams under way by a tenth of a second. So only some begin in one turn of the loop, in order of arrival, and
stream chunks that have arrived are passed on in between.
"""

import asyncio
from collections import deque
from typing import Final

MOST: Final = 32


class Turns:
    """Lets at most `MOST` requests begin in a turn.

    Mutable: the loop, once it is known; how many have begun in this turn, and those that wait, the oldest first.
    """

    __slots__ = ("_begun", "_loop", "_waiting")

    def __init__(self) -> None:
        """Start with no requests."""
        self._begun = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> asyncio.Future[None] | None:
        """Return a future to wait for, or None if the request may begin at once."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        if not self._begun:
            loop.call_soon(self._next)
        if self._begun < MOST:
            self._begun += 1
            return None
        turn = loop.create_future()
        self._waiting.append(turn)
        return turn

    def _next(self) -> None:
        """Begin a turn: those that wait come first."""
        self._begun = 0
        while self._waiting and self._begun < MOST:
            turn = self._waiting.popleft()
            if not turn.done():  # its client has left
                turn.set_result(None)
                self._begun += 1
        if self._begun and self._loop is not None:
            self._loop.call_soon(self._next)
