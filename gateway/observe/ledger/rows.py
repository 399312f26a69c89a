"""Rows: what the ledger keeps of Outcomes.

`run` is a number of the process, `seq` counts its rows: together they identify a row, so that a row sent twice because
its confirmation was lost is stored once.

Most requests differ only in their id, their times and their tokens. So rows are kept, and written, many at a time: the
values that they share are held once, beside those that each has of its own.

Names and counts from clients and upstreams are kept within bounds: text that a database refuses, or a number that fits
no column, would hold up the rows behind it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, cast

import msgspec

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Alike, Batch, Columns, Mixed
from gateway.observe.cost import Cost

Value = str | int | float | bool | None
Own = tuple[int, float, *tuple[Value, ...]]
"""A row's own values: `seq`, `time`, and whatever else it does not share."""

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
    ("client", "text"),
)
"""Each column's name, and its type (`schema.TYPES`)."""

NAMES: Final = tuple(name for name, _ in COLUMNS)
_UNTOLD: Final = Usage()
MICROSECONDS: Final = 1_000_000
PER_MICROSECOND: Final = 1024
"""Values of `id` per microsecond: enough for a batch."""
_LONGEST: Final = 256
_ENCODER: Final = msgspec.json.Encoder()


class Rows(NamedTuple):
    """Rows: the values that they share, by column name, and each row's values for the columns in `own`.

    A column in neither has no value. `first` is the `id` of the first row, for a database that has one; the others'
    follow.
    """

    first: int
    shared: Mapping[str, Value]
    own: tuple[str, ...]
    values: Sequence[Own]

    @property
    def whole(self) -> Iterator[dict[str, Value]]:
        """Each row's values, by column name."""
        return (dict(self.shared) | dict(zip(self.own, values, strict=True)) for values in self.values)

    def halves(self) -> "tuple[Rows, Rows]":
        """Split them in the middle."""
        middle = len(self.values) // 2
        rest = self._replace(first=self.first + middle, values=self.values[middle:])
        return self._replace(values=self.values[:middle]), rest


def id_of(seconds: float) -> int:
    """Return the lowest `id` of the microsecond that a time falls into."""
    return int(seconds * MICROSECONDS) * PER_MICROSECOND


def rows(
    run: int, seq: int, batch: Batch, first: int, refused: Callable[[int, Exception], None] | None = None
) -> list[Rows]:
    """Make the rows of a batch, counted from `seq`, with their `id` from `first` on.

    `refused` is called for rows that cannot be made, with their number and the error. Without it, the error is raised.
    """
    made = []
    for number, make in _pieces(run, seq, batch):
        try:
            made.append(make(first))
        except Exception as error:
            if refused is None:
                raise
            refused(number, error)
        first += number
    return made


def _pieces(run: int, seq: int, batch: Batch) -> Iterator[tuple[int, Callable[[int], Rows]]]:
    """Yield how many rows each piece of a batch has, and the function that makes them from the first one's `id`."""
    for alike in batch.alike:
        yield len(alike.places), partial(_plain, run, seq, batch.at, alike)
    for mixed in batch.mixed:
        yield len(mixed.places), partial(_mixed, run, seq, batch.at, mixed)
    for (place, outcome), cost in zip(batch.odd, batch.odd_costs, strict=True):
        yield 1, partial(_odd, run, seq + place, batch.at[place], outcome, cost)


def _odd(run: int, seq: int, ended: float, outcome: Outcome, cost: Cost | None, first: int) -> Rows:  # noqa: PLR0917 - as the others
    shared, own = _shared(run, outcome), _own(seq, ended, outcome, cost)
    return Rows(first, shared, tuple(own), [cast("Own", tuple(own.values()))])


def _plain(run: int, seq: int, at: Sequence[float], alike: Alike, first: int) -> Rows:
    return _rows(first, _shared(run, alike.first), _columns(seq, at, alike))


def _mixed(run: int, seq: int, at: Sequence[float], mixed: Mixed, first: int) -> Rows:
    """Make rows of requests that may differ in the deployment that answered, and in the model that they asked for."""
    shared, columns = _shared(run, mixed.first), _columns(seq, at, mixed)
    names: dict[str, Sequence[Value]] = {
        "model": [_model(outcome) for outcome in mixed.outcomes],
        "model_id": [outcome.model_id for outcome in mixed.outcomes],
        "served_model": [outcome.served_model for outcome in mixed.outcomes],
        "deployment": [attempt.deployment for attempt in mixed.attempts],
        "deployment_group": [attempt.group for attempt in mixed.attempts],
    }
    for name, column in names.items():
        if column.count(column[0]) < len(column):
            columns[name] = column
            shared.pop(name, None)
    return _rows(first, shared, columns)


def _rows(first: int, shared: Mapping[str, Value], columns: Mapping[str, Sequence[Value]]) -> Rows:
    told = {
        name: column for name, column in columns.items() if column[0] is not None or column.count(None) < len(column)
    }
    return Rows(first, shared, tuple(told), cast("list[Own]", list(zip(*told.values(), strict=True))))


def _columns(seq: int, at: Sequence[float], plain: Columns) -> dict[str, Sequence[Value]]:
    """Return, by name, the columns whose values are each row's own."""
    places = plain.places
    return {
        "seq": [seq + place for place in places],
        "time": [at[place] for place in places],
        "request_id": plain.ids,  # sane, whoever chose them (`api.context`)
        "ttft_ms": [None if time is None else (time * 1000 + 0.5) // 1 / 1000 for time in plain.contents],
        "duration_ms": [(time * 1000 + 0.5) // 1 / 1000 for time in plain.durations],
        "prompt_tokens": plain.prompt,
        "completion_tokens": plain.completion,
        "cached_tokens": plain.cached,
        "reasoning_tokens": plain.reasoning,
        "cost_nusd": plain.spent,
        "avoided_nusd": plain.avoided,
    }


def _own(seq: int, ended: float, outcome: Outcome, cost: Cost | None) -> dict[str, Value]:
    content, usage = outcome.first_content, outcome.usage or _UNTOLD
    own: dict[str, Value] = {
        "seq": seq,
        "time": ended,
        "request_id": outcome.request_id,
        "ttft_ms": None if content is None else _thousandths(content),
        "duration_ms": _thousandths(outcome.duration),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_nusd": cost.spent if cost else None,
        "avoided_nusd": cost.avoided if cost else None,
    }
    return {name: value for name, value in own.items() if value is not None}


def _thousandths(value: float) -> float:
    """Round faster than `round` does, but inexactly within a rounding error of the midpoint."""
    return (value * 1000 + 0.5) // 1 / 1000


def _shared(run: int, outcome: Outcome) -> dict[str, Value]:
    answered, lost = outcome.answered, outcome.lost or _UNTOLD
    values: dict[str, Value] = {
        "run": run,
        "operation": outcome.operation,
        "model": _model(outcome),
        "model_id": outcome.model_id,
        "served_model": outcome.served_model,
        "deployment": answered.deployment if answered else None,
        "deployment_group": answered.group if answered else None,
        "generation": outcome.generation,
        "status": outcome.status,
        "failure": outcome.failure,
        "attempts": len(outcome.attempts),
        "failed_attempts": _failed(outcome.attempts),
        "fallback": outcome.fallback,
        "rescue": outcome.rescue,
        "stream": outcome.stream,
        "lost_prompt_tokens": lost.prompt_tokens,
        "lost_completion_tokens": lost.completion_tokens,
        "client": outcome.client_name,
    }
    return {name: value for name, value in values.items() if value is not None}


def _failed(attempts: tuple[Attempt, ...]) -> str | None:
    """Return the failed attempts as JSON, or None if there are none; their details stay in the log."""
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


def _model(outcome: Outcome) -> str:
    return outcome.model if outcome.model == outcome.model_id else _text(outcome.model)


def _text(text: str) -> str:
    """Shorten a client's text, and escape the characters in it that are not printable.

    PostgreSQL accepts no NUL, no database accepts a lone surrogate, and terminals obey control characters.
    """
    cut = text[:_LONGEST]
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)
