"""How finished requests come to those who count them.

A request waits here for a quarter of a second at most, within the second in which it ended, and until there are `MOST`.
Whoever reads what is counted has the others brought first (`settle`), so that nobody can tell that they waited.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.execution.outcome import Outcome
from gateway.observe.batch import Batch

MOST: Final = 256
"""Requests that wait at most; to count them takes about half a millisecond."""
DELAY: Final = 0.25
_log: Final = logging.getLogger(__name__)

Taker = Callable[[Batch], None]


def _later(seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, call)


class Feed:
    """The observer that hands requests on, in batches, to `takers`, in their order.

    Mutable: `takers`; what waits, until when it may, and whether a timer will bring it.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        later: Callable[[float, Callable[[], None]], object] = _later,
    ) -> None:
        """`clock` gives seconds since the epoch; `later` calls after so many seconds."""
        self._clock = clock
        self._later = later
        self.takers: Sequence[Taker] = ()
        self._at: list[float] = []
        self._outcomes: list[Outcome] = []
        self._until = 0.0
        self._timed = False

    def put(self, outcome: Outcome) -> None:
        """Take a finished request in."""
        now = self._clock()
        if now >= self._until:
            self.settle()
            self._begin(now)
        self._at.append(now)
        self._outcomes.append(outcome)
        if len(self._at) >= MOST:
            self.settle()

    def settle(self) -> None:
        """Hand on what waits; a taker that fails costs the others nothing."""
        if not self._at:
            return
        at, outcomes = self._at, self._outcomes
        self._at, self._outcomes, self._until = [], [], 0.0
        batch = Batch(at, outcomes)
        for take in self.takers:
            try:
                take(batch)
            except Exception:  # noqa: BLE001 - as the executor has it
                _log.exception("an observer failed")

    def _begin(self, now: float) -> None:
        self._until = int(now) + 1.0
        if not self._timed:
            self._later(DELAY, self._timer)
            self._timed = True

    def _timer(self) -> None:
        self._timed = False
        self.settle()
