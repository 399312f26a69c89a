"""What a client or an upstream can put into a row is within what every database takes."""

import pytest
from msgspec.structs import replace

from gateway.execution.outcome import Attempt, Usage
from gateway.observe.batch import Batch
from gateway.observe.cost import Cost
from gateway.observe.ledger.rows import NAMES, Value, rows
from tests.observe.ledger.outcomes import PLAIN


def made(cost: Cost | None = None, **fields: object) -> dict[str, Value]:
    """Make the row of a request, which is the same whether it is alone, one of some or one of many that are alike."""
    alone, *others = (made_of(count, cost, **fields) for count in (1, 2, 3, 12))
    assert others == [alone] * 3
    return alone


def made_of(count: int, cost: Cost | None, **fields: object) -> dict[str, Value]:
    batch = Batch([3.0] * count, [replace(PLAIN, **fields)] * count)
    for alike in (*batch.alike, *batch.mixed):
        alike.spent = [cost.spent if cost else None] * count
        alike.avoided = [cost.avoided if cost else None] * count
    batch.odd_costs = [cost] * len(batch.odd)
    pieces = rows(1, 2, batch, 3)
    found = [row for each in pieces for row in each.whole]
    assert [row["seq"] for row in found] == [*range(2, 2 + count)]
    assert [each.first + place for each in pieces for place in range(len(each.values))] == [*range(3, 3 + count)]
    return dict.fromkeys(NAMES) | found[0]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("llama", "llama"),
        ("Größe 7", "Größe 7"),
        ("a\x00b", "a\\x00b"),
        ("a\nb", "a\\nb"),
        ("\ud800", "\\ud800"),
        ("ünïcode\x00\u2028\\…", "ünïcode\\x00\\u2028\\…"),
        ("x" * 1_000, "x" * 256),
    ],
)
def test_names_are_printable_and_short(asked: str, kept: str) -> None:
    assert made(model=asked)["model"] == kept
    assert kept.encode()


def test_rows_of_requests_that_others_answered_are_those_that_each_would_have_alone() -> None:
    [attempt] = PLAIN.attempts
    requests = [
        PLAIN,
        replace(PLAIN, model="a\x00b", attempts=(replace(attempt, deployment="far", group="remote"),)),
        replace(PLAIN, served_model="other", attempts=(replace(attempt, model="other"),), usage=None),
        replace(PLAIN, model_id=None, first_content=None),
    ]
    batch = Batch([3.0] * 4, requests)
    [mixed] = batch.mixed
    mixed.spent = mixed.avoided = [1, None, 0, 2]
    alone = [Batch([3.0], [request]) for request in requests]
    for each, cost in zip(alone, [Cost(1, 1), None, Cost(0, 0), Cost(2, 2)], strict=True):
        each.odd_costs = [cost]
    [together] = rows(1, 2, batch, 3)
    apart = [row for seq, each in enumerate(alone, 2) for one in rows(1, seq, each, 3) for row in one.whole]
    assert [dict.fromkeys(NAMES) | row for row in together.whole] == [dict.fromkeys(NAMES) | row for row in apart]
    assert together.first == 3
    assert {"deployment", "deployment_group", "model", "model_id", "served_model"} <= {*together.own}


def test_counts_are_in_their_columns() -> None:
    found = made(usage=Usage(10**10, 5, None, 0), lost=Usage(7, 1))
    assert [found[name] for name in NAMES if name.endswith("_tokens")] == [10**10, 5, None, 0, 7, 1]


@pytest.mark.parametrize("counts", [(None, 5, None, 3), (5, None, 3, None)])
def test_what_was_not_told_is_none(counts: tuple[int | None, ...]) -> None:
    found = made(usage=Usage(*counts))
    assert tuple(found[f"{name}_tokens"] for name in ("prompt", "completion", "cached", "reasoning")) == counts


def test_an_unknown_cost_is_none_and_no_cost_is_zero() -> None:
    assert (made()["cost_nusd"], made(Cost())["cost_nusd"], made(Cost())["avoided_nusd"]) == (None, 0, 0)


def test_only_attempts_that_failed_are_told_and_without_their_detail() -> None:
    failed = Attempt("llama", "far", "remote", 3.26, 503, "server_error", "canary")
    assert made()["failed_attempts"] is None
    found = made(attempts=(failed, *PLAIN.attempts))
    assert found["attempts"] == 2
    assert found["failed_attempts"] == (
        '[{"model":"llama","deployment":"far","group":"remote","ms":3.3,"status":503,"failure":"server_error"}]'
    )


def test_a_request_that_nobody_answered_has_no_deployment() -> None:
    found = made(served_model=None, attempts=(), usage=None, first_content=None)
    assert [found[name] for name in ("served_model", "deployment", "deployment_group", "ttft_ms")] == [None] * 4
