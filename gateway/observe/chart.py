"""The rows of the live charts: one per second, made once and kept."""

from collections import deque
from typing import Final

from gateway.observe.live import KEPT, Live, Second, percentiles

WINDOW: Final = 10
"""Seconds that a percentile covers, its own included: one second alone holds too few requests."""

Row = tuple[int, int, int, int, int, float | None, float | None]
"""When (whole seconds since the epoch); requests, errors, fallbacks, completion tokens; TTFT p50 and p99 in ms."""


class Chart:
    """Makes the rows. Mutable: `rows`, one per second, oldest first, up to the last second that is over."""

    def __init__(self, live: Live) -> None:
        """Follow what `live` counts."""
        self._live = live
        self._steps = live.steps
        self.rows: deque[Row] = deque(maxlen=KEPT)

    def advance(self, now: float) -> list[Row]:
        """Make and return the missing rows of seconds that are over; `now` is in seconds since the epoch."""
        self._live.look(now)
        if self._steps != self._live.steps:
            self._steps = self._live.steps
            self.rows.clear()
        last = self.rows[-1][0] if self.rows else self._live.first - 1
        start, end = max(last + 1, int(now) - KEPT), int(now)
        needed = [second for second in self._live.seconds if second.at > start - WINDOW]
        known = {second.at: second for second in needed}
        new = [self._row(at, known) for at in range(start, end)]
        self.rows.extend(new)
        return new

    @staticmethod
    def _row(at: int, known: dict[int, Second]) -> Row:
        window = (known[each] for each in range(at - WINDOW + 1, at + 1) if each in known)
        p50, p99 = percentiles((second.first for second in window), 0.5, 0.99) or (None, None)
        second = known.get(at)
        if second is None:
            return (at, 0, 0, 0, 0, p50, p99)
        return (at, second.requests, second.errors, second.fallbacks, second.tokens, p50, p99)
