"""The circuit breaker of a deployment, as a state machine.

    closed     --5 failures in a row, or half of at least 10 within 30 s--> open
    open       --after its hold, a request asks--> half open: that one request may try
    open       --its first content--> closed (it was tried because nothing else was left)
    half open  --its first content--> closed; the hold is 15 s again
    half open  --it fails--> open, for twice the hold, 60 s at most
    half open  --it learned nothing--> open, its hold over

It is passive: it learns from what requests meet. What the client did wrong, what went wrong with us, and a client that
left are not told to it. A failure that will last (a refused key, an unknown model) opens it at once, for as long as is
said. An answer that breaks off after its first content was no success after all, and the next first content does not
end a row of such breaks: an answer that ends well does. A request's second try of a deployment, a moment after its
first, is no second piece of evidence: it counts neither way while it fails before its first content.

The machine knows no clock: `now` is monotonic, in seconds, and never less than it was told before. The last 30 seconds
are kept by the second, so that a request costs the same at any rate. What goes well is counted in one place, which is
put away when the next second begins: of the breakers of a thousand deployments none is in the processor's cache.
"""

from math import inf
from typing import Final, Literal

from gateway.routing.snapshot import BreakerLimits, Deployment

State = Literal["closed", "open", "half_open"]

WINDOW: Final = 30
LEAST: Final = 10


class Breaker:
    """One deployment's.

    Mutable: the state, since when and why, and whether for a failure that will last; the hold, and until when; the
    failures in a row, and how many of them were `broken` off after first content; by the second, what the last 30
    brought, and what the newest has brought of successes, as long as that is not put there; and whose it is, for
    whoever keeps it.
    """

    __slots__ = (
        "_at",
        "_bad",
        "_fresh",
        "_good",
        "_hold",
        "_row",
        "_second",
        "_until",
        "broken",
        "lasting",
        "owner",
        "reason",
        "since",
        "state",
    )

    _at: int
    _fresh: int

    def __init__(self) -> None:
        """Start closed."""
        self.state: State = "closed"
        self.reason: str | None = None
        self.since: float | None = None
        self.lasting = False
        self._until = 0.0
        self._hold = 0.0
        self._row = self.broken = 0
        self.owner: Deployment | None = None
        self._forget()

    def __repr__(self) -> str:
        return f"<{self.state}{f' {self.reason}' if self.reason else ''}>"

    def succeeded(self, now: float, *, whole: bool = False) -> bool:
        """Note a first content, or a `whole` answer, which has ended well; tells whether that closed the breaker."""
        if whole and self.broken:
            self.broken = 0
        self._row = self.broken
        if self.state == "closed":
            second = int(now)
            if second != self._at:
                self._put_away()
                self._at = second
            self._fresh += 1
            return False
        self._enter("closed", None, now)
        self.lasting = False
        self._hold = self._until = 0.0
        self._forget()
        return True

    def ended(self) -> None:
        """Note that an answer ended well."""
        self._row -= self.broken
        self.broken = 0

    def failed(
        self,
        reason: str,
        now: float,
        limits: BreakerLimits,
        *,
        lasts: float | None = None,
        again: bool = False,
        since: float | None = None,
        began: float = inf,
    ) -> bool:
        """Note a failure; tells whether that opened a closed breaker.

        `lasts` opens it at once, for so many seconds. `again` marks the request's second try of this deployment.
        `since` is when what broke off now had its first content. `began` is when it was tried: one from before is not
        the request that was let in.
        """
        was_closed = self.state == "closed"
        self._put_away()
        if was_closed and since is not None:
            self.broken += 1
            self._take_back(since)
        if was_closed and (since is not None or not again):
            self._row += 1
            self._bad[self._place(now)] += 1
        if lasts is not None:
            self.lasting = True
            self._open(reason, now, lasts)
        elif self._was_let_in(began):
            self.lasting = False
            self._hold = min(2 * self._hold, limits.longest_hold) or limits.hold
            self._open(reason, now, self._hold)
        elif was_closed and (self._row >= limits.failures or self._half_failed(now)):
            self._hold = limits.hold
            self._open(reason, now, self._hold)
        return was_closed and self.state == "open"

    def due(self, now: float) -> bool:
        """Tell whether the hold is over and nobody has been let in yet."""
        return self.state == "open" and now >= self._until

    def admits(self, now: float) -> bool:
        """Tell whether a request may try; when the hold is over, one may, and no other until that one is done."""
        if self.due(now):
            self._enter("half_open", self.reason, now)
            return True
        return self.state == "closed"

    def left(self, now: float, began: float = inf) -> None:
        """Note that a request learned nothing (its client left): if it is the one that was let in, another may try."""
        if self._was_let_in(began):
            self._enter("open", self.reason, now)
            self._until = now

    def remaining(self, now: float) -> float:
        """Say how many seconds of its hold are left."""
        return max(self._until - now, 0.0) if self.state == "open" else 0.0

    def _was_let_in(self, began: float) -> bool:
        return self.state == "half_open" and began >= (self.since or 0.0)

    def _open(self, reason: str, now: float, hold: float) -> None:
        self._until = max(self._until, now + hold)
        self._enter("open", reason, now)

    def _enter(self, state: State, reason: str | None, now: float) -> None:
        if state != self.state:
            self.since = now
        self.state, self.reason = state, reason

    def _forget(self) -> None:
        self._row = self.broken = 0
        self._second = [-1] * WINDOW
        self._good = [0] * WINDOW
        self._bad = [0] * WINDOW
        self._at, self._fresh = -1, 0

    def _put_away(self) -> None:
        """Put the newest successes to the others of their second."""
        if self._fresh:
            self._good[self._place(self._at)] += self._fresh
            self._fresh = 0

    def _place(self, now: float) -> int:
        """Give the place of this second in the window, emptied if it still holds an older one."""
        second = int(now)
        place = second % WINDOW
        if self._second[place] != second:
            self._second[place] = second
            self._good[place] = self._bad[place] = 0
        return place

    def _take_back(self, since: float) -> None:
        place = int(since) % WINDOW
        if self._second[place] == int(since) and self._good[place]:
            self._good[place] -= 1

    def _half_failed(self, now: float) -> bool:
        oldest = int(now) - WINDOW
        recent = [place for place in range(WINDOW) if self._second[place] > oldest]
        good, bad = sum(self._good[place] for place in recent), sum(self._bad[place] for place in recent)
        return good + bad >= LEAST and bad >= good
