"""The decision layer's head: a plan, what is known of health, and what requests have met become snapshots.

`RoutingManager` holds the one current snapshot. It builds a new one when a plan is adopted (generation + 1), and when
an endpoint's health, a deployment's breaker or its part on a slow start changes (revision + 1); each swap is one
assignment. A change re-weighs only the routes it touches, and no request computes any of it.

Health and breakers are two opinions, and neither changes the other: a box may answer probes and fail requests.
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
    """An endpoint went from one state to another; `problem` is set when the strategy could not follow."""

    endpoint: str
    old: Health
    new: Health
    problem: str | None = None


class BreakerChange(Struct, frozen=True):
    """A breaker opened or closed.

    `lasting` tells that it opened for a failure that passes only when somebody acts: a refused key, an unknown model.
    `problem` is set when the strategy could not follow.
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

    Mutable: the snapshot and the plan behind it, with the `problems` that the strategy had when that was put in force;
    health by endpoint, with the time until which one that loads is left alone where nobody probes; the breakers; and
    each model's retry budget.
    """

    def __init__(self, epoch: Callable[[], float] = lambda: 0.0) -> None:
        """Start without a configuration; what `epoch` gives plus a monotonic time is in seconds since the epoch."""
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
        """Say what is known of an endpoint."""
        return self._health.get(endpoint, UNKNOWN)

    def breaker(self, deployment: Deployment) -> BreakerView:
        """Say how a deployment's breaker stands."""
        found = self._breakers.of(deployment)
        if found is None or found.since is None:
            return BreakerView()
        return BreakerView(found.state, found.since + self._epoch(), found.reason)

    def succession(self, new: Plan) -> Succession:
        """Work out what a plan changes of the one in force; to be called from any thread, before `adopt`."""
        return Succession.of(self._plan, new)

    def adopt(self, new: Plan | Succession) -> Diff | None:
        """Put a plan in force; nothing comes back when it means what the last one meant.

        What it costs grows with what is down, out or coming back, and not with the plan, where the succession was
        worked out before. A model that the strategy fails for as things stand has its weights with everything healthy,
        and `problems` tell of it.
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
        """Give what stays known under a plan: nothing, when it probes no more, for it would never change again."""
        if not new.settings.health_interval:
            return {}
        return {endpoint: health for endpoint, health in self._health.items() if endpoint in new.catalogue.endpoints}

    def probed(self, endpoint: str, result: ProbeResult, now: float) -> HealthChange | None:
        """Take a probe's result in; a change of state builds a new snapshot and comes back.

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
        """Tell whether there is room for one more second try among a model's requests, and take it."""
        budget, snapshot = self._budget(model), self.snapshot
        return budget is not None and snapshot is not None and budget.allows(snapshot.settings.retry_ratio, now)

    def _budget(self, model: str) -> RetryBudget | None:
        """Give a model's budget, made when it is first asked for; a model that is gone has none."""
        found = self._budgets.get(model)
        if found is None and self._plan is not None and model in self._plan.catalogue.names:
            found = self._budgets[model] = RetryBudget()
        return found

    def probe_due(self, route: Route, now: float) -> Deployment | None:
        """Name the weighted deployment of a route whose breaker's hold is over, if there is one: it goes first.

        It is let through by `admits`, once.
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
        """Tell whether a deployment takes a request; one whose breaker's hold is over takes one, and it has to be made.

        To each request that is let through belongs one call of `succeeded`, `failed` or `left`.
        """
        snapshot = self.snapshot
        if snapshot is not None and not snapshot.out:
            return not snapshot.down or deployment.endpoint.identity not in snapshot.down
        if snapshot is not None and deployment.endpoint.identity in snapshot.down:
            return False
        breaker = self._breakers.of(deployment)
        return breaker is None or breaker.admits(now)

    def succeeded(self, deployment: Deployment, now: float, *, whole: bool = False) -> BreakerChange | None:
        """Note a first content, or a `whole` answer, which ended well; the breaker's closing comes back.

        That builds a new snapshot.
        """
        old = self._breakers.succeeded(deployment, now, whole=whole)
        if old is None:
            return None
        problem = self._reweigh((deployment.model,))
        return BreakerChange(deployment, old, "closed", problem=problem)

    def ended(self, deployment: Deployment) -> None:
        """Note that an answer ended well."""
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
        """Note a failed attempt, or an answer that broke off; what changes by it builds a new snapshot and comes back.

        `again` marks a request's second try of the deployment. `since` is when an answer that broke off had its first
        content: it was told of as a success, which is taken back. `began` is when the attempt began.
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
        """Note an attempt that says nothing of its deployment: the client went away, or was told what it did wrong."""
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
        """Say in how many whole seconds to ask again: when the first of a route's breakers lets a request through."""
        return max(1, ceil(self._breakers.remaining(route.chain, now) or 0.0))

    @property
    def ramping(self) -> bool:
        """Whether there is something for `tick` to do as time goes by."""
        return bool(self._left_alone) or self._breakers.ramping

    def tick(self, now: float) -> tuple[Change, ...]:
        """Let time go by, each second while `ramping`: slow starts go on, and a box that loads is asked again."""
        over = [endpoint for endpoint, until in self._left_alone.items() if now >= until]
        for endpoint in over:
            del self._left_alone[endpoint]
        changes = [self._is_now(endpoint, UNKNOWN) for endpoint in over]
        if more := self._breakers.tick(now):
            self._reweigh(dict.fromkeys(model for model, _ in more))
        return tuple(change for change in changes if change)

    def _reweigh(self, touched: Iterable[str]) -> str | None:
        """Re-weigh these models' routes; one that the strategy fails for stays as it is, which is told.

        A snapshot is built where this changes anything.
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
    """Give the routes of these models, by id, but for those that the strategy fails for, and what it says of those."""
    routes: dict[str, Route] = {}
    problems: list[Problem] = []
    for model in models:
        try:
            routes[model] = weighing.route(model)
        except StrategyError as error:
            problems += error.problems
    return routes, tuple(problems)


def _with(routes: Mapping[str, Route], catalogue: Catalogue, others: Mapping[str, Route]) -> Mapping[str, Route]:
    """Put other routes, by model id, in the place of some."""
    return MappingProxyType({**routes, **dict(catalogue.named(others))}) if others else routes
