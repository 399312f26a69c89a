from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.health import UNKNOWN, Health, ProbeResult
from gateway.routing.manager import HealthChange, RoutingManager
from tests.routing.planning import (
    ALIVE,
    BOXES,
    DEAD,
    SPLIT,
    chain,
    make,
    notices,
    probe,
    serve,
    snapshot,
    weights,
)

ROBUST = SPLIT.replace("health_check: 5", "health_check: {interval: 5, unhealthy_after: 2, healthy_after: 3}")
TAGGED = SPLIT.replace(
    "routing_parameter: {local_fraction: 0.6}",
    "routing_strategy: tests.routing.guests:Tagged\n"
    "routing_parameter: {tiers: {all: {names: [a, b, cloud], share: 1}}, token: t-canary}",
)


def now(manager: RoutingManager, model: str = "llama") -> dict[str, str]:
    return {name: str(weight) for name, weight in weights(snapshot(manager).routes[model]).items()}


def test_everything_healthy() -> None:
    assert now(serve(BOXES, SPLIT)) == {"cloud": "2/5", "a": "3/10", "b": "3/10"}


def test_a_dead_boxs_share_goes_to_its_sibling_and_back() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD)
    assert now(manager) == {"b": "3/5", "cloud": "2/5", "a": "0"}
    probe(manager, a=ALIVE)
    assert now(manager) == {"cloud": "2/5", "a": "3/10", "b": "3/10"}


def test_a_dead_groups_share_goes_to_the_other_and_back() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD, b=DEAD)
    assert now(manager) == {"cloud": "1", "a": "0", "b": "0"}
    probe(manager, b=ALIVE)
    assert now(manager) == {"b": "3/5", "cloud": "2/5", "a": "0"}
    probe(manager, a=ALIVE, cloud=DEAD)
    assert now(manager) == {"a": "1/2", "b": "1/2", "cloud": "0"}


def test_with_all_down_the_weights_are_as_configured() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD, cloud=DEAD, b=DEAD)
    assert now(manager) == {"cloud": "2/5", "a": "3/10", "b": "3/10"}
    assert snapshot(manager).down == {"http://a:8000", "http://b:8000", "https://cloud.example"}


def test_with_only_fallbacks_usable_the_first_as_written_gets_everything() -> None:
    routing = SPLIT.partition("remote_deployment")[0].replace("a:8000", "new:8000").replace("b:8000", "newer:8000")
    manager = serve(BOXES, routing)
    for endpoint in ("http://new:8000", "http://newer:8000", "http://a:8000"):
        manager.probed(endpoint, DEAD, 1.0)
    assert now(manager) == {"b": "1", "cloud": "0", "a": "0", "new:8000": "0", "newer:8000": "0"}


def test_without_routing_yaml_the_usable_share_by_weight() -> None:
    route = ", ".join(
        f"{{name: {name}, base_url: 'http://{name}:8000', weight: {w}}}"
        for name, w in zip("abc", (1, 2, 0), strict=True)
    )
    manager = serve(f"models: [{{id: llama, route: [{route}]}}]")
    assert now(manager) == {"b": "2/3", "a": "1/3", "c": "0"}
    probe(manager, b=DEAD)
    assert now(manager) == {"a": "1", "c": "0", "b": "0"}
    probe(manager, a=DEAD)
    assert now(manager) == {"c": "1", "a": "0", "b": "0"}


def test_the_chain_ends_with_those_known_to_be_down() -> None:
    manager = serve(BOXES, SPLIT.replace("0.6", "1.0"))
    assert chain(snapshot(manager).routes["llama"]) == ["a", "b", "cloud"]
    probe(manager, a=DEAD)
    assert chain(snapshot(manager).routes["llama"]) == ["b", "cloud", "a"]
    probe(manager, b=DEAD)
    assert chain(snapshot(manager).routes["llama"]) == ["cloud", "a", "b"]


def test_a_health_change_is_a_revision_and_shares_what_did_not_change() -> None:
    manager = serve(BOXES + "  - {id: other, base_url: 'http://other'}\n", SPLIT)
    old = snapshot(manager)
    [change] = probe(manager, a=DEAD)
    assert change == HealthChange("http://a:8000", UNKNOWN, Health("down", 100.0, "connect_refused"))
    new = snapshot(manager)
    assert (new.generation, new.revision) == (1, 1)
    assert new.down == {"http://a:8000"}
    assert new.routes["other"] is old.routes["other"]
    assert new.routes["l3"] is new.routes["llama"]
    assert old.routes["llama"].weights == (Fraction(2, 5), Fraction(3, 10), Fraction(3, 10))
    assert new.routes["llama"].configured == (Fraction(3, 10), Fraction(2, 5), Fraction(3, 10))


def test_the_first_good_probe_is_told_and_changes_no_weight() -> None:
    manager = serve(BOXES, SPLIT)
    old = snapshot(manager)
    [change] = probe(manager, a=ALIVE)
    assert change == HealthChange("http://a:8000", UNKNOWN, Health("up", 100.0))
    assert snapshot(manager) is old


def test_probes_that_change_no_state_change_nothing() -> None:
    manager = serve(BOXES, ROBUST)
    old = snapshot(manager)
    assert probe(manager, a=DEAD) == [None]
    assert snapshot(manager) is old
    assert manager.health("http://a:8000").streak == 1
    assert probe(manager, a=DEAD) != [None]
    assert [probe(manager, a=ALIVE), probe(manager, a=ALIVE)] == [[None], [None]]
    assert now(manager)["a"] == "0"
    assert probe(manager, a=ALIVE) != [None]
    assert now(manager)["a"] == "3/10"


def test_a_probe_of_what_is_gone_or_before_there_is_anything_changes_nothing() -> None:
    manager = RoutingManager()
    assert manager.probed("http://a:8000", DEAD, 1.0) is None
    manager = serve(BOXES, SPLIT)
    assert manager.probed("http://gone:8000", DEAD, 1.0) is None
    assert manager.health("http://gone:8000") is UNKNOWN
    assert snapshot(manager).down == frozenset()


def test_a_new_configuration_is_a_generation_and_keeps_what_is_known_of_health() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD, cloud=ALIVE)
    manager.adopt(make(BOXES, SPLIT.replace("0.6", "0.8")))
    assert (snapshot(manager).generation, snapshot(manager).revision) == (2, 0)
    assert now(manager) == {"b": "4/5", "cloud": "1/5", "a": "0"}
    assert manager.health("https://cloud.example").state == "up"


def test_health_is_forgotten_with_its_endpoint() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD)
    manager.adopt(make(BOXES.replace("a:8000", "c:8000"), SPLIT.replace("a:8000", "c:8000")))
    assert snapshot(manager).down == frozenset()
    manager.adopt(make(BOXES, SPLIT))
    assert manager.health("http://a:8000") is UNKNOWN


def test_health_is_forgotten_when_nobody_probes_any_more() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD)
    manager.adopt(make(BOXES, SPLIT.replace("health_check: 5", "health_check: 0")))
    assert now(manager)["a"] == "3/10"
    assert snapshot(manager).down == frozenset()


def test_a_configuration_that_means_the_same_is_silent() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, a=DEAD)
    old = snapshot(manager)
    assert manager.adopt(make("# a comment\n" + BOXES, SPLIT + "\n")) is None
    assert (snapshot(manager).generation, snapshot(manager).revision) == (1, 1)
    assert snapshot(manager).routes is old.routes


def test_a_silent_configuration_is_named_by_its_own_content() -> None:
    manager = serve(BOXES, SPLIT)
    manager.adopt(replace(make(BOXES, SPLIT), digest="other"))
    assert snapshot(manager).digest == "other"


def test_a_succession_worked_out_beforehand_is_what_it_is_on_the_spot() -> None:
    manager, other = serve(BOXES, SPLIT), serve(BOXES, SPLIT)
    new = make(BOXES, SPLIT.replace("0.6", "0.8"))
    ready = manager.succession(new)
    probe(manager, a=DEAD)
    probe(other, a=DEAD)
    assert manager.adopt(ready) == other.adopt(new)
    assert now(manager) == now(other) == {"b": "4/5", "cloud": "1/5", "a": "0"}
    assert manager.adopt(manager.succession(new)) is None


def test_a_succession_of_another_plan_is_worked_out_anew() -> None:
    manager = serve(BOXES, SPLIT)
    late = manager.succession(make(BOXES, SPLIT.replace("0.6", "0.8")))
    manager.adopt(make(BOXES, SPLIT.replace("0.6", "0.7")))
    changes = manager.adopt(late)
    assert changes is not None
    assert changes.as_dict()["settings"] == ["routing_parameter.local_fraction: 0.7 -> 0.8"]
    assert snapshot(manager).generation == 3


def test_a_plan_has_the_endpoints_of_the_one_before_where_they_are_the_same() -> None:
    manager = serve(BOXES, SPLIT)
    old = snapshot(manager).endpoints
    manager.adopt(make(BOXES, SPLIT.replace("0.6", "0.8")))
    assert snapshot(manager).endpoints is old
    manager.adopt(make(BOXES.replace("a:8000", "c:8000"), SPLIT.replace("a:8000", "c:8000")))
    assert sorted(snapshot(manager).endpoints) == ["http://b:8000", "http://c:8000", "https://cloud.example"]


def test_with_nothing_down_a_snapshot_has_the_routes_of_its_plan() -> None:
    manager = RoutingManager()
    made = make(BOXES, SPLIT)
    manager.adopt(made)
    assert snapshot(manager).routes is made.routes


def test_a_key_that_changed_in_the_environment_is_a_generation() -> None:
    models = BOXES.replace("canary-cloud", "'${KEY}'")
    manager = serve(models, SPLIT, KEY="canary-old")
    changes = manager.adopt(make(models, SPLIT, KEY="canary-new"))
    assert changes is not None
    assert changes.as_dict() == {"deployments_changed": ["llama/cloud: api_key changed"]}
    assert snapshot(manager).generation == 2


def test_a_strategy_that_cannot_follow_a_health_change_leaves_its_route() -> None:
    models = (
        BOXES + "  - {id: other, route: [{name: box, base_url: 'http://b:8000'}, {name: x, base_url: 'http://x'}]}\n"
    )
    manager = serve(models, TAGGED)
    [change] = probe(manager, b=DEAD)
    assert change is not None
    assert change.problem == (
        "tests.routing.guests:Tagged.assign for llama raised LookupError: a hidden value: b is gone"
    )
    assert now(manager) == {"a": "1/3", "b": "1/3", "cloud": "1/3"}
    assert now(manager, "other") == {"x": "1", "box": "0"}
    assert snapshot(manager).down == {"http://b:8000"}


def test_a_strategy_that_fails_for_who_is_healthy_now_has_its_weights_with_everything_healthy() -> None:
    manager = serve(BOXES, SPLIT)
    probe(manager, b=DEAD)
    made = make(BOXES, TAGGED)
    assert manager.adopt(made) is not None
    message = "tests.routing.guests:Tagged.assign for llama raised LookupError: a hidden value: b is gone"
    assert list(manager.problems) == [(("routing_strategy",), message)]
    assert snapshot(manager).down == {"http://b:8000"}
    assert snapshot(manager).routes == made.routes
    probe(manager, b=ALIVE)
    probe(manager, a=DEAD)
    assert now(manager) == {"b": "1/2", "cloud": "1/2", "a": "0"}
    manager.adopt(make(BOXES, SPLIT))
    assert list(manager.problems) == []


BOX_WEIGHTS = st.lists(st.one_of(st.none(), st.sampled_from([0, 0.1, 1, 2.5, 7])), min_size=5, max_size=5)
PROBES = st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12)
GROUPS = st.lists(st.sampled_from(["local", "remote", ""]), min_size=5, max_size=5)


def documents(given_weights: list[float | None], groups: list[str], fraction: float) -> tuple[str, str]:
    """Write five boxes; without a weight one waits for a variable, without a group routing.yaml does not list it."""
    boxes = [
        (f"http://{place}" if weight is not None else "${NONE}", weight or 0)
        for place, weight in enumerate(given_weights)
    ]
    route = ", ".join(f"{{name: '{n}', base_url: '{url}', weight: {weight}}}" for n, (url, weight) in enumerate(boxes))
    lines = [f"routing_parameter: {{local_fraction: {fraction}}}", "health_check: 1"]
    for group in ("local", "remote"):
        urls = [url for (url, _), its in zip(boxes, groups, strict=True) if its == group and url != "${NONE}"]
        lines.append(f"{group}_deployment: [{', '.join(f'{{endpoint: {url}, models: [llama]}}' for url in urls)}]")
    return f"models: [{{id: llama, route: [{route}]}}]", "\n".join(lines)


def test_those_that_are_down_stand_in_the_order_that_they_have_when_they_are_up() -> None:
    manager = serve(*documents([0, 1, 2, 1], ["local"] * 4, 1))
    assert chain(snapshot(manager).routes["llama"]) == ["2", "1", "3", "0"]
    for place in (0, 1, 2):
        manager.probed(f"http://{place}", DEAD, 1.0)
    assert chain(snapshot(manager).routes["llama"]) == ["3", "2", "1", "0"]


@pytest.mark.exhaustive
@given(BOX_WEIGHTS, GROUPS, st.sampled_from([0, 0.25, 0.6, 1]), PROBES)
def test_whatever_happens_weights_sum_to_one_and_the_chain_is_in_order(
    given_weights: list[float | None], groups: list[str], fraction: float, probes: list[tuple[int, bool]]
) -> None:
    listed = [weight for weight, group in zip(given_weights, groups, strict=True) if group and weight is not None]
    counted = listed or [weight for weight in given_weights if weight is not None]
    if None not in given_weights and not any(counted):
        return
    manager = serve(*documents(given_weights, groups, fraction))
    written = [str(n) for n, weight in enumerate(given_weights) if weight is not None]
    check(manager, written)
    for place, alive in probes:
        manager.probed(f"http://{place}", ProbeResult(None if alive else "reset"), 1.0)
        check(manager, written)


def check(manager: RoutingManager, written: list[str]) -> None:
    route = snapshot(manager).routes["llama"]
    assert sorted(chain(route)) == written
    assert sum(route.weights) == (1 if written else 0)
    assert sum(route.configured) == (1 if written else 0)
    assert all(weight >= 0 for weight in (*route.weights, *route.configured))
    assert list(zip(chain(route), route.weights, strict=True)) == list(expected_order(manager, written))
    assert route.cumulative[-1:] == ((1.0,) if written else ())


def expected_order(manager: RoutingManager, written: list[str]) -> Iterator[tuple[str, Fraction]]:
    """Order a chain as design.md tells it: the weighted by weight, weight 0 as written, then likewise those down."""
    current = snapshot(manager)
    route = current.routes["llama"]
    found, configured = weights(route), dict(zip(chain(route), route.configured, strict=True))
    weighted = sorted((name for name in written if found[name]), key=lambda name: -found[name])
    zero = [name for name in written if not found[name]]
    down = [name for name in zero if f"http://{name}" in current.down]
    down.sort(key=lambda name: -configured[name])
    for name in (*weighted, *(name for name in zero if name not in down), *down):
        yield name, found[name]


def test_notices_stand_in_the_order_of_the_files() -> None:
    models = "models: [{id: llama, base_url: '${A}'}, {id: other, base_url: '${B}'}]"
    assert [notice.split(": ")[2].split()[0] for notice in notices(models)] == ["A", "B"]
