"""The breakers of all deployments, and the slow start of those that come back.

A breaker lives on across snapshots as long as its deployment keeps its URLs, key, kind and served model. A deployment
that comes back gets a tenth of its weight in the first second, two tenths in the second, and all of it in the tenth: a
box that has just recovered does not get its full load at once.

A breaker is made when the first attempt on its deployment succeeds or fails. So putting a new configuration in force,
which happens on the event loop, costs nothing for the thousands of deployments that nobody asks for.
"""

from collections.abc import Container, Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from gateway.routing.breaker import Breaker, State
from gateway.routing.failures import TABLE, Failure
from gateway.routing.snapshot import BreakerLimits, Deployment, Identity

SLOW_START: Final = 10


class BreakerView(Struct, frozen=True):
    """A breaker as shown to operators; `since` is in seconds since the epoch, absent if it has never opened."""

    state: State = "closed"
    since: float | None = None
    reason: str | None = None


class Breakers:
    """Mutable: the breakers made so far, which are not closed, and the start and part of each slow start."""

    def __init__(
        self, limits: BreakerLimits, deployments: Mapping[Identity, Deployment] = MappingProxyType({})
    ) -> None:
        """Start without breakers; `deployments` are those of the configuration, by identity."""
        self._limits = limits
        self._deployments = deployments
        self._met: dict[Identity, Breaker] = {}
        self._out: set[Identity] = set()
        self._back: dict[Identity, tuple[float, Fraction]] = {}

    def under(
        self, limits: BreakerLimits, deployments: Mapping[Identity, Deployment], others: Container[Identity]
    ) -> "Breakers":
        """Return the breakers for a new configuration, with what these have learned; these stay unchanged.

        `others` are the deployments that are `strangers` to the new configuration. A breaker that a lasting failure
        opened (a refused key, an unknown model) is closed: the new configuration may have fixed the cause.
        """
        new = Breakers(limits, deployments)
        kept = ((each, breaker) for each, breaker in self._met.items() if each not in others)
        new._met = {each: breaker for each, breaker in kept if not breaker.lasting}
        for breaker in new._met.values():
            breaker.owner = None  # it would keep the old configuration alive
        new._out = self._out & new._met.keys()
        new._back = {each: since for each, since in self._back.items() if each not in others}
        return new

    def of(self, deployment: Deployment) -> Breaker | None:
        """Return a deployment's breaker; None if none was made yet, or the deployment is gone or has changed."""
        return self._met.get(deployment.identity) if self._knows(deployment) else None

    def _knows(self, deployment: Deployment) -> bool:
        known = self._deployments.get(deployment.identity)
        return known is not None and _is_same(known, deployment)

    def _meet(self, deployment: Deployment) -> Breaker | None:
        """Return a deployment's breaker, and make it if needed; None if the deployment is gone or has changed."""
        identity = deployment.identity
        if not self._knows(deployment):
            return None
        breaker = self._met.get(identity)
        if breaker is None:
            breaker = self._met[identity] = Breaker()
        breaker.owner = deployment
        return breaker

    def remaining(self, deployments: Iterable[Deployment], now: float) -> float | None:
        """Return the seconds until the first of these lets a request through, or None when all of them are gone."""
        found = [self._met.get(each.identity) for each in deployments if self._knows(each)]
        return min((breaker.remaining(now) if breaker else 0.0 for breaker in found), default=None)

    @property
    def out(self) -> frozenset[Identity]:
        """The deployments whose breaker is not closed."""
        return frozenset(self._out)

    @property
    def returning(self) -> Mapping[Identity, Fraction]:
        """The part of its weight that each deployment gets during its slow start."""
        return MappingProxyType({identity: part for identity, (_, part) in self._back.items()})

    @property
    def ramping(self) -> bool:
        """Whether any deployment is on its slow start."""
        return bool(self._back)

    def succeeded(self, deployment: Deployment, now: float, *, whole: bool) -> State | None:
        """Record a first content, or a `whole` answer; return the previous state if this closed the breaker."""
        breaker = self._met.get(deployment.identity)
        if breaker is None or breaker.owner is not deployment:
            breaker = self._meet(deployment)
        if breaker is None:
            return None
        old = breaker.state
        if not breaker.succeeded(now, whole=whole):
            return None
        self._out.discard(deployment.identity)
        self._back[deployment.identity] = now, _part(0)
        return old

    def ended(self, deployment: Deployment) -> None:
        """Record that an answer ended well."""
        breaker = self._met.get(deployment.identity)
        if breaker is not None and breaker.broken and self._knows(deployment):
            breaker.ended()

    def failed(
        self, deployment: Deployment, failure: Failure, now: float, *, again: bool, since: float | None, began: float
    ) -> bool:
        """Record a failure for which the deployment is to blame; return whether it opened a closed breaker."""
        breaker = self._meet(deployment)
        lasts = TABLE[failure.cause].out
        if breaker is None or not breaker.failed(
            _reason(failure), now, self._limits, lasts=lasts, again=again, since=since, began=began
        ):
            return False
        self._out.add(deployment.identity)
        self._back.pop(deployment.identity, None)
        return True

    def tick(self, now: float) -> frozenset[Identity]:
        """Advance the slow starts; return the deployments whose part changed."""
        changed = set()
        for identity, (since, part) in tuple(self._back.items()):
            new = _part(now - since)
            if new != part:
                changed.add(identity)
                self._back[identity] = since, new
            if new == 1:
                del self._back[identity]
        return frozenset(changed)


def strangers(old: Mapping[Identity, Deployment], new: Mapping[Identity, Deployment]) -> frozenset[Identity]:
    """Return the old deployments that are gone, or are now something else under the same name."""
    return frozenset(
        identity
        for identity, deployment in old.items()
        if (now := new.get(identity)) is None or not _is_same(now, deployment)
    )


def _is_same(one: Deployment, other: Deployment) -> bool:
    """Return whether what was learned about one holds for the other."""
    return one is other or (
        (one.urls, one.key, one.kind, one.served_model) == (other.urls, other.key, other.kind, other.served_model)
    )


def _reason(failure: Failure) -> str:
    name = failure.cause.value
    return f"{name} (status {failure.status})" if failure.status else name


def _part(elapsed: float) -> Fraction:
    return Fraction(min(int(elapsed) + 1, SLOW_START), SLOW_START)
