from collections.abc import Callable, Mapping

from gateway.observe.cost import Cost
from gateway.observe.metrics.families import AVOIDED, COST
from gateway.observe.metrics.series import Key
from gateway.observe.metrics.state import State
from gateway.observe.reloads import ReloadState
from gateway.observe.traffic import Traffic
from gateway.routing.manager import RoutingManager
from tests.observe.metrics.reading import key, of, page, samples

LOCAL, REMOTE = ("m", "a", "local"), ("m", "a", "remote")
LABELS = {
    REMOTE: 'model="m",deployment="a",group="remote"',
    LOCAL: 'model="m",deployment="a",group="local"',
}


def state(costs: Callable[[], Mapping[Key, Cost]] = dict, connections: Callable[[], int] = lambda: 8) -> State:
    return State(
        manager=RoutingManager(),
        traffic=Traffic(),
        reloads=ReloadState(),
        in_flight={("m", "a"): 2, ("m", "b"): 1},
        log_dropped=lambda: 5,
        ledger_waiting=lambda: 8,
        ledger_dropped=lambda: 7,
        costs=costs,
        connections=connections,
    )


def test_costs_are_told_in_dollars_of_deployments_that_are_tracked() -> None:
    costs = {LOCAL: Cost(250_000_000, 1), REMOTE: Cost(500_000_000, 0), ("m", "gone", "local"): Cost(9, 9)}
    found = samples(page(state(lambda: costs).told(LABELS)))
    assert found[of("a", "cost_usd_total")] == 0.25
    assert found[of("a", "cost_avoided_usd_total")] == 1e-09
    assert (found[of("a", "cost_usd_total", "remote")], found[of("a", "cost_avoided_usd_total", "remote")]) == (0.5, 0)
    assert not [name for name in found if "gone" in name]


def test_attempts_under_way_are_told_of_the_group_of_today() -> None:
    found = samples(page(state().told(LABELS)))
    assert {name: value for name, value in found.items() if "in_flight" in name} == {of("a", "attempts_in_flight"): 2}


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
