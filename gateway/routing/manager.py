"""The head of the decision layer: it turns a plan, the known health and the results of requests into snapshots.

`RoutingManager` holds the one current snapshot. It builds a new one when a plan is adopted (generation + 1), and when
an endpoint's health, a deployment's breaker or its part during a slow start changes (revision + 1); each swap is one
assignment. A change re-weighs only the routes it touches, and no request computes any of it.

Health and breakers are independent, and neither changes the other: a box may answer probes and fail requests.
"""

from collections.abc import Callable, Iterable, Mapping
from math import ceil, inf
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from gateway.routing.breaker import State
from gateway.routing.breakers import Breakers, BreakerView
from gateway.routing.diff import Diff
from gateway.routing.failures import TABLE, Cause, Failure
from gateway.routing.health import LOADING_INTERVAL, UNKNOWN, Health, ProbeResult, observe
from gateway.routing.itinerary import RetryBudget
from gateway.routing.outline import Outline
from gateway.routing.plan import Plan
from gateway.routing.snapshot import Catalogue, Deployment, Identity, Route, Settings, Snapshot
from gateway.routing.strategies import Problem, StrategyError
from gateway.routing.succession import Succession
from gateway.routing.weighing import Standing, Weighing


class HealthChange(Struct, frozen=True):
    """An endpoint changed its state; `problem` is set when the strategy failed to assign new weights."""

    endpoint: str
    old: Health
    new: Health
    problem: str | None = None


class BreakerChange(Struct, frozen=True):
    """A breaker opened or closed.

    `lasting` means that it opened for a failure that lasts until somebody acts: a refused key, an unknown model.
    `problem` is set when the strategy failed to assign new weights.
    """

    deployment: Deployment
    old: State
    new: State
    reason: str | None = None
    lasting: bool = False
    problem: str | None = None


Change = HealthChange | BreakerChange


class RoutingManager:
    """Holds the current snapshot, and what it is made of.

    Mutable: the snapshot and the plan behind it, with the `problems` that the strategy had when the plan was put in
    force; health by endpoint, and until when an endpoint that is loading is left alone if there are no probes; the
    breakers; and each model's retry budget.
    """

    def __init__(self, epoch: Callable[[], float] = lambda: 0.0) -> None:
        """Start without a configuration; `epoch()` plus a monotonic time is a time in seconds since the epoch."""
        self.snapshot: Snapshot | None = None
        self.problems: tuple[Problem, ...] = ()
        self._epoch = epoch
        self._plan: Plan | None = None
        self._health: dict[str, Health] = {}
        self._left_alone: dict[str, float] = {}
        self._breakers = Breakers(Settings().breaker)
        self._budgets: dict[str, RetryBudget] = {}

    @property
    def generation(self) -> int:
        """The generation in force, 0 before there is one."""
        return self.snapshot.generation if self.snapshot else 0

    @property
    def outline(self) -> Outline | None:
        """What the plan in force says, without its keys."""
        return self._plan.outline if self._plan else None

    def health(self, endpoint: str) -> Health:
        """Return what is known about an endpoint's health."""
        return self._health.get(endpoint, UNKNOWN)

    def breaker(self, deployment: Deployment) -> BreakerView:
        """Return the state of a deployment's breaker."""
        found = self._breakers.of(deployment)
        if found is None or found.since is None:
            return BreakerView()
        return BreakerView(found.state, found.since + self._epoch(), found.reason)

    def succession(self, new: Plan) -> Succession:
        """Work out what a plan changes in the one in force; may be called in any thread, before `adopt`."""
        return Succession.of(self._plan, new)

    def adopt(self, new: Plan | Succession) -> Diff | None:
        """Put a plan in force; return what changes, or None when it means the same as the last one.

        If the succession was worked out before, the cost grows with what is down, out or coming back, and not with the
        size of the plan. A model for which the strategy fails in the present state keeps its weights for everything
        healthy, and `problems` says so.
        """
        ready = self.succession(new) if isinstance(new, Plan) else new
        if ready.old is not self._plan:
            ready = self.succession(ready.new)
        if ready.changes is None and self.snapshot is not None:
            self.snapshot = replace(self.snapshot, digest=ready.new.digest)
        else:
            self._put_in_force(ready.new, ready.others)
        return ready.changes

    def _put_in_force(self, new: Plan, others: frozenset[Identity]) -> None:
        old, health = self.snapshot, self._kept(new)
        breakers = self._breakers.under(new.settings.breaker, new.catalogue.deployments, others)
        standing = _standing(health, breakers)
        routes, self.problems = _weighed(new.weighing(standing), standing.touched(new.catalogue))
        snapshot = Snapshot(
            generation=old.generation + 1 if old else 1,
            revision=0,
            digest=new.digest,
            routes=_with(new.routes, new.catalogue, routes),
            catalogue=new.catalogue,
            inactive=new.inactive,
            down=standing.down,
            settings=new.settings,
            out=standing.out,
        )
        self._plan, self._health, self._breakers, self.snapshot = new, health, breakers, snapshot
        self._left_alone.clear()
        self._budgets = {model: budget for model, budget in self._budgets.items() if model in new.catalogue.names}

    def _kept(self, new: Plan) -> dict[str, Health]:
        """Return the health that stays known under a plan: none if it has no probes, which could change it again."""
        if not new.settings.health_interval:
            return {}
        return {endpoint: health for endpoint, health in self._health.items() if endpoint in new.catalogue.endpoints}

    def probed(self, endpoint: str, result: ProbeResult, now: float) -> HealthChange | None:
        """Record a probe's result; return a change of state, which may build a new snapshot.

        `now` is in seconds since the epoch. A result about an endpoint that is gone changes nothing.
        """
        if self.snapshot is None or self._plan is None or endpoint not in self._plan.catalogue.endpoints:
            return None
        settings = self.snapshot.settings
        new = observe(
            self.health(endpoint),
            result,
            now=now,
            unhealthy_after=settings.unhealthy_after,
            healthy_after=settings.healthy_after,
        )
        return self._is_now(endpoint, new)

    def _is_now(self, endpoint: str, new: Health) -> HealthChange | None:
        old, self._health[endpoint] = self.health(endpoint), new
        if new.state == old.state:
            return None
        problem = None
        if new.usable != old.usable:
            problem = self._reweigh(self._plan.catalogue.users[endpoint] if self._plan else ())
        return HealthChange(endpoint, old, new, problem)

    def requested(self, model: str, now: float) -> None:
        """Count a request of a model; `now` is monotonic, in seconds, here and below."""
        budget = self._budgets.get(model) or self._budget(model)
        if budget is not None:
            budget.requested(now)

    def may_retry(self, model: str, now: float) -> bool:
        """Return whether a model's requests may make one more second try, and count it."""
        budget, snapshot = self._budget(model), self.snapshot
        return budget is not None and snapshot is not None and budget.allows(snapshot.settings.retry_ratio, now)

    def _budget(self, model: str) -> RetryBudget | None:
        """Return a model's budget, made when first needed; None for a model that is gone."""
        found = self._budgets.get(model)
        if found is None and self._plan is not None and model in self._plan.catalogue.names:
            found = self._budgets[model] = RetryBudget()
        return found

    def probe_due(self, route: Route, now: float) -> Deployment | None:
        """Return the weighted deployment of a route whose breaker's hold is over, if there is one: it goes first.

        `admits` lets it through, once.
        """
        if self.snapshot is None or not self.snapshot.out:
            return None
        for deployment, configured in zip(route.chain, route.configured, strict=True):
            if configured and deployment.endpoint.identity not in self.snapshot.down:
                breaker = self._breakers.of(deployment)
                if breaker is not None and breaker.due(now):
                    return deployment
        return None

    def admits(self, deployment: Deployment, now: float) -> bool:
        """Return whether a deployment takes a request; one whose breaker's hold is over takes a single one.

        A request that is let through must be made, and must be followed by one call of `succeeded`, `failed` or `left`.
        """
        snapshot = self.snapshot
        if snapshot is not None and not snapshot.out:
            return not snapshot.down or deployment.endpoint.identity not in snapshot.down
        if snapshot is not None and deployment.endpoint.identity in snapshot.down:
            return False
        breaker = self._breakers.of(deployment)
        return breaker is None or breaker.admits(now)

    def succeeded(self, deployment: Deployment, now: float, *, whole: bool = False) -> BreakerChange | None:
        """Record a first content, or a `whole` answer that ended well; return the change if this closed the breaker.

        A change builds a new snapshot.
        """
        old = self._breakers.succeeded(deployment, now, whole=whole)
        if old is None:
            return None
        problem = self._reweigh((deployment.model,))
        return BreakerChange(deployment, old, "closed", problem=problem)

    def ended(self, deployment: Deployment) -> None:
        """Record that an answer ended well."""
        self._breakers.ended(deployment)

    def failed(
        self,
        deployment: Deployment,
        failure: Failure,
        now: float,
        *,
        again: bool = False,
        since: float | None = None,
        began: float = inf,
    ) -> Change | None:
        """Record a failed attempt, or an answer that broke off; return the change, if there is one.

        `again` marks a request's second try of the deployment. `since` is when an answer that broke off had its first
        content: that was recorded as a success, which is now taken back. `began` is when the attempt began. A change of
        what is usable builds a new snapshot.
        """
        rule = TABLE[failure.cause]
        if not rule.blames:
            self.left(deployment, now, began)
            return self._loads(deployment.endpoint.identity, now) if failure.cause is Cause.LOADING else None
        if not self._breakers.failed(deployment, failure, now, again=again, since=since, began=began):
            return None
        problem = self._reweigh((deployment.model,))
        reason = self.breaker(deployment).reason
        return BreakerChange(deployment, "closed", "open", reason, rule.out is not None, problem)

    def left(self, deployment: Deployment, now: float, began: float = inf) -> None:
        """Record an attempt that says nothing about its deployment, for example because the client left."""
        breaker = self._breakers.of(deployment)
        if breaker is not None:
            breaker.left(now, began)

    def _loads(self, endpoint: str, now: float) -> HealthChange | None:
        if self.snapshot is None or self._plan is None or endpoint not in self._plan.catalogue.endpoints:
            return None
        if not self.snapshot.settings.health_interval:
            self._left_alone[endpoint] = now + LOADING_INTERVAL
        old = self.health(endpoint)
        return self._is_now(
            endpoint, old if old.state == "loading" else Health("loading", now + self._epoch(), "loading")
        )

    def retry_after(self, route: Route, now: float) -> int:
        """Return in how many whole seconds the first of a route's breakers lets a request through, at least 1."""
        return max(1, ceil(self._breakers.remaining(route.chain, now) or 0.0))

    @property
    def ramping(self) -> bool:
        """Whether `tick` has something to do as time passes."""
        return bool(self._left_alone) or self._breakers.ramping

    def tick(self, now: float) -> tuple[Change, ...]:
        """Advance slow starts, and let boxes that were loading be tried again; call it each second while `ramping`."""
        over = [endpoint for endpoint, until in self._left_alone.items() if now >= until]
        for endpoint in over:
            del self._left_alone[endpoint]
        changes = [self._is_now(endpoint, UNKNOWN) for endpoint in over]
        if more := self._breakers.tick(now):
            self._reweigh(dict.fromkeys(model for model, _ in more))
        return tuple(change for change in changes if change)

    def _reweigh(self, touched: Iterable[str]) -> str | None:
        """Re-weigh these models' routes in a new snapshot; return what the strategy failed for, if anything.

        A route for which the strategy fails stays as it is.
        """
        old, current = self.snapshot, self._plan
        if old is None or current is None:
            return None
        standing = _standing(self._health, self._breakers)
        routes, problems = _weighed(current.weighing(standing), touched)
        self.snapshot = replace(
            old,
            revision=old.revision + 1,
            down=standing.down,
            out=standing.out,
            routes=_with(old.routes, old.catalogue, routes),
        )
        return "; ".join(message for _, message in problems) or None


def _standing(health: Mapping[str, Health], breakers: Breakers) -> Standing:
    down = frozenset(endpoint for endpoint, known in health.items() if not known.usable)
    return Standing(down, breakers.out, breakers.returning)


def _weighed(weighing: Weighing, models: Iterable[str]) -> tuple[dict[str, Route], tuple[Problem, ...]]:
    """Return these models' routes, by id, and the problems of those for which the strategy fails, which have none."""
    routes: dict[str, Route] = {}
    problems: list[Problem] = []
    for model in models:
        try:
            routes[model] = weighing.route(model)
        except StrategyError as error:
            problems += error.problems
    return routes, tuple(problems)


def _with(routes: Mapping[str, Route], catalogue: Catalogue, others: Mapping[str, Route]) -> Mapping[str, Route]:
    """Replace some routes by `others`, which are by model id."""
    return MappingProxyType({**routes, **dict(catalogue.named(others))}) if others else routes
