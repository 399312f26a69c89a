"""How late the event loop is, by the delay of a timer that is set again and again.

Whatever blocks the loop, a long computation, a garbage collection or a starved machine, delays every stream as much.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.observe.metrics.families import LAG
from gateway.observe.metrics.series import Histogram

INTERVAL: Final = 0.1


class LoopLag:
    """Samples the running loop ten times a second between `start` and `stop`. Mutable: `seen`, and the timer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds; the loop's own clock stands still while the loop is blocked."""
        self._clock = clock
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.seen = Histogram(LAG)

    def start(self) -> None:
        """Set the timer."""
        self._due = self._clock() + INTERVAL
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._sample)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _sample(self) -> None:
        self.seen.observe(max(self._clock() - self._due, 0.0))
        self.start()
