"""What is reported about a model: its deployments, their planned and delivered shares, and their state."""

from collections.abc import Mapping, Sequence

from gateway.observe.render import rfc3339
from gateway.observe.traffic import Served, Traffic
from gateway.routing.manager import RoutingManager
from gateway.routing.snapshot import Deployment, Identity, Inactive, Route, Snapshot


class Models:
    """Describes models, JSON-ready. Mutable: by model, what waits for a variable in the last configuration seen."""

    def __init__(self, manager: RoutingManager, traffic: Traffic, in_flight: Mapping[Identity, int]) -> None:
        """Read these; `in_flight` counts the attempts under way."""
        self._manager = manager
        self._traffic = traffic
        self._in_flight = in_flight
        self._inactive: tuple[Inactive, ...] = ()
        self._waiting: dict[str, list[Inactive]] = {}

    def of(self, snapshot: Snapshot, model: str) -> dict[str, object]:
        """Describe a model of a snapshot, by its id."""
        route = snapshot.routes[model]
        served = self._traffic.served(model, tuple(deployment.name for deployment in route.chain))
        return {
            "id": model,
            "selection": route.selection,
            "fallbacks": route.fallbacks,
            "deployments": [
                self._deployment(route, place, deployment, served[deployment.name])
                for place, deployment in enumerate(route.chain)
            ],
            "inactive": [
                {"name": inactive.name, "group": inactive.group, "waits_for": inactive.variable}
                for inactive in self._waits(snapshot.inactive).get(model, ())
            ],
        }

    def _waits(self, inactive: tuple[Inactive, ...]) -> Mapping[str, Sequence[Inactive]]:
        """Group what waits by model, once: thousands of models may wait for one key."""
        if inactive is not self._inactive:
            self._inactive, self._waiting = inactive, {}
            for each in inactive:
                self._waiting.setdefault(each.model, []).append(each)
        return self._waiting

    def _deployment(self, route: Route, place: int, deployment: Deployment, served: Served) -> dict[str, object]:
        health = self._manager.health(deployment.endpoint.identity)
        breaker = self._manager.breaker(deployment)
        return {
            "name": deployment.name,
            "group": deployment.group,
            "endpoint": deployment.endpoint.identity,
            "kind": deployment.kind,
            "provider_model_id": deployment.served_model,
            "configured_weight": round(float(route.configured[place]), 6),
            "effective_weight": round(float(route.weights[place]), 6),
            "delivered_share": None if served.share is None else round(served.share, 6),
            "requests": served.requests,
            "failures": served.failures,
            "in_flight": self._in_flight.get(deployment.identity, 0),
            "health": {"state": health.state, "since": _written(health.since), "reason": health.reason},
            "breaker": {"state": breaker.state, "since": _written(breaker.since), "reason": breaker.reason},
        }


def _written(when: float | None) -> str | None:
    return None if when is None else rfc3339(when)
