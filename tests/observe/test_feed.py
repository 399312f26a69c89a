"""Requests that are counted in batches: the same numbers come out, and nobody who looks can tell that they waited."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.cost import NOTHING, Cost, Costs
from gateway.observe.feed import DELAY, MOST, Feed
from gateway.observe.live import REQUESTS, Live
from gateway.observe.metrics.observer import Metrics
from gateway.observe.traffic import Traffic
from gateway.routing.pricing import FREE, Prices
from tests.observe.metrics.reading import page, samples
from tests.observe.outcomes import attempt, ended

PRICES = Prices(prompt=600_000_000, completion=1_200_000_000, cached=100_000_000, reasoning=1_200_000_000)
ELSEWHERE = Prices(prompt=500_000_000, completion=2_000_000_000)


@dataclass
class Waiting:
    """A feed whose clock and timer are a test's, and what came out of it."""

    now: float = 1000.25
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    batches: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed = Feed(lambda: self.now, lambda seconds, call: self.timers.append((seconds, call)))
        self.feed.takers = (lambda batch: self.batches.append(list(batch.at)),)

    def fire(self) -> None:
        ((seconds, call),) = self.timers
        assert seconds == DELAY
        self.timers.clear()
        call()


def test_what_waits_is_brought_by_whoever_asks() -> None:
    waiting = Waiting()
    waiting.feed.settle()
    waiting.feed.put(ended())
    waiting.feed.put(ended())
    assert waiting.batches == []
    waiting.feed.settle()
    waiting.feed.settle()
    assert waiting.batches == [[1000.25, 1000.25]]


def test_what_waits_is_brought_by_one_timer() -> None:
    waiting = Waiting()
    waiting.feed.put(ended())
    waiting.feed.settle()
    waiting.feed.put(ended())
    waiting.fire()
    assert [len(batch) for batch in waiting.batches] == [1, 1]
    waiting.feed.put(ended())
    waiting.fire()
    assert len(waiting.batches) == 3


def test_no_more_than_so_many_wait() -> None:
    waiting = Waiting()
    for _ in range(2 * MOST + 1):
        waiting.feed.put(ended())
    assert [len(batch) for batch in waiting.batches] == [MOST, MOST]


def test_a_batch_is_of_one_second_even_when_the_clock_goes_back() -> None:
    waiting = Waiting()
    for waiting.now in (1000.25, 1000.99, 1001.0, 950.0, 1001.5, 1002.0):
        waiting.feed.put(ended())
    assert waiting.batches == [[1000.25, 1000.99], [1001.0, 950.0, 1001.5]]


async def test_the_timer_is_the_loops() -> None:
    feed = Feed()
    feed.put(ended())
    assert feed._timed


def test_a_taker_that_fails_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Waiting()
    traffic = Traffic()

    def fail(_: Batch) -> None:
        raise ZeroDivisionError

    waiting.feed.takers = (fail, traffic.take)
    with caplog.at_level(logging.ERROR):
        waiting.feed.put(ended())
        waiting.feed.settle()
    assert traffic.served("m", ("a",))["a"].requests == 1
    assert [record.message for record in caplog.records] == ["an observer failed"]


def test_requests_that_cannot_be_sorted_cost_later_ones_nothing() -> None:
    waiting = Waiting()
    waiting.feed.put(replace(ended(), attempts=None))
    with pytest.raises(TypeError):
        waiting.feed.settle()
    waiting.feed.put(ended())
    waiting.feed.settle()
    assert [len(batch) for batch in waiting.batches] == [1]


def test_who_reads_has_what_waits_brought_first() -> None:
    asked: list[str] = []
    traffic = Traffic(lambda: asked.append("traffic"))
    costs = Costs(lambda: asked.append("costs"))
    metrics = Metrics(lambda: 0.0, lambda: asked.append("metrics"))
    traffic.served("m", ("a",))
    assert (costs.totals, costs.money()) == ({}, None)
    page(metrics.told())
    assert asked == ["traffic", "costs", "costs", "metrics"]


def test_plain_requests_are_sorted_by_who_answered_them_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        ended(attempt("a")),
        ended(attempt("b")),
        ended(attempt("a"), status=400),
        ended(attempt("a", "server_error"), attempt("b")),
        ended(attempt("a"), tokens=5),
        ended(attempt("a", "server_error"), status=502, failure="server_error"),
        *[ended(attempt("b"), tokens=number) for number in (1, 2)],
        *[ended(attempt("a"), status=400)] * 3,
        *[ended(attempt("a"))] * 2,
    ]
    monkeypatch.setattr("gateway.observe.batch._FEW", 3)
    batch = Batch([1.0] * 13, requests)
    assert [(each.deployment, each.status, list(each.places)) for each in batch.alike] == [
        ("a", 200, [0, 4, 11, 12]),
        ("b", 200, [1, 6, 7]),
        ("a", 400, [2, 8, 9, 10]),
    ]
    assert [place for place, _ in batch.odd] == [3, 5]


def test_plain_requests_of_which_few_are_alike_are_put_together_all_the_same() -> None:
    requests = [
        ended(attempt("a")),
        ended(attempt("b"), model="alias"),
        ended(attempt("c"), status=400),
        ended(attempt("a", model="other")),
        *[ended(attempt("d"))] * 12,
        ended(attempt("a"), stream=False),
    ]
    batch = Batch([1.0] * 17, requests)
    assert [list(each.places) for each in batch.alike] == [[*range(4, 16)]]
    [mixed] = batch.mixed
    assert (list(mixed.places), mixed.identities) == ([0, 1, 3], [("m", "a"), ("m", "b"), ("other", "a")])
    assert [place for place, _ in batch.odd] == [2, 16]


@pytest.mark.parametrize("wrong", [Usage(5, 5, 6), Usage(5, 5, 5, 6), Usage(None, 5, 1)])
def test_what_is_rare_or_beyond_belief_is_not_put_into_columns(wrong: Usage) -> None:
    requests = [ended(attempt("a")), ended(attempt("b"))]
    for each in (requests, [*requests, replace(ended(attempt("b")), usage=wrong)]):
        batch = Batch([1.0] * len(each), each)
        assert (batch.alike, batch.mixed, len(batch.odd)) == ([], [], len(each))


counts = st.none() | st.integers(0, 300)
usages = st.none() | st.builds(Usage, counts, counts, counts, counts)
attempts = st.builds(
    Attempt,
    st.just("m"),
    st.sampled_from(["a", "b"]),
    st.just("local"),
    st.floats(0.1, 100),
    st.just(200),
    st.sampled_from([None, None, None, "server_error", "client_left"]),
    rescue=st.sampled_from([None, None, None, "replay"]),
)
plain = st.lists(attempts, min_size=1, max_size=1)
outcomes = st.builds(
    Outcome,
    request_id=st.just("r"),
    operation=st.just("chat/completions"),
    model=st.sampled_from(["m", "x" * 300]),
    served_model=st.sampled_from(["m", "m", "m", None]),
    generation=st.just(1),
    stream=st.booleans(),
    status=st.sampled_from([200, 200, 200, 400, 499, 502]),
    attempts=(plain | plain | st.lists(attempts, min_size=1, max_size=3)).map(tuple),
    fallback=st.sampled_from([False, False, True]),
    duration=st.floats(1, 200_000),
    first_content=st.none() | st.floats(0, 1_000),
    usage=usages,
    failure=st.sampled_from([None, None, None, "cut_answer"]),
    model_id=st.just("m"),
    lost=st.none() | usages,
    malformed_events=st.sampled_from([0, 0, 2]),
)

ALIKE = [
    ended(attempt(deployment), stream=stream, status=status)
    for deployment in "abc"
    for stream, status in ((True, 200), (False, 200), (False, 400))
]


def usage_of(prompt: int | None, completion: int | None, cached: int | None, reasoning: int | None) -> Usage:
    """Make a usage that can be."""
    return Usage(prompt, completion, cached and min(cached, prompt or 0), reasoning and min(reasoning, completion or 0))


def alike(usage: st.SearchStrategy[Usage | None]) -> st.SearchStrategy[Outcome]:
    """Make plain requests of few kinds."""
    times = {"duration": st.floats(1, 200_000), "first_content": st.none() | st.floats(0, 1_000)}
    return st.builds(replace, st.sampled_from(ALIKE), usage=usage, **times)


numbers = st.integers(0, 300)
all_told = alike(st.builds(usage_of, numbers, numbers, counts, counts))
some_told = alike(st.none() | st.builds(usage_of, counts, counts, counts, counts))


class Counted:
    """Those who count, each with prices: `a` and `c` are free, or have a price; `b` could have answered for them."""

    def __init__(self, prices: Prices | None) -> None:
        from gateway.observe.cost import _Tariff  # noqa: PLC0415 - made by hand, without a configuration

        self.traffic, self.live, self.costs, self.metrics = Traffic(), Live(lambda: 7.5), Costs(), Metrics(lambda: 0.0)
        tariff = _Tariff(prices, (ELSEWHERE,))
        self.costs._tariffs = {("m", "a"): tariff, ("m", "b"): _Tariff(FREE), ("m", "c"): tariff}

    def state(self) -> dict[str, Any]:
        second = self.live.seconds[-1]
        return {
            "served": self.traffic.served("m", ("a", "b", "c")),
            "second": {name: getattr(second, name) for name in second.__slots__},
            "requests": list(self.live.requests),
            "number": self.live.number,
            "totals": self.costs.totals,
        }


def costs_of(batch: Batch) -> list[Cost | None]:
    """Give what each request of a batch cost, in their order."""
    found = {place: cost for (place, _), cost in zip(batch.odd, batch.odd_costs, strict=True)}
    for alike in (*batch.alike, *batch.mixed):
        for place, spent, avoided in zip(alike.places, alike.spent, alike.avoided, strict=True):
            assert (spent is None) == (avoided is None)
            found[place] = None if spent is None or avoided is None else Cost(spent, avoided)
    return [found[place] for place in range(len(batch.at))]


@settings(max_examples=40)
@given(
    st.lists(all_told, min_size=30, max_size=60) | st.lists(some_told | some_told | outcomes, min_size=20, max_size=60),
    st.sampled_from([60, 7, 1]),
    st.sampled_from([3, 12]),
    st.sampled_from([PRICES, FREE, None]),
)
def test_a_batch_counts_what_its_requests_count_one_by_one(
    requests: list[Outcome], size: int, few: int, prices: Prices | None
) -> None:
    alone, together = Counted(prices), Counted(prices)
    costs: list[Cost | None] = []
    for outcome in requests:
        for observe in (alone.traffic, alone.metrics):
            observe(outcome)
        alone.live.take(Batch([7.5], [outcome]))
        costs.append(alone.costs.count(outcome))
    found: list[Cost | None] = []
    for start in range(0, len(requests), size):
        part = requests[start : start + size]
        with patch("gateway.observe.batch._FEW", few):
            batch = Batch([7.5] * len(part), part)
        for take in (together.traffic.take, together.live.take, together.costs.take, together.metrics.take):
            take(batch)
        found += costs_of(batch)
    assert found == costs
    assert together.state() == alone.state()
    one, other = (samples(page(each.metrics.told())) for each in (alone, together))
    assert other == pytest.approx(one)


def test_the_last_requests_of_a_large_batch_are_kept_and_numbered() -> None:
    live = Live()
    count = 3 * REQUESTS
    batch = Batch([1000.0 + place / 1000 for place in range(count)], [ended()] * count)
    live.take(batch)
    assert [number for number, _, _ in live.requests] == list(range(2 * REQUESTS + 1, count + 1))
    assert live.requests[-1][1] == 1000.0 + (count - 1) / 1000
    assert Cost() == NOTHING
