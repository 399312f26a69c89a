"""A clock that may be set anew at every chunk, and costs next to nothing then.

`asyncio.timeout` cancels its timer and makes another each time. A timer is cheap to leave alone: when it goes off too
early, it is set again for the time that is left. So only a deadline that comes nearer makes a new one.
"""

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """As `asyncio.timeout`: its block is cancelled at the deadline, and ends with TimeoutError then.

    Mutable: the deadline, None while there is none; the timer, and when it is due; and `expired`. Times are the loop's.
    """

    __slots__ = ("_cancelling", "_due", "_loop", "_task", "_timer", "_when", "expired")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start without a deadline."""
        self._loop = loop
        self._when: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._due = 0.0
        self._cancelling = 0
        self.expired = False

    def at(self, when: float | None) -> None:
        """Set the deadline; it counts inside the block only."""
        self._when = when
        if when is None or self._task is None or self.expired:
            return
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        self._set(when)

    def __enter__(self) -> Self:
        """Begin the block, in a task."""
        self._task = task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is called in one
        self._cancelling = task.cancelling()
        self.at(self._when)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the block.

        Raises:
            TimeoutError: the deadline had come.

        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._task = self._task, None
        assert task is not None  # noqa: S101 - it was entered
        if self.expired and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _set(self, when: float) -> None:
        self._due = when
        self._timer = self._loop.call_at(when, self._goes_off)

    def _goes_off(self) -> None:
        self._timer = None
        if self._when is None or self._task is None:
            return
        if self._loop.time() < self._when:
            self._set(self._when)
        else:
            self.expired = True
            self._task.cancel()
