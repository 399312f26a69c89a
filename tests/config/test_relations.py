import pytest

from tests.config.loading import faults, load


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        (
            "timeout: 3\ntimeouts: {connect: 2}",
            (
                "config/routing.yaml:2:21: timeouts.connect: found 2 beside a timeout of 3, expected one of the two: "
                "they are the same"
            ),
        ),
        (
            "breaker: {hold: 90}",
            "config/routing.yaml:1:17: breaker.hold: found 90, expected at most the longest_hold of 60",
        ),
        (
            "breaker: {longest_hold: 10}",
            "config/routing.yaml:1:25: breaker.longest_hold: found 10, expected at least the hold of 15",
        ),
        (
            "breaker: {hold: 20, longest_hold: 10}",
            "config/routing.yaml:1:35: breaker.longest_hold: found 10, expected at least the hold of 20",
        ),
        (
            "breaker: {hold: '${H}', longest_hold: 10}",
            "config/routing.yaml:1:39: breaker.longest_hold: found 10, expected at least the hold of the value of ${H}",
        ),
        (
            "clients: [{name: a, api_key: canary}, {name: b, api_key: canary}]",
            "config/routing.yaml:1:58: clients[1].api_key: found the key of clients[0], expected one of its own",
        ),
        (
            "clients: [{name: a, api_key: canary}, {name: b, api_key: other}, {name: a, api_key: '${H}'}]",
            "config/routing.yaml:1:73: clients[2].name: found the name of clients[0], expected one of its own",
        ),
        (
            "clients: [{name: a, api_key: '${H}'}, {name: b, api_key: '${H}'}]",
            "config/routing.yaml:1:58: clients[1].api_key: found the key of clients[0], expected one of its own",
        ),
    ],
)
def test_two_values_that_do_not_go_together_are_a_fault(routing: str, message: str) -> None:
    assert faults(routing=routing, environ={"H": "77"}) == [message]


@pytest.mark.parametrize(
    "routing",
    [
        "timeout: 3\ntimeouts: {idle: 2}",
        "timeout: 3\ntimeouts:",
        "timeout: '${EMPTY:-}'\ntimeouts: {connect: 2}",
        "timeout: 3\ntimeouts: {connect: }",
        "breaker: {hold: 60}",
        "breaker: {hold: 15, longest_hold: 15}",
        "breaker: {hold: 90, longest_hold: '${H}'}",
    ],
)
def test_two_values_that_do_are_none(routing: str) -> None:
    assert faults(routing=routing, environ={"H": "100"}) == []


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ("breaker: {hold: x, longest_hold: 1}", "breaker.hold: found 'x', expected a number"),
        ("breaker: {hold: 20, longest_hold: true}", "breaker.longest_hold: found true, expected a number"),
        ("breaker: {hold: 010}", "breaker.hold: found 010, which YAML 1.1 reads as octal"),
        ("timeout: 1_0\ntimeouts: {connect: 3}", "timeout: found 1_0, which YAML 1.1 reads as a number"),
        ("timeouts: [1]\ntimeout: 1", "timeouts: found a list, expected a mapping"),
    ],
)
def test_a_value_with_a_fault_of_its_own_has_no_second_one(routing: str, message: str) -> None:
    (fault,) = faults(routing=routing)
    assert message in fault


def test_they_are_told_beside_the_faults_of_fields() -> None:
    routing = "timeout: 3\ntimeouts: {connect: 2, idle: x}\nbreaker: {hold: 90, failures: 0}"
    assert [fault.split(": ")[1] for fault in faults(routing=routing)] == [
        "timeouts.connect",
        "timeouts.idle",
        "breaker.hold",
        "breaker.failures",
    ]


@pytest.mark.parametrize(
    ("routing", "places"),
    [
        ("health_check: {path: /ready}", ["1:15"]),
        ("timeout: 3\nhealth_check:\n  unhealthy_after: 3\n  healthy_after: 2", ["3:3"]),
        ("health_check: {path: /ready, interval: 0}", []),
        ("health_check: {path: /ready, interval: '${EMPTY:-}'}", []),
        ("health_check: {}\ntimeout: 3", []),
        ("health_check: 0", []),
        ("health_check:\ntimeout: 3", []),
        ("health_check: yes", []),
        ("timeout: 3", []),
    ],
)
def test_checks_without_an_interval_get_a_warning(routing: str, places: list[str]) -> None:
    told = "nothing is probed without an interval: set one, or 0 if that is meant"
    assert [str(notice) for notice in load(routing=routing).notices] == [
        f"config/routing.yaml:{place}: health_check: {told}" for place in places
    ]


@pytest.mark.parametrize(
    ("routing", "place", "told"),
    [
        ("health_check: 0.0001", "1:15: health_check", "found 0.0001, which makes 10,000 probes"),
        ("health_check: {interval: 0.05}", "1:26: health_check.interval", "found 0.05, which makes 20 probes"),
        ("health_check: '${EVERY}'", "1:15: health_check", "found the value of ${EVERY}, which makes 1,000 probes"),
    ],
)
def test_checks_that_never_rest_get_a_warning(routing: str, place: str, told: str) -> None:
    loaded = load(routing=routing, environ={"EVERY": "0.001"})
    expected = f"config/routing.yaml:{place}: {told} of each endpoint a second: an interval is in seconds, 5 is usual"
    assert (loaded.faults, [str(notice) for notice in loaded.notices]) == ((), [expected])


def test_checks_that_rest_a_little_get_none() -> None:
    assert load(routing="health_check: 0.1").notices == ()
