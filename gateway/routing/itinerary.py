"""Where a request goes next: tiers, one more try before a tier is left, and the bounds.

The first tier is the weighted deployments in the order drawn, the second those of weight 0. The deployments of the
model's fallbacks follow, model by model, each in the same two tiers. Every deployment of a tier is tried before the
next tier is entered. Before a tier is left, the first of its deployments whose failure may have passed gets one more
try: after the upstream's Retry-After if that is short, after a jittered back-off otherwise.

A deployment that is out is skipped; when its breaker's hold is over, one request is let through to it. The skipped
deployments form the last tier: they are tried anyway, once each, because trying something beats answering
with nothing.

Once a prompt was too long for a deployment, only deployments with a context known to be larger are tried.

A request has a limited number of attempts. Second tries are also limited to a share of all requests of a model, so that
retries do not multiply the load of an outage.

The walk is a generator: it yields steps and is sent the failure of each. It performs nothing: the caller waits and
tries.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Final

import msgspec

from gateway.routing.failures import TABLE, Failure, Verdict
from gateway.routing.selector import rest
from gateway.routing.snapshot import Bounds, Deployment, Route, Snapshot

BACKOFF: Final = 0.25
_UNKNOWN_LENGTH: Final = 1 << 62

Walk = Generator["Step", Failure, None]
Draw = Callable[[Route], Iterator[Deployment]]
"""Yields a route's deployments in the order to try them, as `Selector.order` does."""


class Tier(msgspec.Struct, frozen=True):
    """Deployments to try once each, in this order; `anyway` includes those that are out. To be iterated once."""

    deployments: Iterable[Deployment]
    anyway: bool = False


class Step(msgspec.Struct, frozen=True, gc=False):
    """Try `deployment` once `delay` seconds have passed.

    `again`: this request has tried it before. `anyway`: it is out, and is tried because nothing else is left; a request
    begins with such a step when everything is out.
    """

    deployment: Deployment
    delay: float = 0.0
    again: bool = False
    anyway: bool = False


class _Second(msgspec.Struct, gc=False):
    """The requests and second tries counted in one second, which `ends` at this time of the monotonic clock."""

    ends: float
    requests: int = 0
    tries: int = 0


class RetryBudget:
    """How many second tries a model's requests may make: a share of the requests, and a few in any case.

    Mutable: the counts of the last ten seconds, per second, the newest last.
    """

    WINDOW: Final = 10
    FLOOR: Final = 10

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._seconds: deque[_Second] = deque([_Second(0.0)], maxlen=self.WINDOW)

    def requested(self, now: float) -> None:
        """Count a request; `now` is monotonic, in seconds."""
        second = self._seconds[-1]
        if now >= second.ends:
            second = self._next(now)
        second.requests += 1

    def allows(self, ratio: float, now: float) -> bool:
        """Return whether one more second try is allowed, and count it; a ratio of 0.2 allows one per five requests."""
        second = self._seconds[-1]
        if now >= second.ends:
            second = self._next(now)
        recent = [each for each in self._seconds if each.ends > second.ends - self.WINDOW]
        requests, tries = sum(each.requests for each in recent), sum(each.tries for each in recent)
        if not ratio or tries >= max(self.FLOOR, ratio * requests):
            return False
        second.tries += 1
        return True

    def _next(self, now: float) -> "_Second":
        """Start counting the second that contains `now`."""
        second = _Second(now // 1 + 1)
        self._seconds.append(second)
        return second


def tiers_of(snapshot: Snapshot, route: Route, draw: Draw, first: Deployment | None = None) -> Iterator[Tier]:
    """Yield a route's tiers and those of its fallbacks, each made when it is asked for.

    `first` goes before everything else: a deployment that is due to show that it is back. Each deployment is in its own
    tier and again in the last one; the walk tries it once.
    """
    met: list[Deployment] = []
    ahead = [] if first is None else [first]
    routes = [route, *(snapshot.routes[model] for model in route.fallbacks)]
    for each in routes:
        order = _noted(draw(each), met)
        yield Tier(chain(ahead, islice(order, len(each.cumulative))))
        yield Tier(order)
        ahead = []
    yield Tier(met, anyway=True)


def _noted(deployments: Iterable[Deployment], met: list[Deployment]) -> Iterator[Deployment]:
    for deployment in deployments:
        met.append(deployment)
        yield deployment


def walk(
    tiers: Iterable[Tier],
    bounds: Bounds,
    may_retry: Callable[[], bool],
    dice: Callable[[], float],
    admits: Callable[[Deployment], bool],
) -> Walk:
    """Walk the tiers.

    `may_retry` asks the budget, `dice` returns a float in [0, 1). `admits` returns whether a deployment takes requests;
    it is called right before a step, and a deployment that it lets through is always tried.
    """
    progress = _Progress(bounds.attempts)
    for tier in tiers:
        again: tuple[Deployment, Failure] | None = None
        for deployment in tier.deployments:
            if not progress.wants(deployment) or not (tier.anyway or admits(deployment)):
                continue
            failure = yield Step(deployment, anyway=tier.anyway)
            if progress.ends_with(deployment, failure):
                return
            if again is None and TABLE[failure.cause].passes and not tier.anyway:
                again = deployment, failure
        if again is not None and progress.fits(again[0]) and may_retry() and admits(again[0]):
            failure = yield Step(again[0], _delay(again[1], bounds, dice), again=True)
            if progress.ends_with(again[0], failure):
                return


class Itinerary:
    """The walk of a request whose `first` deployment is already chosen, and `admitted` or not.

    Nearly every request ends with its first step. So that step is found separately (`Selector.first`), and an itinerary
    is made only when it failed or was not possible. `due`: the first deployment was not drawn, but goes first to show
    that it is back. Mutable: the walk, and the known answer about the first deployment, which is used once. The walk
    holds nothing that leads back here: a request that ends in mid-walk needs no garbage collector.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        route: Route,
        first: Deployment | None,
        *,
        admitted: bool,
        due: bool,
        draw: Draw,
        may_retry: Callable[[], bool],
        dice: Callable[[], float],
        admits: Callable[[Deployment], bool],
    ) -> None:
        """Prepare the walk; `draw` yields a route's deployments in order; this route's first is drawn already."""
        known: bool | None = admitted if first is not None else None

        def admitted_once(deployment: Deployment) -> bool:
            nonlocal known
            told, known = known, None
            return admits(deployment) if told is None else told

        def drawn(each: Route) -> Iterator[Deployment]:
            return draw(each) if due or first is None or each is not route else chain((first,), rest(each, first))

        tiers = tiers_of(snapshot, route, drawn, first if due else None)
        self._steps = walk(tiers, snapshot.settings.bounds, may_retry, dice, admitted_once)

    def begin(self) -> Step | None:
        """Return the first step, if there is one."""
        return next(self._steps, None)

    def after(self, failure: Failure) -> Step | None:
        """Return the step that follows a failure, if there is one."""
        try:
            return self._steps.send(failure)
        except StopIteration:
            return None


class _Progress:
    """How far a request has come. Mutable: the attempts left, the deployments tried, the context that is too short."""

    def __init__(self, attempts: int) -> None:
        self._left = attempts
        self._tried: set[Deployment] = set()
        self._too_short = 0

    def wants(self, deployment: Deployment) -> bool:
        """Return whether a deployment is worth a first try."""
        return deployment not in self._tried and self.fits(deployment)

    def fits(self, deployment: Deployment) -> bool:
        """Return whether the prompt may fit: once it was too long, the context must be known to be larger."""
        return not self._too_short or (deployment.context_length or 0) > self._too_short

    def ends_with(self, deployment: Deployment, failure: Failure) -> bool:
        """Record a failed attempt; return whether it was the last one."""
        self._tried.add(deployment)
        self._left -= 1
        verdict = TABLE[failure.cause].verdict
        if verdict is Verdict.LARGER:
            self._too_short = max(self._too_short, deployment.context_length or _UNKNOWN_LENGTH)
        return verdict is Verdict.CLIENT or not self._left


def _delay(failure: Failure, bounds: Bounds, dice: Callable[[], float]) -> float:
    """Return the Retry-After if it is short, else the back-off times a random factor from 0.5 to 1.5."""
    asked = failure.retry_after
    if asked is not None and asked <= bounds.retry_after_max:
        return asked
    return BACKOFF * (0.5 + dice())
