"""What both files say of clocks, bounds and fallbacks, in a snapshot and in what a reload tells."""

import pytest

from gateway.routing.snapshot import Bounds, BreakerLimits, Clocks, Settings
from tests.routing.planning import BOXES, DEAD, SPLIT, deployments, make, probe, serve, snapshot

CHAIN = """\
models:
  - {id: a, base_url: "http://a", aliases: [A], fallbacks: [b, D], context_length: 4096}
  - {id: b, base_url: "http://b", fallbacks: [c, D]}
  - {id: c, base_url: "http://c", aliases: [C]}
  - {id: d, base_url: "http://d", aliases: [D], fallbacks: [e, C]}
  - {id: e, base_url: "http://e", timeouts: {idle: 0, total: 90}}
"""


@pytest.mark.parametrize(
    ("routing", "clocks"),
    [
        (None, Clocks(connect=2, first_token=120, answer=600, idle=120, total=0)),
        ("timeout: 5", Clocks(connect=5)),
        ("timeouts: {connect: 5}", Clocks(connect=5)),
        ("timeout: 5\ntimeouts: {first_token: 10, idle: 0, total: 600}", Clocks(5, 10, 10, 0, 600)),
        ("timeouts: {first_token: 10, answer: 0}", Clocks(first_token=10, answer=0)),
        ("timeouts: {answer: 10}", Clocks(answer=10)),
        ("timeouts: {idle: '${IDLE}', total: '${NONE:-}'}", Clocks(idle=7)),
    ],
)
def test_the_clocks_are_those_of_routing_yaml(routing: str | None, clocks: Clocks) -> None:
    made = make(BOXES, routing, IDLE="7")
    assert made.settings.clocks == clocks
    assert made.settings.probe_timeout == clocks.connect
    assert made.routes["llama"].clocks == clocks


def test_a_model_has_clocks_of_its_own_over_them() -> None:
    made = make(CHAIN, "timeout: 5\ntimeouts: {first_token: 10, idle: 11}")
    assert made.routes["a"].clocks == Clocks(5, 10, 10, 11, 0)
    assert made.routes["e"].clocks == Clocks(5, 10, 10, 0, 90)


@pytest.mark.parametrize(
    ("routing", "own", "answer"),
    [
        ("", "first_token: 5", 5),
        ("first_token: 10", "idle: 5", 10),
        ("first_token: 10", "first_token: 5", 5),
        ("answer: 900", "first_token: 5", 900),
        ("first_token: 10, answer: 900", "first_token: 5, answer: 7", 7),
    ],
)
def test_an_answer_in_one_piece_has_the_time_to_a_first_token_unless_it_has_its_own(
    routing: str, own: str, answer: float
) -> None:
    made = make(CHAIN.replace("idle: 0, total: 90", own), f"timeouts: {{{routing}}}")
    assert made.routes["e"].clocks.answer == answer


def test_bounds_and_breaker_limits_are_those_of_routing_yaml() -> None:
    assert make(BOXES).settings == Settings()
    routing = (
        "retries: {attempts: 9, ratio: 0.5, retry_after_max: 0}\nbreaker: {failures: 3, hold: 1, longest_hold: 20}\n"
    )
    settings = make(BOXES, routing).settings
    assert (settings.bounds, settings.retry_ratio) == (Bounds(9, 0), 0.5)
    assert settings.breaker == BreakerLimits(3, 1, 20)


def test_what_a_model_names_comes_before_what_those_name() -> None:
    routes = make(CHAIN).routes
    assert {model: "".join(route.fallbacks) for model, route in routes.items() if model == route.model} == {
        "a": "bdce",
        "b": "cde",
        "c": "",
        "d": "ec",
        "e": "",
    }


def test_a_deployment_knows_its_models_context() -> None:
    made = make(CHAIN)
    assert [deployment.context_length for deployment in deployments(made, "a").values()] == [4096]
    assert [deployment.context_length for deployment in deployments(made, "b").values()] == [None]


def test_clocks_fallbacks_and_rescue_stay_when_a_box_dies() -> None:
    models = (
        BOXES
        + "    timeouts: {idle: 5}\n    fallbacks: [other]\n    rescue: off\n  - {id: other, base_url: 'http://o'}\n"
    )
    manager = serve(models, SPLIT)
    probe(manager, a=DEAD)
    route = snapshot(manager).routes["llama"]
    assert (route.clocks, route.fallbacks, route.rescue) == (Clocks(idle=5), ("other",), "off")
    assert snapshot(manager).routes["other"].rescue == "on"


def told(old: tuple[str, str | None], new: tuple[str, str | None]) -> dict[str, list[str]]:
    changes = serve(*old).adopt(make(*new))
    assert changes is not None
    return changes.as_dict()


def test_a_change_for_all_models_is_told_once() -> None:
    routing = """\
timeout: 3
timeouts: {first_token: 1, idle: 2, total: 4}
retries: {attempts: 5, ratio: 0.1, retry_after_max: 6}
breaker: {failures: 7, hold: 8, longest_hold: 9}
"""
    assert told((CHAIN, "timeout: 2"), (CHAIN, routing)) == {
        "settings": [
            "timeout: 2 -> 3",
            "timeouts.first_token: 120 -> 1",
            "timeouts.answer: 600 -> 1",
            "timeouts.idle: 120 -> 2",
            "timeouts.total: 0 -> 4",
            "retries.attempts: 6 -> 5",
            "retries.ratio: 0.2 -> 0.1",
            "retries.retry_after_max: 3 -> 6",
            "breaker.failures: 5 -> 7",
            "breaker.hold: 15 -> 8",
            "breaker.longest_hold: 60 -> 9",
        ]
    }


def test_what_changes_for_one_model_is_told_of_it() -> None:
    models = CHAIN.replace("idle: 0", "idle: 30, connect: 1").replace("[b, D]", "[c]").replace("[c, D]", "[]")
    assert told((CHAIN, "timeout: 2"), (models, "timeout: 2\ntimeouts: {idle: 50}")) == {
        "models_changed": [
            "a: fallbacks b, d, c, e -> c",
            "b: fallbacks c, d, e -> none",
            "e: timeouts.connect 2 -> 1",
            "e: timeouts.idle 0 -> 30",
        ],
        "settings": ["timeouts.idle: 120 -> 50"],
    }
