"""Which deployments answered lately, and why that is not what was planned.

A deployment has three shares of its model. *Planned* is what the configuration gives it with everything healthy,
*eligible* its part of the requests drawn now, *delivered* its part of the answers of the last minutes. Where they
differ, a few words say why; of several reasons, the first in this order is named:

    its endpoint is down or loading; its breaker is not closed; it has come back and is on its slow start;
    it covers for siblings, or makes room for them; it is a fallback, and this is how it came to answer anyway;
    attempts on it or on its siblings failed or were cut short, which explains at least half of the difference;
    there were so few requests that chance alone explains it; answers from before a change still count.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Final

from msgspec import Struct

from gateway.observe.live import ByDeployment, Live, Second
from gateway.routing.breakers import SLOW_START
from gateway.routing.snapshot import Identity

WINDOW: Final = 300
"""Seconds over which the delivered share is taken."""
_ALIKE: Final = 0.02
_SURE: Final = 2.0
_ENOUGH: Final = 0.5
_NAMED: Final = 2


class Recent(ByDeployment):
    """What a `Second` counts by deployment, for the last minutes, or since `Live` last started anew.

    Mutable: the counts, and the seconds that they are made of, as they were when they were added. A second is added
    when it is over; if the clock then goes back a little, what that second goes on to count is missed.
    """

    def __init__(self, live: Live) -> None:
        """Follow what `live` counts."""
        super().__init__()
        self._live = live
        self._began = live.generation, live.steps
        self._counted: deque[tuple[int, ByDeployment]] = deque()

    def advance(self, now: float) -> set[Identity]:
        """Add the seconds that are over and drop the oldest; return the deployments whose counts changed."""
        changed: set[Identity] = set()
        self._live.look(now)
        began = self._live.generation, self._live.steps
        if self._began != began:
            self._began = began
            changed = self.met
            self._counted.clear()
            self.forget()
        for second in reversed([*self._new(int(now))]):
            taken = ByDeployment()
            taken.add(second)
            self._counted.append((second.at, taken))
            self.add(taken)
            changed |= taken.met
        while self._counted and self._counted[0][0] < int(now) - WINDOW:
            _, taken = self._counted.popleft()
            self.add(taken, -1)
            changed |= taken.met
        return changed

    def _new(self, now: int) -> Iterator[Second]:
        last = self._counted[-1][0] if self._counted else 0
        for second in reversed(self._live.seconds):
            if second.at <= last or second.at < now - WINDOW:
                return
            if second.at < now:
                yield second


class Share(Struct, frozen=True):
    """A deployment's shares and what may explain them.

    `answers`, `failures` and `cut` (ended early through no fault of the deployment) are of the last minutes; of the
    answers, `stood_in` went to requests drawn for another deployment, `late` to requests drawn under an earlier
    configuration. `health` and `breaker` are states; `back` is how many seconds ago its breaker closed, if it ever did.
    """

    name: str
    planned: float
    eligible: float
    answers: int = 0
    failures: int = 0
    cut: int = 0
    stood_in: int = 0
    late: int = 0
    health: str = "unknown"
    breaker: str = "closed"
    back: float | None = None

    @property
    def is_out(self) -> bool:
        """Whether it gets no requests as long as there are others to take them."""
        return self.health in {"down", "loading"} or self.breaker != "closed"

    @property
    def is_starting(self) -> bool:
        """Whether it is on its slow start."""
        return not self.is_out and self.back is not None and self.back < SLOW_START and self.eligible < self.planned


def explain(shares: Sequence[Share]) -> Mapping[str, tuple[float | None, str | None]]:
    """Return, by deployment of one model, its delivered share and why that is not the planned one."""
    total = sum(share.answers for share in shares)
    failed, cut = sum(share.failures for share in shares), sum(share.cut for share in shares)
    held_back = [share.name for share in shares if share.is_out or share.is_starting]
    return {
        share.name: (
            share.answers / total if total else None,
            _standing(share, held_back) or _delivery(share, total, failed, cut),
        )
        for share in shares
    }


def _standing(share: Share, held_back: Sequence[str]) -> str | None:
    """Return why the eligible share is not the planned one, or None."""
    if share.health in {"down", "loading"}:
        return share.health if share.eligible == 0 else f"{share.health}, tried anyway"
    if share.breaker != "closed":
        return f"breaker {share.breaker.replace('_', ' ')}"
    if share.is_starting:
        return "slow start"
    if share.eligible > share.planned:
        named = ", ".join(held_back[:_NAMED]) + (" ..." if len(held_back) > _NAMED else "")
        return f"covers for {named}" if named else "reweighted"
    if share.eligible < share.planned:
        return "reweighted"
    return None


def _delivery(share: Share, total: int, failed: int, cut: int) -> str | None:
    """Return why the delivered share is not the eligible one, or None.

    Of all attempts on the model's deployments, `total` answered, `failed` failed and `cut` were cut short.
    """
    expected = share.eligible
    if not expected:
        return _standing_in(share)
    if not total:
        return _ended_early(share)
    off = share.answers / total - expected
    if abs(off) <= _ALIKE:
        return None
    chance = _SURE * sqrt(max(expected * (1 - expected), 1 / total) / total)
    failed, cut = failed - share.failures, cut - share.cut
    if off < 0 and share.failures + share.cut >= -off * total * _ENOUGH:
        return _ended_early(share)
    if off > 0 and failed + cut >= off * total * _ENOUGH:
        return "took over what failed" if failed >= cut else "others were cut short"
    return "few requests so far" if abs(off) <= chance else "catching up"


def _ended_early(share: Share) -> str | None:
    """Return how attempts on it ended that did not answer, or None if there were none."""
    if not share.failures and not share.cut:
        return None
    return f"{share.failures} failed" if share.failures >= share.cut else f"{share.cut} cut short"


def _standing_in(share: Share) -> str:
    """Return how a deployment that is never drawn came to answer."""
    if not share.answers:
        return "fallback"
    if share.stood_in:
        return "stood in as fallback"
    return "drawn before the save" if share.late == share.answers else "covered for others"
