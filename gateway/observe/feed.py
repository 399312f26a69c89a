"""How finished requests reach the observers that count them, the log among them.

A request waits here for a tenth of a second at most, until `MOST` are waiting, or until one ends in the next second:
a batch never spans two seconds. Before a count is read, the requests that wait are delivered (`settle`), so that nobody
can notice that they waited.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.execution.outcome import Outcome
from gateway.observe.batch import Batch

MOST: Final = 256
"""The most requests that wait; counting them takes about half a millisecond."""
DELAY: Final = 0.1
_log: Final = logging.getLogger(__name__)

Taker = Callable[[Batch], None]


def _later(seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, call)


class Feed:
    """The observer that hands requests on, in batches, to each of `takers` in turn.

    Mutable: `takers`; the requests that wait, when their second ends, and whether a timer is set.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        later: Callable[[float, Callable[[], None]], object] = _later,
    ) -> None:
        """`clock` returns seconds since the epoch; `later` calls a function after so many seconds."""
        self._clock = clock
        self._later = later
        self.takers: Sequence[Taker] = ()
        self._at: list[float] = []
        self._outcomes: list[Outcome] = []
        self._until = 0.0
        self._timed = False

    def put(self, outcome: Outcome) -> None:
        """Take in a finished request."""
        now = self._clock()
        if now >= self._until:
            self.settle()
            self._begin(now)
        self._at.append(now)
        self._outcomes.append(outcome)
        if len(self._at) >= MOST:
            self.settle()

    def settle(self) -> None:
        """Hand on what waits; a taker that fails does not affect the others."""
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
