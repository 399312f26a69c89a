"""A row: what the ledger keeps of an Outcome. Made in the writer's thread.

A row is a tuple in the order of `COLUMNS`. `run` is a number of the process, `seq` counts its rows: together they name
a row, so that one that was sent twice because its confirmation was lost stays one.

What clients and upstreams name or count is taken within bounds: text that a database refuses, or a number that fits no
column, would hold up the rows behind it.
"""

import time
from typing import Final

import msgspec

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.cost import MOST_TOKENS, Cost

Value = str | int | float | bool | None
Row = tuple[Value, ...]
Entry = tuple[float, Outcome, Cost | None]
"""When a request ended (seconds since the epoch), what came of it, and what it cost, where that is known."""

COLUMNS: Final[tuple[tuple[str, str], ...]] = (
    ("run", "bigint"),
    ("seq", "bigint"),
    ("time", "time"),
    ("request_id", "text"),
    ("operation", "text"),
    ("model", "text"),
    ("model_id", "text"),
    ("served_model", "text"),
    ("deployment", "text"),
    ("deployment_group", "text"),
    ("generation", "integer"),
    ("status", "integer"),
    ("failure", "text"),
    ("attempts", "integer"),
    ("failed_attempts", "json"),
    ("fallback", "boolean"),
    ("rescue", "text"),
    ("stream", "boolean"),
    ("ttft_ms", "real"),
    ("duration_ms", "real"),
    ("prompt_tokens", "bigint"),
    ("completion_tokens", "bigint"),
    ("cached_tokens", "bigint"),
    ("reasoning_tokens", "bigint"),
    ("lost_prompt_tokens", "bigint"),
    ("lost_completion_tokens", "bigint"),
    ("cost_nusd", "bigint"),
    ("avoided_nusd", "bigint"),
)
"""Each column's name, and what it holds (`schema.TYPES`)."""

NAMES: Final = tuple(name for name, _ in COLUMNS)
_NO_TOKENS: Final = (None, None, None, None)
_MOST_NANO: Final = 10**15
_LONGEST: Final = 256
_ENCODER: Final = msgspec.json.Encoder()


def row(run: int, seq: int, entry: Entry) -> Row:
    """Make an entry's row."""
    ended, outcome, cost = entry
    attempts, content = outcome.attempts, outcome.first_content
    if len(attempts) == 1 and attempts[0].failure is None:  # as nearly all are
        answered = attempts[0] if outcome.served_model is not None else None
        rescue, failed = attempts[0].rescue, None
    else:
        answered, rescue, failed = outcome.answered, outcome.rescue, _failed(attempts)
    return (
        run,
        seq,
        ended,
        outcome.request_id,  # sane, whoever gave it (`api.context`)
        outcome.operation,
        outcome.model if outcome.model == outcome.model_id else _text(outcome.model),
        outcome.model_id,
        outcome.served_model,
        answered.deployment if answered else None,
        answered.group if answered else None,
        outcome.generation,
        outcome.status,
        outcome.failure,
        len(attempts),
        failed,
        outcome.fallback,
        rescue,
        outcome.stream,
        None if content is None else round(content * 1000) / 1000,
        round(outcome.duration * 1000) / 1000,
        *(_NO_TOKENS if outcome.usage is None else _tokens(outcome.usage)),
        *(_NO_TOKENS[:2] if outcome.lost is None else _tokens(outcome.lost)[:2]),
        min(cost.spent, _MOST_NANO) if cost else None,
        min(cost.avoided, _MOST_NANO) if cost else None,
    )


def iso(seconds: float) -> str:
    """Write a time as `2026-11-23T03:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _failed(attempts: tuple[Attempt, ...]) -> str | None:
    """Write the attempts that failed as JSON, if there are any; their details stay in the log."""
    told = [
        {
            "model": attempt.model,
            "deployment": attempt.deployment,
            "group": attempt.group,
            "ms": round(attempt.milliseconds, 1),
            "status": attempt.status,
            "failure": attempt.failure,
        }
        for attempt in attempts
        if attempt.failure
    ]
    return _ENCODER.encode(told).decode() if told else None


def _tokens(usage: Usage) -> tuple[int | None, int | None, int | None, int | None]:
    prompt, completion, cached, reasoning = (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    if (
        0 <= (prompt or 0) <= MOST_TOKENS
        and 0 <= (completion or 0) <= MOST_TOKENS
        and 0 <= (cached or 0) <= MOST_TOKENS
        and 0 <= (reasoning or 0) <= MOST_TOKENS
    ):
        return prompt, completion, cached, reasoning
    return (
        _count(prompt),
        _count(completion),
        _count(cached),
        _count(reasoning),
    )


def _text(text: str) -> str:
    """Cut a client's text, and escape what is not printable: PostgreSQL takes no NUL, no database half a surrogate."""
    cut = text[:_LONGEST]
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode()


def _count(count: int | None) -> int | None:
    if count is None or 0 <= count <= MOST_TOKENS:
        return count
    return min(max(count, 0), MOST_TOKENS)
