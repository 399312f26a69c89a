"""What is not counted but read during a scrape: weights, states, attempts under way, the result of the last reload.

Nothing is remembered here: a removed deployment no longer has a weight or a breaker.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Final

from msgspec import Struct

from gateway import __version__
from gateway.observe.cost import Cost
from gateway.observe.metrics.families import (
    ACCEPTED_AT,
    AVOIDED,
    BREAKER,
    BUILD,
    CONFIGURED,
    CONNECTIONS,
    COST,
    DELIVERED,
    EFFECTIVE,
    ENDPOINT_STATE,
    ENDPOINT_UP,
    GENERATION,
    IN_FLIGHT,
    LEDGER_DROPPED,
    LEDGER_WAITING,
    LOG_DROPPED,
    ONE,
    RELOAD_GOOD,
    RELOADED_AT,
    Family,
)
from gateway.observe.metrics.series import Key
from gateway.observe.metrics.text import Told, labelled, line
from gateway.observe.reloads import ReloadState
from gateway.observe.traffic import Traffic
from gateway.routing.manager import RoutingManager
from gateway.routing.pricing import NANO
from gateway.routing.snapshot import Deployment, Identity, Route, Snapshot

_BREAKER_STATES: Final = ("closed", "open", "half_open")
_ENDPOINT_STATES: Final = ("unknown", "up", "down", "loading")


class State(Struct, frozen=True, kw_only=True):
    """Reads the gateway. The callables are called at each scrape; `costs` are by deployment and group."""

    manager: RoutingManager
    traffic: Traffic
    reloads: ReloadState
    in_flight: Mapping[Identity, int]
    log_dropped: Callable[[], int]
    connections: Callable[[], int]
    ledger_waiting: Callable[[], int]
    ledger_dropped: Callable[[], int]
    costs: Callable[[], Mapping[Key, Cost]]

    def told(self, tracked: Mapping[Key, str]) -> Iterator[Told]:
        """Yield every metric; `tracked` has the labels of all deployments, removed ones included, current ones last."""
        snapshot = self.manager.snapshot
        today = {key[:2]: labels for key, labels in tracked.items()}
        yield (
            IN_FLIGHT,
            (line(IN_FLIGHT, labels, self.in_flight.get(identity, 0)) for identity, labels in today.items()),
        )
        costs = [(tracked[key], cost) for key, cost in self.costs().items() if key in tracked]
        yield COST, [line(COST, labels, cost.spent / NANO) for labels, cost in costs]
        yield AVOIDED, [line(AVOIDED, labels, cost.avoided / NANO) for labels, cost in costs]
        if snapshot is not None:
            yield from self._routing(snapshot)
        yield from self._numbers(snapshot)
        yield BUILD, [line(BUILD, labelled(BUILD.labels, (__version__,)), 1)]

    def _routing(self, snapshot: Snapshot) -> Iterator[Told]:
        routes = [snapshot.routes[model.id] for model in snapshot.models]
        yield CONFIGURED, (_weights(CONFIGURED, route, route.configured) for route in routes)
        yield EFFECTIVE, (_weights(EFFECTIVE, route, route.weights) for route in routes)
        yield DELIVERED, (self._delivered(route) for route in routes)
        yield BREAKER, (self._breaker(each) for each in snapshot.deployments)
        endpoints = tuple(snapshot.endpoints)
        yield ENDPOINT_UP, (self._is_up(each) for each in endpoints if self.manager.health(each).state != "unknown")
        yield ENDPOINT_STATE, (self._endpoint(each) for each in endpoints)

    def _delivered(self, route: Route) -> str:
        served = self.traffic.served(route.model, tuple(each.name for each in route.chain))
        shares = [(each, served[each.name].share) for each in route.chain]
        return "".join(line(DELIVERED, _labels(each), share) for each, share in shares if share is not None)

    def _breaker(self, deployment: Deployment) -> str:
        return _states(BREAKER, _labels(deployment), _BREAKER_STATES, self.manager.breaker(deployment).state)

    def _is_up(self, endpoint: str) -> str:
        return line(ENDPOINT_UP, labelled(("endpoint",), (endpoint,)), int(self.manager.health(endpoint).usable))

    def _endpoint(self, endpoint: str) -> str:
        labels = labelled(("endpoint",), (endpoint,))
        return _states(ENDPOINT_STATE, labels, _ENDPOINT_STATES, self.manager.health(endpoint).state)

    def _numbers(self, snapshot: Snapshot | None) -> Iterator[Told]:
        reloads = self.reloads
        numbers: tuple[tuple[Family, float | None], ...] = (
            (GENERATION, snapshot.generation if snapshot else 0),
            (RELOADED_AT, reloads.last),
            (ACCEPTED_AT, reloads.accepted),
            (RELOAD_GOOD, int(reloads.rejected is None)),
            (LOG_DROPPED, self.log_dropped()),
            (LEDGER_WAITING, self.ledger_waiting()),
            (LEDGER_DROPPED, self.ledger_dropped()),
            (CONNECTIONS, self.connections()),
        )
        for family, number in numbers:
            yield family, [] if number is None else [line(family, "", number)]


def _labels(deployment: Deployment) -> str:
    return labelled(ONE, (deployment.model, deployment.name, deployment.group))


def _weights(family: Family, route: Route, weights: Iterable[Fraction]) -> str:
    return "".join(
        line(family, _labels(each), float(weight)) for each, weight in zip(route.chain, weights, strict=True)
    )


def _states(family: Family, labels: str, states: Iterable[str], current: str) -> str:
    return "".join(line(family, f'{labels},state="{state}"', int(state == current)) for state in states)
