"""What is counted, in both databases, against the same counted by hand."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.ledger_place import Place
from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.cost import Cost
from gateway.observe.ledger.places import reader_at, store_at
from gateway.observe.ledger.rows import id_of, rows
from gateway.observe.ledger.stats import Answer, Question, stats
from tests.observe.ledger.outcomes import PLAIN, Postgres

NOW = 1_700_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Name an empty ledger of each sort."""
    if request.param == "sqlite":
        yield Place.of(f"sqlite:///{tmp_path}/ledger.db")
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield server.place(request.getfixturevalue("database"))


def write(place: Place, *entries: tuple[float, Outcome, Cost | None]) -> None:
    store, found = store_at(place), []
    for number, (ended, outcome, cost) in enumerate(entries):
        batch = Batch([ended], [outcome])
        batch.odd_costs = [cost] * len(batch.odd)
        for alike in (*batch.alike, *batch.mixed):
            alike.spent, alike.avoided = [cost.spent if cost else None], [cost.avoided if cost else None]
        found += rows(1, number, batch, id_of(ended) + number)
    store.write(found)
    store.close()


def ask(place: Place, **question: Any) -> Answer:
    with reader_at(place, 10) as reader:
        return stats(reader, Question(**question), NOW)


def answered(deployment: str, group: str, **fields: Any) -> Outcome:
    return replace(PLAIN, attempts=(Attempt("llama", deployment, group, 1.0, 200),), **fields)


def rank(values: list[float], percent: int) -> float | None:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else None


def ranks(values: list[float]) -> dict[str, float | None]:
    """Give the percentiles of values to three digits."""
    digits = [round(value, 2) if value < 10 else float(f"{value:.3g}") for value in values]
    return {f"p{percent}": rank(digits, percent) for percent in (50, 90, 99)}


NOTHING: dict[str, Any] = {
    "requests": 0,
    "errors": 0,
    "clients_left": 0,
    "fallbacks": 0,
    "rescues": 0,
    "streams": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "cached_tokens": 0,
    "reasoning_tokens": 0,
    "lost_tokens": 0,
    "cost_unknown": 0,
    "cost_usd": 0.0,
    "avoided_usd": 0.0,
    "error_rate": 0.0,
    "ttft_ms": {"p50": None, "p90": None, "p99": None},
    "duration_ms": {"p50": None, "p90": None, "p99": None},
}


def test_an_empty_ledger_has_nothing_to_tell(place: Place) -> None:
    write(place)
    assert ask(place) == {
        "hours": 24.0,
        "since": "2023-11-13T22:13:20Z",
        "until": "2023-11-14T22:13:20Z",
        "model": None,
        "deployment": None,
        "total": NOTHING,
        "client": None,
        "models": [],
        "deployments": [],
        "clients": [],
    }


def test_every_number_of_a_few_requests(place: Place) -> None:
    rescued = Attempt("other", "far", "remote", 1.0, 200, rescue="continue")
    broken = replace(PLAIN.attempts[0], failure="cut_answer"), replace(rescued, failure="stalled")
    write(
        place,
        (NOW - 10, answered("near", "local", duration=4.0, first_content=1.0), Cost(0, 37_500)),
        (NOW - 9, answered("near", "local", duration=8.0, stream=True, usage=Usage(1, 2, 3, 4)), Cost(0, 0)),
        (
            NOW - 8,
            replace(PLAIN, attempts=(broken[0], rescued), served_model="other", fallback=True, lost=Usage(5, 6)),
            Cost(1_500_000_001, 0),
        ),
        (NOW - 7, replace(PLAIN, attempts=broken, failure="cut_answer", duration=16.0), None),
        (NOW - 6, answered("near", "local", failure="client_left", status=499), Cost()),
        (
            NOW - 5,
            replace(PLAIN, served_model=None, attempts=(), status=503, failure="no_deployment", usage=None),
            Cost(),
        ),
        (NOW - 4, replace(PLAIN, model_id=None, served_model=None, attempts=(), status=404, usage=None), Cost()),
        (NOW - 90_000, answered("near", "local"), Cost(1, 1)),
    )
    told = ask(place)
    assert told["total"] == {
        "requests": 7,
        "errors": 2,
        "clients_left": 1,
        "fallbacks": 1,
        "rescues": 1,
        "streams": 1,
        "prompt_tokens": 41,
        "completion_tokens": 82,
        "cached_tokens": 3,
        "reasoning_tokens": 4,
        "lost_tokens": 11,
        "cost_unknown": 1,
        "cost_usd": 1.500000001,
        "avoided_usd": 0.0000375,
        "error_rate": 0.285714,
        "ttft_ms": {"p50": 10.0, "p90": 10.0, "p99": 10.0},
        "duration_ms": {"p50": 12.5, "p90": 16.0, "p99": 16.0},
    }
    models = told["models"]
    assert isinstance(models, list)
    assert [(group["model"], group["requests"], group["errors"]) for group in models] == [("llama", 6, 2), (None, 1, 0)]
    deployments = told["deployments"]
    assert isinstance(deployments, list)
    assert [(each["model"], each["deployment"], each["group"], each["requests"]) for each in deployments] == [
        ("llama", "near", "local", 4),
        ("other", "far", "remote", 1),
    ]


def test_a_question_is_about_a_time_a_model_and_a_deployment(place: Place) -> None:
    far = answered("far", "remote")
    write(
        place,
        (NOW - 3_600 * 30, far, Cost(1, 0)),
        (NOW - 60, far, Cost(10, 0)),
        (NOW - 60, replace(far, model="alias"), Cost(100, 0)),
        (NOW - 60, replace(far, model_id="other"), Cost(1_000, 0)),
        (NOW - 60, answered("near", "local"), Cost(10_000, 0)),
    )

    def cost(**question: Any) -> float:
        total = ask(place, **question)["total"]
        assert isinstance(total, dict)
        return float(round(total["cost_usd"] * 1_000_000_000))

    assert cost() == 11_110
    assert cost(hours=48.0) == 11_111
    assert cost(hours=0.01) == 0
    assert cost(model="llama") == 10_110
    assert cost(deployment="far") == 1_110
    assert cost(model="llama", deployment="far") == 110
    assert cost(model="none'; DROP TABLE gateway_requests; --") == 0
    assert ask(place, model="llama", deployment="far")["model"] == "llama"


def test_clients_are_told_apart(place: Place) -> None:
    of = {name: answered("near", "local", client_name=name) for name in ("alice", "ci", None)}
    others = [(NOW - 1, answered(f"box-{number}", "local", client_name="ci"), Cost(1, 0)) for number in range(5)]
    write(place, *[(NOW - 1, of["alice"], Cost(10, 0))] * 13, *others, (NOW - 1, of[None], Cost(100, 0)))
    clients = ask(place)["clients"]
    assert isinstance(clients, list)
    found = [(each["client"], each["requests"], round(each["cost_usd"] * 10**9)) for each in clients]
    assert found == [("alice", 13, 130), ("ci", 5, 5)]
    assert {each["duration_ms"]["p50"] for each in clients} == {12.5}
    told = ask(place, client="ci")
    assert isinstance(told["total"], dict)
    assert (told["client"], told["total"]["requests"]) == ("ci", 5)


def test_times_have_three_digits(place: Place) -> None:
    times = [0.126, 0.0, 9.996, 12.345, 99.96, 123.4, 999.7, 1_234.0, 9_996.0, 61_234.5, 99_960.0, 3_612_345.0]
    write(place, *((NOW - 1, answered(str(time), "local", duration=time), Cost()) for time in times))
    deployments = ask(place)["deployments"]
    assert isinstance(deployments, list)
    found = {float(each["deployment"]): each["duration_ms"]["p50"] for each in deployments}
    assert [found[time] for time in times] == [
        *(0.13, 0.0, 10.0, 12.3, 100.0, 123.0, 1_000.0, 1_230.0, 10_000.0, 61_200.0, 100_000.0, 3_612_000.0),
    ]


def test_percentiles_are_ranks_whatever_the_number_of_values(place: Place) -> None:
    dice = random.Random(5)  # noqa: S311 - the same dice each time
    names = [("near", "local"), ("far", "remote"), ("odd", "unlisted")]
    requests = []
    for number in range(313):
        name, group = names[min(number % 7, 2)]
        content = None if number % 5 == 0 else round(dice.uniform(1, 50), 3)
        fields = {"duration": round(dice.expovariate(0.01), 3), "first_content": content, "stream": number % 3 > 0}
        requests.append((name, answered(name, group, **fields)))
    write(place, *((NOW - 1, made, Cost(3, 4)) for _, made in requests))
    told = ask(place)

    def expected(*only: str) -> dict[str, Any]:
        made = [request for name, request in requests if name in only]
        return {
            "requests": len(made),
            "duration_ms": ranks([request.duration for request in made]),
            "ttft_ms": ranks(
                [request.first_content for request in made if request.stream and request.first_content is not None]
            ),
        }

    def found(group: dict[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("requests", "duration_ms", "ttft_ms")}

    total, deployments = told["total"], told["deployments"]
    assert isinstance(total, dict)
    assert isinstance(deployments, list)
    assert found(total) == expected("near", "far", "odd")
    assert {each["deployment"]: found(each) for each in deployments} == {name: expected(name) for name, _ in names}
