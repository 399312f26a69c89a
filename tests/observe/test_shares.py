import inspect
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.observe import shares
from gateway.observe.live import Live
from gateway.observe.shares import WINDOW, Recent, Share, explain
from gateway.observe.traffic import NOBODYS
from tests.observe.outcomes import attempt, count, ended

A, B = ("m", "a"), ("m", "b")


def counted() -> tuple[Live, Recent, list[float]]:
    now = [5000.5]
    live = Live(lambda: now[0])
    return live, Recent(live), now


def test_seconds_count_from_when_they_are_over_until_they_are_old() -> None:
    live, recent, now = counted()
    count(live, ended())
    count(live, ended(attempt("a", "server_error"), attempt("b")))
    assert recent.advance(now[0]) == set()
    now[0] += 1
    assert recent.advance(now[0]) == {A, B}
    assert (recent.answers, recent.failures, recent.stood_in) == ({A: 1, B: 1}, {A: 1}, {B: 1})
    assert recent.advance(now[0]) == set()
    count(live, ended())
    now[0] += 1
    assert recent.advance(now[0]) == {A}
    assert recent.answers == {A: 2, B: 1}
    now[0] += WINDOW - 1
    assert recent.advance(now[0]) == {A, B}
    assert (recent.answers, recent.failures, recent.stood_in) == ({A: 1}, {}, {})
    now[0] += 1
    assert recent.advance(now[0]) == {A}
    assert recent.answers == {}


def test_who_looks_late_counts_only_what_is_not_old() -> None:
    live, recent, now = counted()
    count(live, ended())
    now[0] += WINDOW
    count(live, ended(attempt("b")))
    now[0] += 1
    assert recent.advance(now[0]) == {B}
    assert recent.answers == {B: 1}


def test_who_looks_late_counts_each_second_once_and_as_long_as_it_is_recent() -> None:
    live, recent, now = counted()
    for name in "ab":
        count(live, ended(attempt(name)))
        now[0] += 1
    assert [recent.advance(now[0]) for _ in range(2)] == [{A, B}, set()]
    assert recent.answers == {A: 1, B: 1}
    now[0] += WINDOW - 1
    assert recent.advance(now[0]) == {A}
    assert recent.answers == {B: 1}


def test_another_configuration_begins_anew() -> None:
    live, recent, now = counted()
    count(live, ended())
    now[0] += 1
    recent.advance(now[0])
    live.rebase(1)
    count(live, ended(attempt("b")))
    now[0] += 1
    assert recent.advance(now[0]) == {A, B}
    assert recent.answers == {B: 1}


def test_a_clock_that_goes_back_far_begins_anew() -> None:
    live, recent, now = counted()
    count(live, ended())
    now[0] += 1
    recent.advance(now[0])
    now[0] -= 1000
    assert recent.advance(now[0]) == {A}
    assert recent.answers == {}
    count(live, ended(attempt("b")))
    now[0] += 1
    assert recent.advance(now[0]) == {B}
    assert recent.answers == {B: 1}


def test_a_clock_that_goes_back_a_little_takes_away_what_was_taken_in() -> None:
    live, recent, now = counted()
    count(live, ended())
    now[0] += 1
    recent.advance(now[0])
    now[0] -= 3
    count(live, ended(attempt("a", "server_error"), attempt("b")))
    now[0] += 4
    recent.advance(now[0])
    assert (recent.answers, recent.failures, recent.stood_in) == ({A: 1}, {}, {})
    now[0] += WINDOW
    assert recent.advance(now[0]) == {A}
    assert (recent.answers, recent.failures, recent.stood_in) == ({}, {}, {})


def why(*shares: Share) -> list[str | None]:
    return [word for _, word in explain(shares).values()]


def test_where_nothing_differs_there_is_no_word() -> None:
    shares = (Share("a", 0.6, 0.6, answers=60), Share("b", 0.4, 0.4, answers=40))
    assert explain(shares) == {"a": (0.6, None), "b": (0.4, None)}
    assert explain((Share("a", 1, 1),)) == {"a": (None, None)}


@pytest.mark.parametrize(
    ("share", "word"),
    [
        (Share("a", 0.5, 0, health="down"), "down"),
        (Share("a", 0.5, 0, health="loading"), "loading"),
        (Share("a", 0.5, 0, breaker="open"), "breaker open"),
        (Share("a", 0.5, 0, breaker="half_open"), "breaker half open"),
        (Share("a", 0.5, 0.1, back=2.0), "slow start"),
    ],
)
def test_one_that_is_held_back_says_why_and_its_sibling_for_whom_it_works(share: Share, word: str) -> None:
    assert why(share, Share("b", 0.5, 1 - share.eligible)) == [word, "covers for a"]


def test_when_all_are_out_they_are_tried_anyway() -> None:
    assert why(Share("a", 1, 1, health="down")) == ["down, tried anyway"]


def test_only_so_many_siblings_are_named() -> None:
    out = [Share(name, 0.25, 0, health="down") for name in "abc"]
    assert why(*out, Share("d", 0.25, 1))[-1] == "covers for a, b ..."


def test_a_strategy_that_weighs_anew_is_said_to() -> None:
    assert why(Share("a", 0.5, 0.7), Share("b", 0.5, 0.3)) == ["reweighted", "reweighted"]


def test_a_breaker_that_closed_long_ago_explains_nothing() -> None:
    assert why(Share("a", 1, 1, back=2.0)) == [None]
    assert why(Share("a", 0.5, 0.4, back=60.0), Share("b", 0.5, 0.6)) == ["reweighted", "reweighted"]


def test_a_fallback_says_so_and_whether_it_was_needed() -> None:
    assert why(Share("a", 1, 1), Share("b", 0, 0)) == [None, "fallback"]
    stood_in = Share("b", 0, 0, answers=5, stood_in=1)
    assert why(Share("a", 1, 1, answers=5, failures=5), stood_in) == ["5 failed", "stood in as fallback"]


def test_a_fallback_that_nothing_fell_back_to_says_why_it_answered() -> None:
    local = Share("a", 1, 1, answers=495)
    assert why(local, Share("b", 0, 0, answers=5, late=5)) == [None, "drawn before the save"]
    assert why(local, Share("b", 0, 0, answers=5, late=4)) == [None, "covered for others"]
    assert why(local, Share("b", 0, 0, answers=5, late=4, stood_in=1)) == [None, "stood in as fallback"]


def test_failures_explain_a_lack_and_a_surplus() -> None:
    assert why(Share("a", 0.5, 0.5, answers=10, failures=20), Share("b", 0.5, 0.5, answers=50)) == [
        "20 failed",
        "took over what failed",
    ]


def test_clients_that_left_explain_as_much_and_are_nobodys_failure() -> None:
    left, sibling = Share("a", 0.5, 0.5, answers=10, failures=1, cut=20), Share("b", 0.5, 0.5, answers=50)
    assert why(left, sibling) == ["20 cut short", "others were cut short"]
    assert why(Share("a", 0.5, 0.5, cut=4), Share("b", 0.5, 0.5)) == ["4 cut short", None]
    assert why(Share("a", 1, 1, cut=4), Share("b", 0, 0)) == ["4 cut short", "fallback"]


@pytest.mark.parametrize("failure", sorted(NOBODYS))
def test_what_is_nobodys_failure_is_cut_short(failure: str) -> None:
    live, recent, now = counted()
    count(live, ended(attempt("a", "server_error"), attempt("b", failure), status=499, failure=failure))
    now[0] += 1
    assert recent.advance(now[0]) == {A, B}
    assert (recent.answers, recent.failures, recent.cut) == ({}, {A: 1}, {B: 1})
    live.rebase(1)
    assert recent.advance(now[0]) == {A, B}
    assert (recent.failures, recent.cut) == ({}, {})


def test_few_failures_do_not_explain_much() -> None:
    shares = Share("a", 0.5, 0.5, answers=100, failures=3), Share("b", 0.5, 0.5, answers=400)
    assert why(*shares) == ["catching up", "catching up"]


def test_failures_explain_twice_as_many_answers_at_most() -> None:
    lacks, sibling = Share("a", 0.5, 0.5, answers=10), Share("b", 0.5, 0.5, answers=50)
    assert why(replace(lacks, failures=11), sibling) == ["11 failed", "took over what failed"]
    assert why(replace(lacks, failures=9), sibling) == ["catching up", "catching up"]


def test_failures_are_told_where_nothing_is_answered() -> None:
    assert why(Share("a", 0.5, 0.5, failures=4), Share("b", 0.5, 0.5)) == ["4 failed", None]


def test_chance_explains_what_it_can_and_no_more() -> None:
    assert why(Share("a", 0.5, 0.5, answers=3), Share("b", 0.5, 0.5, answers=1)) == ["few requests so far"] * 2
    assert why(Share("a", 0.5, 0.5, answers=900), Share("b", 0.5, 0.5, answers=100)) == ["catching up"] * 2
    assert why(Share("a", 1, 1, answers=1), Share("b", 0, 0)) == [None, "fallback"]


def test_every_word_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    table = page.partition("| word | meaning |")[2].partition("\n\n")[0]
    words = re.findall(r'"([a-z][a-z, ]+)"', inspect.getsource(shares).partition("def _standing")[2])
    told = {*words, "down", "loading", "breaker open", "breaker half open", "covers for"} - {"closed"}
    assert {word for word in told if word not in table} == set()
    assert len(told) > 10


def test_what_an_earlier_configuration_drew_is_counted_as_long_as_it_is_recent() -> None:
    live, recent, now = counted()
    live.rebase(2)
    count(live, ended())
    now[0] += 1
    assert recent.advance(now[0]) == {A}
    assert (recent.answers, recent.late) == ({A: 1}, {A: 1})
    now[0] += WINDOW
    recent.advance(now[0])
    assert recent.late == {}


def test_who_begins_to_look_sees_as_far_back_as_who_has_looked() -> None:
    live, recent, now = counted()
    count(live, ended())
    now[0] += 1
    recent.advance(now[0])
    now[0] += WINDOW - 1
    late = Recent(live)
    recent.advance(now[0])
    late.advance(now[0])
    assert recent.answers == late.answers == {A: 1}
