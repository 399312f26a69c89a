"""Breakers in the manager: who is out, who comes back and how, and what is kept over a reload."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.breakers import BreakerView
from gateway.routing.failures import TABLE, Cause, Failure
from gateway.routing.health import Health
from gateway.routing.itinerary import tiers_of, walk
from gateway.routing.manager import BreakerChange, HealthChange, RoutingManager
from gateway.routing.selector import Selector
from gateway.routing.snapshot import Bounds, Deployment
from tests.routing.planning import ALIVE, BOXES, DEAD, SPLIT, chain, make, probe, serve, snapshot, weights

ERROR = Failure(Cause.SERVER_ERROR, status=503)
REASON = "server_error (status 503)"
SPARE = """\
models:
  - id: llama
    route:
      - {name: a, base_url: "http://a:8000"}
      - {name: spare, base_url: "http://spare:8000", weight: 0}
"""
FRAGILE = SPLIT.replace(
    "routing_parameter: {local_fraction: 0.6}",
    "routing_strategy: tests.routing.guests:Tagged\n"
    "routing_parameter: {tiers: {all: {names: [a, b, cloud], share: 1}}}",
)


def get(manager: RoutingManager, name: str, model: str = "llama") -> Deployment:
    return next(each for each in snapshot(manager).routes[model].chain if each.name == name)


def fail(
    manager: RoutingManager, name: str, now: float = 0.0, times: int = 5, failure: Failure = ERROR
) -> list[object]:
    return [manager.failed(get(manager, name), failure, now) for _ in range(times)]


def now(manager: RoutingManager, model: str = "llama") -> dict[str, str]:
    return {name: str(weight) for name, weight in weights(snapshot(manager).routes[model]).items()}


def test_five_failures_take_a_deployments_weight_at_once() -> None:
    manager = serve(BOXES, SPLIT)
    old = snapshot(manager)
    deployment = get(manager, "a")
    assert fail(manager, "a", times=4) == [None] * 4
    assert snapshot(manager) is old
    [change] = fail(manager, "a", 7.0, times=1)
    assert change == BreakerChange(deployment, "closed", "open", REASON)
    assert now(manager) == {"b": "3/5", "cloud": "2/5", "a": "0"}
    assert (snapshot(manager).generation, snapshot(manager).revision) == (1, 1)
    assert snapshot(manager).out == {("llama", "a")}
    assert snapshot(manager).down == frozenset()
    assert repr(snapshot(manager)).startswith("<Snapshot 1.1 out=['llama/a'] ")


def test_only_its_own_model_is_touched() -> None:
    models = BOXES + "  - {id: other, route: [{name: a, base_url: 'http://a:8000'}, {base_url: 'http://x'}]}\n"
    manager = serve(models, SPLIT)
    old = snapshot(manager)
    fail(manager, "a")
    assert snapshot(manager).routes["other"] is old.routes["other"]
    assert manager.breaker(get(manager, "a", "other")) == BreakerView()


def test_successes_build_nothing() -> None:
    manager = serve(BOXES, SPLIT)
    old = snapshot(manager)
    assert [manager.succeeded(get(manager, "a"), float(second)) for second in range(100)] == [None] * 100
    assert snapshot(manager) is old
    assert not manager.ramping


def test_answers_that_break_off_open_it_unless_one_between_ends_well() -> None:
    manager = serve(BOXES, SPLIT)
    box = get(manager, "a")

    def broken(second: float) -> object:
        manager.succeeded(box, second)
        return manager.failed(box, Failure(Cause.CUT_ANSWER), second + 0.5, since=second)

    assert [broken(40.0 * number) for number in range(4)] == [None] * 4
    manager.succeeded(box, 160.0)
    manager.ended(box)
    assert [broken(200 + 40.0 * number) for number in range(4)] == [None] * 4
    assert broken(400.0) == BreakerChange(box, "closed", "open", "cut_answer")
    serve(BOXES.replace("http://a:8000", "http://z:8000"), SPLIT).ended(box)


@pytest.mark.parametrize("cause", [cause for cause in Cause if not TABLE[cause].blames and cause is not Cause.LOADING])
def test_who_is_not_to_blame_is_not_blamed(cause: Cause) -> None:
    manager = serve(BOXES, SPLIT)
    old = snapshot(manager)
    assert fail(manager, "a", times=50, failure=Failure(cause)) == [None] * 50
    assert snapshot(manager) is old


@pytest.mark.parametrize("cause", [cause for cause in Cause if TABLE[cause].blames and not TABLE[cause].out])
def test_who_is_to_blame_is_blamed(cause: Cause) -> None:
    manager = serve(BOXES, SPLIT)
    *_, change = fail(manager, "a", failure=Failure(cause))
    assert change == BreakerChange(get(manager, "a"), "closed", "open", cause.value)


@pytest.mark.parametrize(("cause", "hold"), [(Cause.KEY_REFUSED, 600), (Cause.MODEL_MISSING, 60)])
def test_what_lasts_takes_a_deployment_out_at_once(cause: Cause, hold: int) -> None:
    manager = serve(BOXES, SPLIT)
    [change] = fail(manager, "cloud", times=1, failure=Failure(cause, status=401))
    assert change == BreakerChange(get(manager, "cloud"), "closed", "open", f"{cause.value} (status 401)", lasting=True)
    assert now(manager) == {"a": "1/2", "b": "1/2", "cloud": "0"}
    route = snapshot(manager).routes["llama"]
    assert manager.probe_due(route, hold - 0.1) is None
    assert manager.probe_due(route, hold) == get(manager, "cloud")


def test_with_all_out_the_weights_are_as_configured() -> None:
    manager = serve(BOXES, SPLIT)
    for name in ("a", "cloud"):
        fail(manager, name)
    probe(manager, b=DEAD)
    assert now(manager) == {"cloud": "2/5", "a": "3/10", "b": "3/10"}
    assert not any(manager.admits(each, 1.0) for each in snapshot(manager).routes["llama"].chain)


def test_one_request_tries_when_the_hold_is_over() -> None:
    manager = serve(BOXES, SPLIT)
    route = snapshot(manager).routes["llama"]
    assert manager.probe_due(route, 0.0) is None
    fail(manager, "a")
    a = get(manager, "a")
    assert manager.probe_due(route, 14.9) is None
    assert not manager.admits(a, 14.9)
    assert manager.probe_due(route, 15.0) is a
    assert manager.admits(a, 15.0)
    assert manager.probe_due(route, 15.0) is None
    assert not manager.admits(a, 100.0)
    assert manager.breaker(a) == BreakerView("half_open", 15.0, REASON)
    assert now(manager)["a"] == "0"


def test_the_trial_goes_to_no_spare_and_to_no_box_that_is_down() -> None:
    manager = serve(SPARE, "health_check: 1")
    fail(manager, "a")
    fail(manager, "spare")
    route = snapshot(manager).routes["llama"]
    assert manager.probe_due(route, 99.0) is get(manager, "a")
    probe(manager, a=DEAD)
    assert manager.probe_due(route, 99.0) is None
    assert not manager.admits(get(manager, "a"), 99.0)
    assert manager.admits(get(manager, "spare"), 99.0)


def test_a_route_of_before_a_reload_has_nobody_due() -> None:
    manager = serve(BOXES, SPLIT)
    old = snapshot(manager).routes["llama"]
    manager.adopt(make(BOXES.replace("a:8000", "new:8000"), SPLIT.replace("a:8000", "new:8000")))
    fail(manager, "a")
    assert manager.probe_due(old, 99.0) is None


def test_a_route_that_nobody_has_asked_yet_may_be_asked_again_soon() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    route = snapshot(manager).routes["llama"]
    assert manager.retry_after(route, 1.0) == 1
    fail(manager, "b")
    fail(manager, "cloud", 5.0)
    assert manager.retry_after(route, 6.0) == 9
    manager.adopt(make("models: [{id: llama, base_url: 'http://new:8000'}]"))
    assert manager.retry_after(route, 6.0) == 1


def test_a_trial_that_fails_doubles_the_hold_and_changes_no_snapshot() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    old = snapshot(manager)
    a = get(manager, "a")
    manager.admits(a, 15.0)
    assert manager.failed(a, ERROR, 16.0) is None
    assert snapshot(manager) is old
    assert manager.retry_after(old.routes["llama"], 16.0) == 1
    assert (manager.admits(a, 45.9), manager.admits(a, 46.0)) == (False, True)


@pytest.mark.parametrize("cause", [None, Cause.CONTEXT_LENGTH, Cause.LOCAL_FAULT])
def test_a_trial_that_learned_nothing_is_made_again(cause: Cause | None) -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    a = get(manager, "a")
    manager.admits(a, 15.0)
    if cause:
        assert manager.failed(a, Failure(cause), 16.0) is None
    else:
        manager.left(a, 16.0)
    assert manager.probe_due(snapshot(manager).routes["llama"], 16.0) is a


def test_a_trial_that_succeeds_brings_it_back_in_ten_steps() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    a = get(manager, "a")
    manager.admits(a, 15.0)
    assert manager.succeeded(a, 20.5) == BreakerChange(a, "half_open", "closed")
    assert manager.breaker(a) == BreakerView("closed", 20.5)
    assert snapshot(manager).out == frozenset()
    found = [weights(snapshot(manager).routes["llama"])["a"]]
    while manager.ramping:
        assert manager.tick(21.0 + len(found) - 0.5) == ()
        found.append(weights(snapshot(manager).routes["llama"])["a"])
        assert sum(snapshot(manager).routes["llama"].weights) == 1
    share, others = Fraction(3, 10), Fraction(7, 10)
    assert found == [share * part / (others + share * part) for part in (Fraction(k, 10) for k in range(1, 11))]
    assert snapshot(manager).routes["llama"] == make(BOXES, SPLIT).routes["llama"]
    assert snapshot(manager).revision == 11


def test_a_late_tick_skips_steps_and_an_early_one_changes_nothing() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    manager.succeeded(get(manager, "a"), 20.0)
    old = snapshot(manager)
    manager.tick(20.9)
    assert snapshot(manager) is old
    manager.tick(99.0)
    assert now(manager) == {"cloud": "2/5", "a": "3/10", "b": "3/10"}
    assert not manager.ramping
    manager.tick(100.0)
    assert snapshot(manager).revision == old.revision + 1


def test_the_only_weighted_one_has_everything_again_at_once() -> None:
    manager = serve(SPARE)
    fail(manager, "a")
    assert now(manager) == {"spare": "1", "a": "0"}
    manager.succeeded(get(manager, "a"), 20.0)
    assert now(manager) == {"a": "1", "spare": "0"}
    manager.tick(22.0)
    assert now(manager) == {"a": "1", "spare": "0"}


def test_a_slow_start_goes_on_while_another_goes_out() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    manager.succeeded(get(manager, "a"), 20.0)
    fail(manager, "cloud", 20.0)
    assert now(manager) == {"b": "10/11", "a": "1/11", "cloud": "0"}


def test_a_slow_start_ends_when_it_fails_again() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    manager.succeeded(get(manager, "a"), 20.0)
    fail(manager, "a", 21.0)
    assert not manager.ramping
    assert now(manager) == {"b": "3/5", "cloud": "2/5", "a": "0"}


def test_health_and_breaker_do_not_change_each_other() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    probe(manager, a=ALIVE)
    assert manager.breaker(get(manager, "a")).state == "open"
    assert now(manager)["a"] == "0"
    probe(manager, a=DEAD)
    manager.succeeded(get(manager, "a"), 20.0)
    assert manager.health("http://a:8000").state == "down"
    assert now(manager)["a"] == "0"
    probe(manager, a=ALIVE)
    assert now(manager)["a"] == "3/73"


def test_a_strategy_that_cannot_follow_leaves_the_route_as_it_is() -> None:
    manager = serve(BOXES, FRAGILE)
    *_, change = fail(manager, "b")
    assert isinstance(change, BreakerChange)
    assert "b is gone" in str(change.problem)
    assert now(manager) == {"a": "1/3", "b": "1/3", "cloud": "1/3"}
    assert snapshot(manager).out == {("llama", "b")}
    assert not manager.admits(get(manager, "b"), 1.0)


def reload(manager: RoutingManager, models: str = BOXES, routing: str = SPLIT.replace("0.6", "0.8")) -> None:
    assert manager.adopt(make(models, routing)) is not None


def test_an_open_breaker_outlives_a_reload() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    old = get(manager, "a")
    reload(manager)
    assert now(manager) == {"b": "4/5", "cloud": "1/5", "a": "0"}
    assert snapshot(manager).out == {("llama", "a")}
    assert manager.breaker(old).state == "open"
    assert manager.succeeded(old, 20.0) is not None
    assert manager.breaker(get(manager, "a")).state == "closed"


def test_a_slow_start_outlives_a_reload() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a")
    manager.succeeded(get(manager, "a"), 20.0)
    reload(manager)
    assert manager.ramping
    assert now(manager) == {"b": "5/8", "cloud": "5/16", "a": "1/16"}
    manager.tick(29.0)
    assert now(manager) == {"a": "2/5", "b": "2/5", "cloud": "1/5"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"http://a:8000"', '"http://a:8001"'),
        ('"http://a:8000"', '"http://a:8000/v2"'),
        ('"http://a:8000"', '"http://a:8000", api_key: k'),
        ('"http://a:8000"', '"http://a:8000", provider_model_id: q8'),
        ('"http://a:8000"', '"http://a:8000", kind: sglang'),
    ],
)
def test_a_breaker_is_closed_when_its_deployment_is_another_thing(old: str, new: str) -> None:
    manager = serve(BOXES)
    fail(manager, "a")
    before = get(manager, "a")
    manager.adopt(make(BOXES.replace(old, new)))
    assert snapshot(manager).out == frozenset()
    assert manager.breaker(get(manager, "a")) == BreakerView()
    assert [manager.failed(before, ERROR, 1.0) for _ in range(9)] == [None] * 9
    assert manager.succeeded(before, 1.0) is None
    manager.left(before, 1.0)
    assert manager.admits(before, 1.0)
    assert manager.breaker(before) == BreakerView()
    after, found = get(manager, "a"), []
    for second in range(5):
        manager.succeeded(after, second)
        manager.ended(before)
        found.append(manager.failed(after, Failure(Cause.CUT_ANSWER), second, since=second))
    assert found == [None] * 4 + [BreakerChange(after, "closed", "open", "cut_answer")]


def test_a_slow_start_is_over_when_its_deployment_is_another_thing() -> None:
    manager = serve(BOXES)
    fail(manager, "a")
    manager.succeeded(get(manager, "a"), 20.0)
    new = make(BOXES.replace("a:8000", "new:8000"))
    manager.adopt(new)
    assert not manager.ramping
    assert snapshot(manager).routes == new.routes


def test_a_breaker_is_forgotten_with_its_deployment() -> None:
    manager = serve(BOXES)
    fail(manager, "a")
    manager.adopt(make(BOXES.replace("name: a", "name: x")))
    manager.adopt(make(BOXES))
    assert snapshot(manager).out == frozenset()


def test_what_lasts_is_forgotten_by_every_reload() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a", failure=Failure(Cause.KEY_REFUSED), times=1)
    reload(manager)
    assert snapshot(manager).out == frozenset()


def test_a_silent_reload_changes_no_breaker() -> None:
    manager = serve(BOXES, SPLIT)
    fail(manager, "a", failure=Failure(Cause.KEY_REFUSED), times=1)
    assert manager.adopt(make(BOXES, SPLIT + "\n")) is None
    assert snapshot(manager).out == {("llama", "a")}


def test_the_limits_are_those_of_the_last_configuration() -> None:
    manager = serve(BOXES, SPLIT + "breaker: {failures: 2, hold: 1, longest_hold: 2}\n")
    assert fail(manager, "a", times=2)[-1] is not None
    assert manager.probe_due(snapshot(manager).routes["llama"], 1.0) is get(manager, "a")
    reload(manager)
    assert fail(manager, "b", times=4) == [None] * 4


def test_when_a_client_should_ask_again() -> None:
    manager = serve(BOXES, SPLIT)
    route = snapshot(manager).routes["llama"]
    for second, name in enumerate(("a", "b", "cloud")):
        fail(manager, name, float(second))
    assert manager.retry_after(route, 2.0) == 13
    assert manager.retry_after(route, 2.5) == 13
    assert manager.retry_after(route, 500.0) == 1
    empty = serve("models: [{id: llama, base_url: '${X}'}]")
    assert empty.retry_after(snapshot(empty).routes["llama"], 0.0) == 1


def test_times_are_shown_since_the_epoch() -> None:
    epoch = [1_000.0]
    manager = RoutingManager(lambda: epoch[0])
    manager.adopt(make(BOXES, SPLIT))
    fail(manager, "a", 7.0)
    assert manager.breaker(get(manager, "a")) == BreakerView("open", 1_007.0, REASON)
    change = manager.failed(get(manager, "b"), Failure(Cause.LOADING, status=503), 8.0)
    assert change == HealthChange("http://b:8000", Health(), Health("loading", 1_008.0, "loading"))
    epoch[0] = 5_000.0
    assert manager.breaker(get(manager, "a")).since == 5_007.0


def test_before_there_is_anything_nothing_happens() -> None:
    deployment = get(serve(BOXES, SPLIT), "a")
    manager = RoutingManager()
    manager.requested("llama", 1.0)
    assert not manager.may_retry("llama", 1.0)
    assert manager.admits(deployment, 1.0)
    assert manager.failed(deployment, ERROR, 1.0) is None
    assert manager.failed(deployment, Failure(Cause.LOADING), 1.0) is None
    assert manager.succeeded(deployment, 1.0) is None
    assert manager.breaker(deployment) == BreakerView()
    assert manager.tick(1.0) == ()
    assert not manager.ramping
    assert manager._reweigh(("llama",)) is None


def test_second_tries_are_budgeted_for_each_model_and_over_reloads() -> None:
    manager = serve(BOXES + "  - {id: other, base_url: 'http://other'}\n", SPLIT)
    assert sum(manager.may_retry("llama", 1.0) for _ in range(100)) == 10
    assert manager.may_retry("other", 1.0)
    for _ in range(100):
        manager.requested("llama", 1.0)
    assert sum(manager.may_retry("llama", 1.0) for _ in range(100)) == 10
    reload(manager, routing=SPLIT + "retries: {ratio: 0.5}\n")
    assert sum(manager.may_retry("llama", 1.0) for _ in range(100)) == 30
    assert not manager.may_retry("other", 1.0)
    manager.requested("other", 1.0)


def ramps(manager: RoutingManager) -> bool:
    return manager.ramping


LOADING = Failure(Cause.LOADING, status=503)


def test_a_box_that_loads_is_left_alone_until_a_probe_says_more() -> None:
    manager = serve(BOXES, SPLIT)
    change = manager.failed(get(manager, "a"), LOADING, 7.0)
    assert change == HealthChange("http://a:8000", Health(), Health("loading", 7.0, "loading"))
    assert now(manager) == {"b": "3/5", "cloud": "2/5", "a": "0"}
    assert snapshot(manager).down == {"http://a:8000"}
    assert snapshot(manager).out == frozenset()
    assert not manager.admits(get(manager, "a"), 7.0)
    old = snapshot(manager)
    assert manager.failed(get(manager, "a"), LOADING, 8.0) is None
    assert snapshot(manager) is old
    assert not manager.ramping
    [back] = probe(manager, a=ALIVE)
    assert back is not None
    assert (back.old.state, back.new.state) == ("loading", "up")
    assert now(manager)["a"] == "3/10"
    assert manager.breaker(get(manager, "a")) == BreakerView()


def test_without_probes_a_box_that_loads_is_left_alone_for_two_seconds() -> None:
    manager = serve(BOXES, SPLIT.replace("health_check: 5", "health_check: 0"))
    manager.failed(get(manager, "a"), LOADING, 7.0)
    assert ramps(manager)
    assert manager.tick(8.9) == ()
    assert now(manager)["a"] == "0"
    assert manager.tick(9.0) == (HealthChange("http://a:8000", Health("loading", 7.0, "loading"), Health()),)
    assert now(manager)["a"] == "3/10"
    assert not ramps(manager)
    manager.failed(get(manager, "a"), LOADING, 10.0)
    manager.failed(get(manager, "a"), LOADING, 11.0)
    assert manager.tick(12.5) == ()
    assert len(manager.tick(13.0)) == 1


def test_a_reload_without_probes_forgets_who_loads() -> None:
    routing = SPLIT.replace("health_check: 5", "health_check: 0")
    manager = serve(BOXES, routing)
    manager.failed(get(manager, "a"), LOADING, 7.0)
    reload(manager, routing=routing.replace("0.6", "0.8"))
    assert not manager.ramping
    assert snapshot(manager).down == frozenset()


def test_a_box_that_is_gone_does_not_load() -> None:
    manager = serve(BOXES)
    gone = get(manager, "a")
    manager.adopt(make(BOXES.replace("a:8000", "new:8000")))
    assert manager.failed(gone, LOADING, 1.0) is None
    assert snapshot(manager).down == frozenset()


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["good", "bad", "worse", "loads", "left", "ask", "dead", "alive", "tick", "reload"]),
        st.sampled_from(["a", "b", "cloud"]),
        st.floats(0, 10),
    ),
    max_size=60,
)


@pytest.mark.exhaustive
@given(ACTS, st.sampled_from([SPLIT, SPLIT.replace("0.6", "1.0"), SPLIT.replace("check: 5", "check: 0")]))
def test_whatever_happens_the_weights_sum_to_one_and_the_snapshot_says_who_is_out(
    acts: list[tuple[str, str, float]], routing: str
) -> None:
    manager, at, number = serve(BOXES, routing), 0.0, 0
    for act, name, elapsed in acts:
        at += elapsed
        deployment = get(manager, name)
        before = snapshot(manager)
        match act:
            case "good":
                manager.succeeded(deployment, at)
            case "bad":
                fail(manager, name, at, times=3)
            case "worse":
                manager.failed(deployment, Failure(Cause.KEY_REFUSED), at)
            case "loads":
                manager.failed(deployment, LOADING, at)
            case "left":
                manager.left(deployment, at)
            case "ask":
                manager.admits(deployment, at)
            case "dead" | "alive":
                probe(manager, **{name: DEAD if act == "dead" else ALIVE})
            case "tick":
                manager.tick(at)
            case _:
                number += 1
                reload(manager, routing=routing + f"timeout: {number}\n")
        current = snapshot(manager)
        assert (current is before) or (current.generation, current.revision) > (before.generation, before.revision)
        check(manager)


def check(manager: RoutingManager) -> None:
    current = snapshot(manager)
    route = current.routes["llama"]
    assert sum(route.weights) == 1
    assert route.cumulative[-1] == 1.0
    open_ = {each.identity for each in route.chain if manager.breaker(each).state != "closed"}
    down = {each.endpoint.identity for each in route.chain if not manager.health(each.endpoint.identity).usable}
    assert current.out == open_
    assert current.down == down
    usable = [each for each in route.chain if each.identity not in open_ and each.endpoint.identity not in down]
    if usable:
        given_weight = [each for each, weight in zip(route.chain, route.weights, strict=True) if weight]
        assert set(given_weight) <= set(usable)
    else:
        assert route.weights == route.configured
    assert sorted(chain(route)) == ["a", "b", "cloud"]


def attempts(manager: RoutingManager, at: float, dead: frozenset[str], model: str = "llama") -> Iterator[str]:
    """Play one request of the executor's: what is dead answers 503, the rest answers."""
    current = snapshot(manager)
    route = current.routes[model]
    manager.requested(model, at)
    steps = walk(
        tiers_of(current, route, Selector(lambda: 0.0).order, manager.probe_due(route, at)),
        Bounds(),
        lambda: manager.may_retry(model, at),
        lambda: 0.5,
        lambda each: manager.admits(each, at),
    )
    step = next(steps, None)
    while step is not None:
        yield step.deployment.name
        if step.deployment.name not in dead:
            manager.succeeded(step.deployment, at)
            return
        manager.failed(step.deployment, ERROR, at, again=step.again)
        try:
            step = steps.send(ERROR)
        except StopIteration:
            step = None


@pytest.mark.parametrize("phase", [0.0, 1.0, 2.5, 3.9])
def test_a_box_that_is_down_for_a_minute_is_back_within_thirty_seconds(phase: float) -> None:
    """A request each 4 s: all are served, few ask the box that is down for 60 s, and it is back soon after."""
    manager = serve(SPARE)
    times = [phase + 4 * number for number in range(30)]
    went = {at: list(attempts(manager, at, frozenset({"a"} if at < 60 else ()))) for at in times}
    assert {names[-1] for at, names in went.items() if at < 60} == {"spare"}
    assert sum("a" in names for at, names in went.items() if at < 60) <= 6
    assert all(names == ["a"] for at, names in went.items() if at >= 90)
    assert snapshot(manager).out == frozenset()


def test_successes_count_from_the_first_request_on() -> None:
    manager = serve(BOXES, SPLIT)
    for _ in range(20):
        manager.succeeded(get(manager, "a"), 0.0)
    for _ in range(3):
        assert fail(manager, "a", times=4) == [None] * 4
        manager.succeeded(get(manager, "a"), 0.0)
    assert snapshot(manager).out == frozenset()
