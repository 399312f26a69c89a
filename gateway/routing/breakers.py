"""The breakers of all deployments, and the slow start of those that come back.

A breaker lives on across snapshots as long as its deployment is the same thing behind the same door: endpoint, address,
key and the model's name there. Whoever comes back gets a tenth of its weight in the first second, two tenths in the
second, and all of it in the tenth: a box that has just recovered is not met by everything at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from gateway.routing.breaker import Breaker, State
from gateway.routing.failures import TABLE, Failure
from gateway.routing.snapshot import BreakerLimits, Deployment, Identity

SLOW_START: Final = 10


@dataclass(frozen=True, slots=True)
class BreakerView:
    """A breaker as it is shown; `since` is in seconds since the epoch, absent as long as it has never opened."""

    state: State = "closed"
    since: float | None = None
    reason: str | None = None


class Breakers:
    """Mutable: the breakers, with the deployments they are about; who came back when, and its part of its weight."""

    def __init__(
        self, limits: BreakerLimits, deployments: Iterable[Deployment] = (), before: "Breakers | None" = None
    ) -> None:
        """Know these deployments, and of each what was known `before`, which stays as it is.

        What opened a breaker for long (a refused key, an unknown model) may be mended by a new configuration: such a
        breaker is closed.
        """
        self._limits = limits
        self._known: dict[Identity, tuple[Deployment, Breaker]] = {}
        self._back: dict[Identity, tuple[float, Fraction]] = {}
        for deployment in deployments:
            old = before.of(deployment) if before else None
            self._known[deployment.identity] = deployment, Breaker() if old is None or old.lasting else old
            since = before.back_since(deployment) if before else None
            if since is not None:
                self._back[deployment.identity] = since

    def of(self, deployment: Deployment) -> Breaker | None:
        """Give a deployment's breaker; there is none for one that is gone, or was another thing by the same name."""
        known = self._known.get(deployment.identity)
        return known[1] if known is not None and _is_same(known[0], deployment) else None

    def back_since(self, deployment: Deployment) -> tuple[float, Fraction] | None:
        """Say since when a deployment is on its slow start, if it is, and what part of its weight it has."""
        return self._back.get(deployment.identity) if self.of(deployment) else None

    @property
    def out(self) -> frozenset[Identity]:
        """The deployments whose breaker is not closed."""
        return frozenset(identity for identity, (_, breaker) in self._known.items() if breaker.state != "closed")

    @property
    def returning(self) -> Mapping[Identity, Fraction]:
        """What part of its weight each gets that is on its slow start."""
        return MappingProxyType({identity: part for identity, (_, part) in self._back.items()})

    @property
    def ramping(self) -> bool:
        """Whether any is on its slow start."""
        return bool(self._back)

    def succeeded(self, deployment: Deployment, now: float) -> State | None:
        """Note a first content; gives the state before, when that closed the breaker."""
        breaker = self.of(deployment)
        if breaker is None:
            return None
        old = breaker.state
        if not breaker.succeeded(now):
            return None
        self._back[deployment.identity] = now, _part(0)
        return old

    def ended(self, deployment: Deployment) -> None:
        """Note that an answer ended well."""
        breaker = self.of(deployment)
        if breaker is not None:
            breaker.ended()

    def failed(
        self, deployment: Deployment, failure: Failure, now: float, *, again: bool, since: float | None, began: float
    ) -> bool:
        """Note a failure that is to be blamed on the deployment; tells whether that opened a closed breaker."""
        breaker = self.of(deployment)
        lasts = TABLE[failure.cause].out
        if breaker is None or not breaker.failed(
            _reason(failure), now, self._limits, lasts=lasts, again=again, since=since, began=began
        ):
            return False
        self._back.pop(deployment.identity, None)
        return True

    def tick(self, now: float) -> frozenset[Identity]:
        """Let those on their slow start have more; gives whose part changed."""
        changed = set()
        for identity, (since, part) in tuple(self._back.items()):
            new = _part(now - since)
            if new != part:
                changed.add(identity)
                self._back[identity] = since, new
            if new == 1:
                del self._back[identity]
        return frozenset(changed)


def _is_same(one: Deployment, other: Deployment) -> bool:
    """Tell whether what was learned of the one holds for the other."""
    return one is other or (
        (one.urls, one.key, one.kind, one.served_model) == (other.urls, other.key, other.kind, other.served_model)
    )


def _reason(failure: Failure) -> str:
    name = failure.cause.value
    return f"{name} (status {failure.status})" if failure.status else name


def _part(elapsed: float) -> Fraction:
    return Fraction(min(int(elapsed) + 1, SLOW_START), SLOW_START)
