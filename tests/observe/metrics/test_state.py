from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.observe.metrics.families import AVOIDED, COST
from gateway.observe.metrics.state import State
from gateway.observe.traffic import Traffic
from gateway.routing.manager import RoutingManager
from tests.observe.metrics.reading import key, of, page, samples

LABELS = {("m", "a"): 'model="m",deployment="a",group="local"'}
A = ("m", "a")


@dataclass(frozen=True, slots=True)
class Priced:
    spent: int
    avoided: int


@dataclass(slots=True)
class Reloads:
    accepted: float | None = None
    rejected: float | None = None
    last: float | None = None


def state(
    costs: Callable[[], Mapping[tuple[str, str], Priced]] = dict, connections: Callable[[], int] = lambda: 8
) -> State:
    return State(
        manager=RoutingManager(),
        traffic=Traffic(),
        reloads=Reloads(),
        in_flight={A: 2, ("m", "b"): 1},
        log_dropped=lambda: 5,
        ledger_dropped=lambda: 7,
        costs=costs,
        connections=connections,
    )


def test_costs_are_told_in_dollars_of_deployments_that_are_tracked() -> None:
    costs = {A: Priced(250_000_000, 1), ("m", "gone"): Priced(9, 9)}
    found = samples(page(state(lambda: costs).told(LABELS)))
    assert found[of("a", "cost_usd_total")] == 0.25
    assert found[of("a", "cost_avoided_usd_total")] == 1e-09
    assert not [name for name in found if "gone" in name]


def test_without_prices_there_is_no_money() -> None:
    told = dict(state().told(LABELS))
    assert (list(told[COST]), list(told[AVOIDED])) == ([], [])


def test_drops_are_told() -> None:
    found = samples(page(state().told(LABELS)))
    assert found[key("gateway_log_records_dropped_total")] == 5
    assert found[key("gateway_ledger_rows_dropped_total")] == 7


def test_connections_are_told() -> None:
    assert samples(page(state().told(LABELS)))[key("gateway_upstream_connections")] == 8


def test_what_never_happened_has_no_time() -> None:
    found = samples(page(state().told(LABELS)))
    assert not [name for name in found if "timestamp" in name]
    assert found[key("gateway_config_generation")] == 0
