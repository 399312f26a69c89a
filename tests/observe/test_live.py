import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.observe.batch import Batch
from gateway.observe.live import BACK, KEPT, REQUESTS, Live, percentiles
from tests.observe.outcomes import attempt, count, ended


class Clock:
    def __init__(self) -> None:
        self.now = 1000.25

    def __call__(self) -> float:
        return self.now


def test_a_second_holds_what_ended_in_it() -> None:
    clock = Clock()
    live = Live(clock)
    count(live, ended(tokens=20, first=100.0))
    count(live, ended(attempt("a", "server_error"), attempt("b"), tokens=5))
    clock.now += 1
    count(live, ended(attempt("a", "server_error"), status=502, failure="server_error"))
    first, second = live.seconds
    assert (first.at, first.requests, first.errors, first.fallbacks, first.tokens) == (1000, 2, 0, 1, 25)
    assert (first.answers, first.failures) == ({("m", "a"): 1, ("m", "b"): 1}, {("m", "a"): 1})
    assert (second.at, second.requests, second.errors, second.fallbacks, second.tokens) == (1001, 1, 1, 0, 0)
    assert (live.began, live.number) == (1000, 3)


@pytest.mark.parametrize(("told", "counted"), [(None, 0), (0, 0), (7, 7)])
def test_tokens_are_counted_where_they_are_told(told: int | None, counted: int) -> None:
    live = Live(Clock())
    count(live, ended(tokens=told))
    assert live.seconds[0].tokens == counted


def test_seconds_without_a_request_take_no_room() -> None:
    clock = Clock()
    live = Live(clock)
    for _ in range(KEPT + 5):
        clock.now += 100
        count(live, ended())
    assert len(live.seconds) == KEPT
    assert live.seconds[-1].at == int(clock.now)


def test_a_clock_that_goes_back_is_counted_in_the_second_it_left() -> None:
    clock = Clock()
    live = Live(clock)
    count(live, ended())
    clock.now -= BACK
    count(live, ended())
    assert [(second.at, second.requests) for second in live.seconds] == [(1000, 2)]


def test_a_clock_that_goes_back_far_begins_the_seconds_anew() -> None:
    clock = Clock()
    live = Live(clock)
    clock.now += 500
    count(live, ended())
    clock.now -= 600
    count(live, ended())
    clock.now += 1
    count(live, ended())
    live.look(clock.now)
    assert [second.at for second in live.seconds] == [900, 901]
    assert (live.number, live.began, live.first, live.since, live.steps) == (3, 900, 900, 900.25, 1)


def test_only_streams_have_a_first_token() -> None:
    live = Live(Clock())
    count(live, ended(first=100.0, stream=False))
    assert percentiles([live.seconds[0].first], 0.5) is None
    count(live, ended(first=0.4))
    assert percentiles([live.seconds[0].first], 0.5) == [1.0]


def test_the_last_requests_are_kept_and_numbered() -> None:
    live = Live(Clock())
    for _ in range(REQUESTS + 3):
        count(live, ended())
    assert [number for number, _, _ in live.requests] == list(range(4, REQUESTS + 4))
    assert live.requests[-1][1:] == (1000.25, ended())


def test_a_name_as_long_as_a_body_is_not_kept() -> None:
    live = Live(Clock())
    count(live, ended(model="x" * 1_000_000))
    assert live.requests[0][2].model == "x" * 200 + "..."


def test_another_configuration_begins_the_shares_anew_and_keeps_the_rest() -> None:
    live = Live(Clock())
    count(live, ended(attempt("a", "server_error"), attempt("b")))
    live.rebase(2)
    [second] = live.seconds
    assert (live.generation, second.answers, second.failures, second.stood_in, second.late) == (2, {}, {}, {}, {})
    assert second.requests == 1


def test_the_shares_are_those_since_the_start_until_another_configuration_is_in_force() -> None:
    clock = Clock()
    live = Live(clock)
    clock.now += 5
    live.rebase(1)
    assert live.since == clock.now - 5
    clock.now += 5
    live.rebase(2)
    assert live.since == clock.now


@pytest.mark.parametrize("few", [3, 12])
def test_who_stood_in_and_who_was_drawn_by_an_earlier_configuration_is_counted(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.observe.batch._FEW", few)
    live = Live(Clock())
    live.rebase(2)
    drawn, early = ended(attempt("a")), replace(ended(attempt("b")), generation=1)
    again = replace(drawn, generation=2)
    stood_in = replace(ended(attempt("a", "server_error"), attempt("b")), generation=2)
    live.take(Batch([1000.5] * 8, [early] * 3 + [drawn] + [again] * 3 + [stood_in]))
    [second] = live.seconds
    assert second.answers == {("m", "a"): 4, ("m", "b"): 4}
    assert second.late == {("m", "a"): 1, ("m", "b"): 3}
    assert second.stood_in == {("m", "b"): 1}


@pytest.mark.parametrize(
    ("status", "failure", "counts"),
    [
        (200, None, False),
        (200, "stalled", True),
        (400, None, False),
        (404, "model_not_found", False),
        (429, "rate_limited", True),
        (499, "client_left", False),
        (502, "server_error", True),
        (503, "no_deployment", True),
    ],
)
def test_an_error_is_what_the_one_who_asked_could_not_help(status: int, failure: str | None, *, counts: bool) -> None:
    outcome = ended(status=status, failure=failure)
    assert outcome.is_error is counts
    live = Live(Clock())
    count(live, outcome)
    assert live.seconds[0].errors == counts


@given(st.lists(st.floats(1, 10_000_000), min_size=1, max_size=60), st.integers(1, 5), st.sampled_from([0.5, 0.99]))
def test_a_percentile_is_at_most_so_far_off(times: list[float], parts: int, quantile: float) -> None:
    lives = [Live(Clock()) for _ in range(parts)]
    for place, milliseconds in enumerate(times):
        count(lives[place % parts], ended(first=milliseconds))
    told = percentiles([second.first for live in lives for second in live.seconds], quantile)
    assert told is not None
    exact = sorted(times)[-(-round(quantile * 100) * len(times) // 100) - 1]
    assert told[0] == pytest.approx(exact, rel=0.03, abs=0.06)


def test_a_clock_that_goes_back_bit_by_bit_is_set_back_once_it_is_far() -> None:
    clock = Clock()
    live = Live(clock)
    count(live, ended())
    for _ in range(3):
        clock.now -= BACK / 2
        live.look(clock.now)
    assert (live.steps, list(live.seconds), live.since) == (1, [], clock.now)


def test_a_clock_that_goes_back_within_the_second_before_leaves_the_seconds_in_order() -> None:
    clock = Clock()
    live = Live(clock)
    count(live, ended())
    clock.now -= 0.5
    count(live, ended())
    assert [(second.at, second.requests) for second in live.seconds] == [(1000, 2)]


def test_a_400_is_no_error_of_ours() -> None:
    refused = ended(attempt("a", "request_refused"), status=400, failure="request_refused")
    assert not refused.is_error
