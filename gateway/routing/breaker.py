"""The circuit breaker of a deployment, as a state machine.

    closed     --5 failures in a row, or half of at least 10 within 30 s--> open
    open       --after its hold, a request arrives--> half open: that one request is tried
    open       --first content--> closed (it was tried because nothing else was left)
    half open  --first content--> closed; the hold is 15 s again
    half open  --failure--> open, for twice the hold, 60 s at most
    half open  --nothing learned--> open, with its hold over

It is passive: it learns only from the results of requests. Client errors, local faults and clients that left do not
count. A lasting failure (a refused key, an unknown model) opens it at once, for the time given with the failure. An
answer that breaks off after its first content no longer counts as a success. A later first content does not end a row
of such breaks; an answer that ends well does. A request's second try of a deployment follows its first within moments
and is no independent evidence: it does not count if it fails before its first content.

The machine has no clock: `now` is monotonic, in seconds, and never decreases from call to call. The last 30 seconds are
counted per second, so that a request costs the same at any rate. Successes are counted in a single field, which is
added to its second later: among a thousand deployments no breaker stays in the processor's cache, and each field that
is touched costs a cache miss.
"""

from math import inf
from typing import Final, Literal

from gateway.routing.snapshot import BreakerLimits, Deployment

State = Literal["closed", "open", "half_open"]

WINDOW: Final = 30
LEAST: Final = 10


class Breaker:
    """The breaker of one deployment.

    Mutable: the state, with its start and reason, and whether its failure is `lasting`; the hold and when it ends; the
    failures in a row, and how many of them `broken` off after first content; the counts of the last 30 seconds, and the
    successes of the newest one that are not added to them yet; and the `owner`, which `Breakers` sets.
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
        """Record a first content, or a `whole` answer that ended well; return whether this closed the breaker."""
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
        """Record that an answer ended well."""
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
        """Record a failure; return whether it opened a closed breaker.

        `lasts` opens the breaker at once, for that many seconds. `again` marks the request's second try of this
        deployment. `since` is when an answer that now broke off had its first content. `began` is when the attempt
        began: one that began before the breaker was half open is not the one that was let in.
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
        """Return whether the hold is over and no request has been let in yet."""
        return self.state == "open" and now >= self._until

    def admits(self, now: float) -> bool:
        """Return whether a request may be tried; after the hold, one may, and no other until that one is done."""
        if self.due(now):
            self._enter("half_open", self.reason, now)
            return True
        return self.state == "closed"

    def left(self, now: float, began: float = inf) -> None:
        """Record that a request learned nothing (its client left): if it was the one let in, another may be tried."""
        if self._was_let_in(began):
            self._enter("open", self.reason, now)
            self._until = now

    def remaining(self, now: float) -> float:
        """Return how many seconds of the hold are left."""
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
        """Add the newest successes to the counts of their second."""
        if self._fresh:
            self._good[self._place(self._at)] += self._fresh
            self._fresh = 0

    def _place(self, now: float) -> int:
        """Return the index of this second in the window, cleared if it still holds an older one."""
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
