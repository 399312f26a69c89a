"""Clocks that may be reset at every chunk, at next to no cost.

One timer of the event loop per clock would cost more than all else that a small request needs from the loop. So all
clocks of a loop share one timer, set for the nearest time that any of them was set to. If it fires too early, because a
clock was reset or has stopped meanwhile, it is set again for the nearest time that is left.
"""

import asyncio
from math import inf
from types import TracebackType
from typing import Self


class ExpiredError(TimeoutError):
    """A deadline has passed."""


class Watch:
    """The deadlines that run in a `loop`. Mutable: those, and the timer, with the time at which it is `due`."""

    __slots__ = ("_timer", "due", "loop", "running")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start without deadlines."""
        self.running: set[Deadline] = set()
        self.loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.due = inf

    def set(self, when: float) -> None:
        """Have the deadlines checked at `when`, in the loop's time."""
        if when < self.due:
            if self._timer is not None:
                self._timer.cancel()
            self.due = when
            self._timer = self.loop.call_at(when, self._look)

    def deadline(self) -> "Deadline":
        """Return a deadline for the task that runs in the loop, without a time yet."""
        task = asyncio.current_task(self.loop)  # finding the running loop takes a system call in Python 3.11
        assert task is not None  # noqa: S101 - a task asks
        return Deadline(self, task)

    def _look(self) -> None:
        self._timer, self.due = None, inf
        now = self.loop.time()
        nearest = min((deadline.look(now) for deadline in tuple(self.running)), default=inf)
        if nearest < inf:
            self.set(nearest)


class Deadline:
    """Like `asyncio.timeout`, but reusable: its block is cancelled at the deadline, and ends with ExpiredError.

    Mutable: `when` (the deadline, infinite while there is none), which may be assigned to put it off; how many
    cancellations of the task were pending when the block was entered; and `expired`. Times are the loop's.
    """

    __slots__ = ("_cancelling", "_task", "_watch", "expired", "when")

    _cancelling: int

    def __init__(self, watch: Watch, task: asyncio.Task[object]) -> None:
        """Start without a time, in the task whose blocks it limits."""
        self._watch = watch
        self._task = task
        self.when = inf
        self.expired = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop whose time it uses."""
        return self._watch.loop

    def at(self, when: float) -> None:
        """Set the deadline; it takes effect inside the block only."""
        self.when = when
        if when < self._watch.due:
            self._watch.set(when)

    def after(self, seconds: float) -> None:
        """Set the deadline so many seconds from now; 0: none."""
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
        """End the block, and with it the deadline.

        Raises:
            ExpiredError: the deadline had passed.

        """
        self._watch.running.discard(self)
        self.when = inf
        if self.expired:
            self.expired = False
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise ExpiredError from error

    def look(self, now: float) -> float:
        """Cancel the block if the deadline has passed; return when to check again, infinite if there is no need to."""
        if now < self.when or self.expired:
            return inf if self.expired else self.when
        self.expired = True
        self._task.cancel()
        return inf
