import pytest

from gateway.routing.health import UNKNOWN, Health, ProbeResult, observe

ALIVE, DEAD = ProbeResult(), ProbeResult("status 503")
UP, DOWN = Health("up", 1.0), Health("down", 1.0, "dns")
NOW = 9.0


def after(health: Health, *results: ProbeResult, unhealthy_after: int = 1, healthy_after: int = 1) -> Health:
    for result in results:
        health = observe(health, result, now=NOW, unhealthy_after=unhealthy_after, healthy_after=healthy_after)
    return health


@pytest.mark.parametrize(
    ("health", "result", "expected"),
    [
        (UNKNOWN, ALIVE, Health("up", NOW)),
        (UNKNOWN, DEAD, Health("down", NOW, "status 503")),
        (UP, ALIVE, UP),
        (UP, DEAD, Health("down", NOW, "status 503")),
        (DOWN, ALIVE, Health("up", NOW)),
        (DOWN, DEAD, Health("down", 1.0, "status 503")),
    ],
)
def test_one_probe_decides_by_default(health: Health, result: ProbeResult, expected: Health) -> None:
    assert after(health, result) == expected


@pytest.mark.parametrize(
    ("health", "results", "expected"),
    [
        (UNKNOWN, [DEAD], Health(streak=1)),
        (UNKNOWN, [DEAD, DEAD], Health("down", NOW, "status 503")),
        (UNKNOWN, [DEAD, ALIVE], Health("up", NOW)),
        (UP, [DEAD], Health("up", 1.0, streak=1)),
        (UP, [DEAD, ALIVE], UP),
        (UP, [DEAD, ALIVE, DEAD], Health("up", 1.0, streak=1)),
        (UP, [DEAD, DEAD], Health("down", NOW, "status 503")),
        (DOWN, [ALIVE, ALIVE], Health("down", 1.0, "dns", streak=2)),
        (DOWN, [ALIVE, ALIVE, DEAD], Health("down", 1.0, "status 503")),
        (DOWN, [ALIVE, ALIVE, DEAD, ALIVE, ALIVE], Health("down", 1.0, "status 503", streak=2)),
        (DOWN, [ALIVE, ALIVE, ALIVE], Health("up", NOW)),
    ],
)
def test_only_probes_in_a_row_count(health: Health, results: list[ProbeResult], expected: Health) -> None:
    assert after(health, *results, unhealthy_after=2, healthy_after=3) == expected


def test_the_first_good_probe_is_enough_for_the_unknown() -> None:
    assert after(UNKNOWN, ALIVE, healthy_after=5) == Health("up", NOW)


def test_unknown_counts_as_healthy() -> None:
    assert [health.usable for health in (UNKNOWN, UP, DOWN)] == [True, True, False]
