from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.breaker import LEAST, WINDOW, Breaker
from gateway.routing.snapshot import BreakerLimits

LIMITS = BreakerLimits(failures=5, hold=15, longest_hold=60)
REASON = "server_error (status 503)"


def fail(breaker: Breaker, now: float, times: int = 1, *, again: bool = False) -> list[bool]:
    return [breaker.failed(REASON, now, LIMITS, again=again) for _ in range(times)]


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    fail(breaker, now, 5)
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    assert fail(breaker, 7.0, 5) == [False, False, False, False, True]
    assert (breaker.state, breaker.reason, breaker.since) == ("open", REASON, 7.0)
    assert repr(breaker) == f"<open {REASON}>"


def test_a_success_between_begins_the_row_anew() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, 4)
    assert not breaker.succeeded(1.0)
    assert fail(breaker, 2.0, 4) == [False] * 4
    assert (breaker.state, breaker.reason, breaker.since) == ("closed", None, None)
    assert repr(breaker) == "<closed>"


def broken(breaker: Breaker, now: float, after: float = 0.0) -> bool:
    """Let an answer break off so many seconds after its first content."""
    breaker.succeeded(now)
    return breaker.failed("cut_answer", now + after, LIMITS, since=now)


def test_five_answers_in_a_row_that_break_off_open_it() -> None:
    """The first content of each used to begin the row anew."""
    breaker = Breaker()
    for second in range(20):
        breaker.succeeded(second)
        breaker.ended()
    assert [broken(breaker, 20 + second) for second in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("whole", [False, True])
def test_an_answer_that_ends_well_ends_a_row_of_breaks(*, whole: bool) -> None:
    breaker = Breaker()
    assert not any(broken(breaker, 40.0 * number) for number in range(4))
    breaker.succeeded(160.0, whole=whole)
    if not whole:
        breaker.ended()
    assert [broken(breaker, 200 + 40.0 * number) for number in range(5)] == [False] * 4 + [True]


def test_a_first_content_ends_a_row_of_failures_but_not_of_breaks() -> None:
    breaker = Breaker()
    for number in range(3):
        fail(breaker, 100.0 * number)
        assert not broken(breaker, 100.0 * number)
    assert fail(breaker, 300.0, 2) == [False, True]


def test_an_answer_that_ends_well_leaves_the_failures_since_its_first_content() -> None:
    breaker = Breaker()
    broken(breaker, 0.0)
    breaker.succeeded(100.0)
    assert fail(breaker, 100.0, 3) == [False] * 3
    breaker.ended()
    assert fail(breaker, 100.0, 2) == [False, True]


def test_an_answer_that_broke_off_is_one_request_of_the_thirty_seconds() -> None:
    breaker = Breaker()
    found = []
    for second in range(5):
        breaker.succeeded(second)
        breaker.ended()
        found.append(broken(breaker, second))
    assert found == [False] * 4 + [True], "half of ten"


def test_a_break_takes_back_no_success_but_its_own() -> None:
    breaker = Breaker()
    assert not broken(breaker, 0.0, after=100.0)
    breaker = opened()
    breaker.admits(15.0)
    assert breaker.succeeded(15.0)
    assert not breaker.failed("cut_answer", 15.5, LIMITS, since=15.0)
    assert breaker.state == "closed"
    breaker = Breaker()
    for now in (0.0, *[30.0] * 5):
        breaker.succeeded(now)
    assert not breaker.failed("cut_answer", 30.0, LIMITS, since=0.0)
    breaker.ended()
    assert fail(breaker, 30.0, 4) == [False] * 3 + [True], "half of ten"


def test_a_second_try_that_breaks_off_counts() -> None:
    breaker = Breaker()
    for _ in range(4):
        fail(breaker, 0.0)
        breaker.succeeded(0.0)
        assert not breaker.failed("cut_answer", 0.0, LIMITS, again=True, since=0.0)
    assert fail(breaker, 0.0) == [True]


def test_a_rows_failures_may_be_hours_apart() -> None:
    breaker = Breaker()
    assert [fail(breaker, 3600.0 * hour)[0] for hour in range(5)] == [False, False, False, False, True]


def alternate(breaker: Breaker, times: int, step: float) -> list[bool]:
    found = []
    for number in range(times):
        now = number * step
        found.append(breaker.succeeded(now) if number % 2 == 0 else fail(breaker, now)[0])
    return found


def test_half_of_ten_within_thirty_seconds_open_it() -> None:
    assert alternate(Breaker(), 10, 3.0) == [False] * 9 + [True]


def test_half_of_nine_does_not() -> None:
    assert alternate(Breaker(), 8, 3.0) == [False] * 8


def test_what_is_older_than_thirty_seconds_does_not_count() -> None:
    assert alternate(Breaker(), 30, 4.0) == [False] * 30


def test_less_than_half_does_not_open_it() -> None:
    breaker = Breaker()
    for now in range(100):
        breaker.succeeded(now / 10)
        breaker.succeeded(now / 10)
        assert fail(breaker, now / 10) == [False]


def test_a_second_try_of_the_same_request_is_no_second_failure() -> None:
    breaker = Breaker()
    for now in range(4):
        assert fail(breaker, now) == [False]
        assert fail(breaker, now, again=True) == [False]
    assert breaker.state == "closed"
    assert fail(breaker, 4.0) == [True]


def test_it_stays_open_for_its_hold_and_then_lets_one_request_in() -> None:
    breaker = opened()
    assert (breaker.due(14.9), breaker.admits(14.9), breaker.remaining(14.0)) == (False, False, 1.0)
    assert breaker.due(15.0)
    assert breaker.state == "open"
    assert [breaker.admits(15.0), breaker.admits(15.0), breaker.admits(1e6)] == [True, False, False]
    assert (breaker.state, breaker.reason, breaker.since) == ("half_open", REASON, 15.0)
    assert (breaker.due(1e6), breaker.remaining(15.0)) == (False, 0.0)


def test_first_content_closes_it() -> None:
    breaker = opened()
    breaker.admits(15.0)
    assert breaker.succeeded(16.0)
    assert (breaker.state, breaker.reason, breaker.since) == ("closed", None, 16.0)
    assert breaker.admits(16.0)
    assert fail(breaker, 17.0, 4) == [False] * 4


def test_first_content_closes_it_also_when_it_was_tried_for_want_of_others() -> None:
    breaker = opened()
    assert breaker.succeeded(1.0)
    assert breaker.state == "closed"


def test_the_hold_doubles_with_each_trial_that_fails_and_begins_anew_once_closed() -> None:
    breaker, now, holds = opened(), 0.0, []
    for _ in range(4):
        hold = breaker.remaining(now)
        holds.append(hold)
        now += hold
        assert breaker.admits(now)
        assert fail(breaker, now) == [False]
        assert breaker.state == "open"
    assert holds == [15, 30, 60, 60]
    now += 60
    breaker.admits(now)
    breaker.succeeded(now)
    fail(breaker, now, 5)
    assert breaker.remaining(now) == 15


def test_failures_while_it_is_open_change_nothing() -> None:
    breaker = opened()
    assert fail(breaker, 10.0, 20) == [False] * 20
    assert breaker.remaining(10.0) == 5
    breaker.admits(15.0)
    breaker.succeeded(15.0)
    assert fail(breaker, 15.0, 4) == [False] * 4


def test_a_trial_that_learned_nothing_is_followed_by_another() -> None:
    breaker = opened()
    breaker.left(3.0)
    assert breaker.remaining(3.0) == 12
    breaker.admits(15.0)
    breaker.left(16.0)
    assert (breaker.state, breaker.reason, breaker.since) == ("open", REASON, 16.0)
    assert breaker.admits(16.0)
    fail(breaker, 16.0)
    assert breaker.remaining(16.0) == 30


def test_a_request_from_before_is_not_the_one_that_was_let_in() -> None:
    """Its client leaving used to let a second one in, its failure to end the trial."""
    breaker = opened()
    assert breaker.admits(15.0)
    breaker.left(16.0, began=14.9)
    assert not breaker.failed(REASON, 16.0, LIMITS, began=14.9)
    assert (breaker.state, breaker.admits(17.0)) == ("half_open", False)
    breaker.left(18.0, began=15.0)
    assert (breaker.state, breaker.admits(18.0)) == ("open", True)
    breaker.failed(REASON, 19.0, LIMITS, began=18.0)
    assert breaker.remaining(19.0) == 30


def test_leaving_a_closed_one_changes_nothing() -> None:
    breaker = Breaker()
    breaker.left(1.0)
    assert breaker.state == "closed"


def test_a_failure_that_lasts_opens_it_at_once_for_as_long_as_said() -> None:
    breaker = Breaker()
    assert breaker.failed("key_refused", 0.0, LIMITS, lasts=600)
    assert (breaker.lasting, breaker.remaining(0.0)) == (True, 600)
    assert not breaker.failed("model_missing", 1.0, LIMITS, lasts=60)
    assert breaker.remaining(1.0) == 599
    assert breaker.admits(600.0)
    assert not breaker.failed("key_refused", 600.0, LIMITS, lasts=600)
    assert breaker.remaining(600.0) == 600


@pytest.mark.parametrize("ends", ["succeeds", "fails otherwise"])
def test_a_failure_that_lasts_is_forgotten_when_a_trial_says_otherwise(ends: str) -> None:
    breaker = Breaker()
    breaker.failed("key_refused", 0.0, LIMITS, lasts=600)
    breaker.admits(600.0)
    if ends == "succeeds":
        breaker.succeeded(600.0)
        fail(breaker, 601.0, 5)
        assert breaker.remaining(601.0) == 15
    else:
        fail(breaker, 600.0)
        assert breaker.remaining(600.0) == 15
    assert not breaker.lasting


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["good", "whole", "bad", "again", "lasts", "broke", "ended", "ask", "left"]), st.floats(0, 20)
    ),
    max_size=80,
)


@given(EVENTS)
def test_whatever_happens_it_keeps_its_rules(events: list[tuple[str, float]]) -> None:
    """Hold it against a model that remembers everything."""
    breaker, now, row, breaks = Breaker(), 0.0, 0, 0
    kept: deque[tuple[int, bool]] = deque()
    begun: deque[float] = deque()
    for what, elapsed in events:
        now += elapsed
        state = breaker.state
        if what in {"good", "whole"}:
            assert breaker.succeeded(now, whole=what == "whole") is (state != "closed")
            assert breaker.state == "closed"
            if what == "good":
                begun.append(now)
            breaks = breaks if state == "closed" and what == "good" else 0
            row = breaks
            kept = kept if state == "closed" else deque()
            if state == "closed":
                kept.append((int(now), True))
        elif what in {"bad", "again", "lasts"} or (what == "broke" and begun):
            since = begun.popleft() if what == "broke" else None
            counts = state == "closed" and what != "again"
            row += counts
            if counts:
                kept.append((int(now), False))
            if counts and since is not None:
                breaks += 1
                with suppress(ValueError):
                    kept.remove((int(since), True))
            recent = [good for at, good in kept if at > int(now) - WINDOW]
            half = len(recent) >= LEAST and 2 * sum(recent) <= len(recent)
            trips = what == "lasts" or row >= LIMITS.failures or half
            lasts = 600.0 if what == "lasts" else None
            opened_it = breaker.failed("x", now, LIMITS, lasts=lasts, again=what == "again", since=since)
            assert opened_it is (state == "closed" and trips)
            assert breaker.state == ("closed" if state == "closed" and not trips else "open")
        elif what in {"broke", "ended"}:
            breaker.ended()
            row, breaks = row - breaks, 0
        elif what == "ask":
            due = breaker.due(now)
            assert breaker.admits(now) is (state == "closed" or due)
            assert not due or not breaker.admits(now)
        else:
            breaker.left(now)
            assert breaker.state == ("open" if state == "half_open" else state)
        assert breaker.remaining(now) <= (600 if breaker.state == "open" else 0)
        assert (breaker.reason is None) is (breaker.state == "closed")
