"""Who may begin in this turn of the event loop.

A request that begins costs as much as several chunks of a stream. Of a thousand that come at once each would hold up
the streams under way by a tenth of a second together. So only some begin in a turn of the loop, in the order they came,
and in between what has come of the streams passes.
"""

import asyncio
from collections import deque
from typing import Final

MOST: Final = 32


class Turns:
    """Lets so many begin in a turn.

    Mutable: the loop, once it is known; how many have begun in this turn, and who waits, the longest first.
    """

    __slots__ = ("_begun", "_loop", "_waiting")

    def __init__(self) -> None:
        """Start with nobody."""
        self._begun = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> asyncio.Future[None] | None:
        """Give what is to be waited for, or None: begin at once."""
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
        """Begin a turn: those that wait are first."""
        self._begun = 0
        while self._waiting and self._begun < MOST:
            turn = self._waiting.popleft()
            if not turn.done():  # who waited has left
                turn.set_result(None)
                self._begun += 1
        if self._begun and self._loop is not None:
            self._loop.call_soon(self._next)
