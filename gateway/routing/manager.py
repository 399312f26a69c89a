"""The decision layer's head: a plan and what is known of health become snapshots.

`RoutingManager` holds the one current snapshot. It builds a new one when a plan is adopted (generation + 1) and when an
endpoint's health changes (revision + 1); each swap is one assignment. A health change re-weighs only the routes it
touches, and no request computes any of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gateway.routing.diff import Diff, diff
from gateway.routing.health import UNKNOWN, Health, ProbeResult, observe
from gateway.routing.plan import Plan, plan
from gateway.routing.snapshot import Model, Route, Snapshot
from gateway.routing.strategies import StrategyError

__all__ = ["HealthChange", "Plan", "RoutingManager", "plan"]


@dataclass(frozen=True, slots=True)
class HealthChange:
    """An endpoint went from one state to another; `problem` is set when the strategy could not follow."""

    endpoint: str
    old: Health
    new: Health
    problem: str | None = None


class RoutingManager:
    """Holds the current snapshot, the plan behind it, and what is known of each endpoint's health by its identity."""

    def __init__(self) -> None:
        """Start without a configuration."""
        self.snapshot: Snapshot | None = None
        self._plan: Plan | None = None
        self._health: dict[str, Health] = {}

    def health(self, endpoint: str) -> Health:
        """Say what is known of an endpoint."""
        return self._health.get(endpoint, UNKNOWN)

    def adopt(self, new: Plan) -> Diff | None:
        """Put a plan in force; nothing comes back when it means what the last one meant.

        Raises:
            StrategyError: the strategy fails for the endpoints that are healthy now; the old snapshot stays.

        """
        old = self.snapshot
        if old is not None and self._plan is not None and new.documents == self._plan.documents:
            self.snapshot = replace(old, digest=new.digest)
            return None
        health = self._kept(new)
        down = _down(health)
        snapshot = Snapshot(
            generation=old.generation + 1 if old else 1,
            revision=0,
            digest=new.digest,
            routes=_named(new.models, {model.id: new.route(model.id, down) for model in new.models}),
            models=new.models,
            inactive=new.inactive,
            down=down,
            settings=new.settings,
        )
        self._plan, self._health, self.snapshot = new, health, snapshot
        return diff(old, snapshot)

    def _kept(self, new: Plan) -> dict[str, Health]:
        """Give what stays known under a plan: nothing, when it probes no more, for it would never change again."""
        if not new.settings.health_interval:
            return {}
        return {endpoint: health for endpoint, health in self._health.items() if endpoint in new.endpoints}

    def probed(self, endpoint: str, result: ProbeResult, now: float) -> HealthChange | None:
        """Take a probe's result in; a change of state builds a new snapshot and comes back.

        `now` is in seconds since the epoch. A result about an endpoint that is gone changes nothing.
        """
        if self.snapshot is None or self._plan is None or endpoint not in self._plan.endpoints:
            return None
        settings = self.snapshot.settings
        old = self.health(endpoint)
        new = observe(
            old,
            result,
            now=now,
            unhealthy_after=settings.unhealthy_after,
            healthy_after=settings.healthy_after,
        )
        self._health[endpoint] = new
        if new.state == old.state:
            return None
        problem = None
        if new.usable != old.usable:
            self.snapshot, problem = _reweighed(self.snapshot, self._plan, endpoint, _down(self._health))
        return HealthChange(endpoint, old, new, problem)


def _down(health: Mapping[str, Health]) -> frozenset[str]:
    return frozenset(endpoint for endpoint, known in health.items() if not known.usable)


def _reweighed(old: Snapshot, current: Plan, endpoint: str, down: frozenset[str]) -> tuple[Snapshot, str | None]:
    """Re-weigh the routes that an endpoint is in; one that the strategy fails for stays as it is, which is told."""
    routes: dict[str, Route] = {}
    problems: list[str] = []
    for model in old.models:
        routes[model.id] = route = old.routes[model.id]
        if any(deployment.endpoint.identity == endpoint for deployment in route.chain):
            try:
                routes[model.id] = current.route(model.id, down)
            except StrategyError as error:
                problems.append(str(error))
    new = replace(old, revision=old.revision + 1, down=down, routes=_named(old.models, routes))
    return new, "; ".join(problems) or None


def _named(models: tuple[Model, ...], routes: Mapping[str, Route]) -> Mapping[str, Route]:
    """Give the routes by each of their model's names."""
    return MappingProxyType({name: routes[model.id] for model in models for name in (model.id, *model.aliases)})
