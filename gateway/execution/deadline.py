"""Clocks that may be set anew at every chunk, and cost next to nothing then.

A timer of the loop's for each clock costs more than all else that a small request needs of it. So all clocks of a loop
share one, set for the nearest time that any of them was set to. When it goes off too early, for a clock that was set
anew or has stopped meanwhile, it is set again for the nearest that is left.
"""

import asyncio
from math import inf
from types import TracebackType
from typing import Self


class ExpiredError(TimeoutError):
    """A deadline has come."""


class Watch:
    """The deadlines that run in a `loop`. Mutable: those, and the timer, with the time that it is `due`."""

    __slots__ = ("_timer", "due", "loop", "running")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start without any."""
        self.running: set[Deadline] = set()
        self.loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.due = inf

    def set(self, when: float) -> None:
        """See to it that the deadlines are looked at then; in the loop's time."""
        if when < self.due:
            if self._timer is not None:
                self._timer.cancel()
            self.due = when
            self._timer = self.loop.call_at(when, self._look)

    def deadline(self) -> "Deadline":
        """Give the task that runs in the loop a deadline, without a time yet."""
        task = asyncio.current_task(self.loop)  # to find the loop that runs takes Python 3.11 a system call
        assert task is not None  # noqa: S101 - a task asks
        return Deadline(self, task)

    def _look(self) -> None:
        self._timer, self.due = None, inf
        now = self.loop.time()
        nearest = min((deadline.look(now) for deadline in tuple(self.running)), default=inf)
        if nearest < inf:
            self.set(nearest)


class Deadline:
    """As `asyncio.timeout`, and to be used again: its block is cancelled at the deadline, and ends with ExpiredError.

    Mutable: `when` it is, infinite while there is none, which may be put off by setting it; how often the task was
    being cancelled when the block was entered; and `expired`. Times are the loop's.
    """

    __slots__ = ("_cancelling", "_task", "_watch", "expired", "when")

    _cancelling: int

    def __init__(self, watch: Watch, task: asyncio.Task[object]) -> None:
        """Start without a deadline, in the task whose blocks it is for."""
        self._watch = watch
        self._task = task
        self.when = inf
        self.expired = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop in whose time it is."""
        return self._watch.loop

    def at(self, when: float) -> None:
        """Set the deadline; it counts inside the block only."""
        self.when = when
        if when < self._watch.due:
            self._watch.set(when)

    def after(self, seconds: float) -> None:
        """Set the deadline so many seconds from now; 0: there is none."""
        if not seconds:
            self.when = inf
            return
        watch = self._watch
        when = self.when = watch.loop.time() + seconds
        if when < watch.due:
            watch.set(when)

    def __enter__(self) -> Self:
        """Begin the block."""
        self._cancelling = self._task.cancelling()
        self._watch.running.add(self)
        if self.when < inf:
            self._watch.set(self.when)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the block; there is no deadline then.

        Raises:
            ExpiredError: the deadline had come.

        """
        self._watch.running.discard(self)
        self.when = inf
        if self.expired:
            self.expired = False
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise ExpiredError from error

    def look(self, now: float) -> float:
        """Cancel the block if the deadline has come; give when to look again, infinite if there is nothing to see."""
        if now < self.when or self.expired:
            return inf if self.expired else self.when
        self.expired = True
        self._task.cancel()
        return inf
