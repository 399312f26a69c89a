import pytest

from gateway.routing.health import UNKNOWN, Health, ProbeResult, observe
from tests.routing.planning import BOXES, SPLIT, chain, probe, serve, snapshot

ALIVE, DEAD, LOADING = ProbeResult(), ProbeResult("dns"), ProbeResult("loading", loading=True)
LOADS = Health("loading", 9.0, "loading")


def after(health: Health, *results: ProbeResult) -> Health:
    for result in results:
        health = observe(health, result, now=9.0, unhealthy_after=2, healthy_after=3)
    return health


@pytest.mark.parametrize("health", [UNKNOWN, Health("up", 1.0), Health("down", 1.0, "dns")])
def test_a_box_that_says_so_loads_at_once(health: Health) -> None:
    assert after(health, LOADING) == LOADS
    assert after(LOADS, LOADING) == LOADS


def test_a_box_that_has_loaded_is_up_at_once() -> None:
    assert after(LOADS, ALIVE) == Health("up", 9.0)


def test_a_box_that_loads_may_die() -> None:
    assert after(LOADS, DEAD) == Health("loading", 9.0, "loading", streak=1)
    assert after(LOADS, DEAD, LOADING) == LOADS
    assert after(LOADS, DEAD, DEAD) == Health("down", 9.0, "dns")


def test_a_box_that_loads_is_not_usable_and_not_down() -> None:
    assert not LOADS.usable
    assert not LOADING.alive
    manager = serve(BOXES, SPLIT)
    [change] = probe(manager, b=LOADING)
    assert change is not None
    assert change.new == Health("loading", 100.0, "loading")
    assert chain(snapshot(manager).routes["llama"]) == ["a", "cloud", "b"]
