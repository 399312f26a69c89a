"""What the ledger says about the last hours: totals, by model, deployment and client. Both databases get the same SQL.

A request is an error if `Outcome.is_error` says so: such requests are logged at `warning`.

The p-th percentile is the least value that at least p percent of the values do not exceed (nearest rank), of values
rounded to three digits: so a million of them come down to some thousand, which are sorted in an instant. Few rows leave
the database: for each, a thread other than the event loop's may have to wait for the interpreter lock.
"""

from collections.abc import Iterator, Mapping, Sequence
from time import gmtime, strftime
from typing import Final, cast

from msgspec import Struct

from gateway.observe.ledger.store import Reader
from gateway.routing.pricing import NANO

PERCENTILES: Final = (50, 90, 99)
_HOUR: Final = 3_600.0
_ERROR: Final = "failure IS NOT NULL AND (status < 400 OR status = 429 OR status > 499)"
_COUNTS: Final[Mapping[str, str]] = {
    "requests": "count(*)",
    "errors": f"count(*) FILTER (WHERE {_ERROR})",
    "clients_left": "count(*) FILTER (WHERE status = 499)",
    "fallbacks": "count(*) FILTER (WHERE fallback)",
    "rescues": "count(*) FILTER (WHERE rescue IS NOT NULL)",
    "streams": "count(*) FILTER (WHERE stream)",
    "prompt_tokens": "sum(prompt_tokens)",
    "completion_tokens": "sum(completion_tokens)",
    "cached_tokens": "sum(cached_tokens)",
    "reasoning_tokens": "sum(reasoning_tokens)",
    "lost_tokens": "sum(coalesce(lost_prompt_tokens, 0) + coalesce(lost_completion_tokens, 0))",
    "cost_unknown": "count(*) FILTER (WHERE cost_nusd IS NULL)",
    "cost_usd": "sum(cost_nusd)",
    "avoided_usd": "sum(avoided_nusd)",
}
_MONEY: Final = ("cost_usd", "avoided_usd")
_TIMES: Final[Mapping[str, str]] = {"ttft_ms": "stream", "duration_ms": "TRUE"}
"""The times, and which requests have one: the first content of an answer that is not streamed is all of it."""


class Question(Struct, frozen=True):
    """What is asked: the last `hours`, and one model (its id), deployment and client (their names), where given."""

    hours: float = 24.0
    model: str | None = None
    deployment: str | None = None
    client: str | None = None


_KEYS: Final = ("model_id", "served_model", "deployment", "deployment_group", "client")
_Key = tuple[object, ...]


class _Grouping(Struct, frozen=True):
    """What rows are grouped by: names in the answer, the columns behind them, and which column a row needs for it."""

    names: tuple[str, ...]
    columns: tuple[str, ...]
    needs: str | None = None

    @property
    def condition(self) -> str:
        """Which rows have a part in it, in SQL."""
        return f"{self.needs} IS NOT NULL" if self.needs else "TRUE"

    def key(self, row: Sequence[object]) -> _Key | None:
        """Return the group of a row that begins with `_KEYS`; a row without the column it needs is in no group."""
        found = dict(zip(_KEYS, row, strict=False))
        if self.needs is not None and found[self.needs] is None:
            return None
        return tuple(found[column] for column in self.columns)


_GROUPINGS: Final[Mapping[str, _Grouping]] = {
    "total": _Grouping((), ()),
    "models": _Grouping(("model",), ("model_id",)),
    "deployments": _Grouping(
        ("model", "deployment", "group"),
        ("served_model", "deployment", "deployment_group"),
        "deployment",
    ),
    "clients": _Grouping(("client",), ("client",), "client"),
}

Answer = dict[str, object]
_Groups = dict[tuple[str, _Key], dict[str, object]]


def stats(reader: Reader, question: Question, now: float) -> Answer:
    """Answer a question, ready for JSON; `now` is in seconds since the epoch.

    Raises:
        UnavailableError: the ledger cannot be read, or takes too long.

    """
    since = now - question.hours * _HOUR
    asked = {"since": since, "model": question.model, "deployment": question.deployment, "client": question.client}
    parameters = {name: value for name, value in asked.items() if value is not None}
    where = " AND ".join((reader.since, *_conditions(question)))
    groups = _counted(reader.rows(_counts(where), parameters))
    for time in _TIMES:
        _rank(groups, time, reader.rows(_ranks(where, time), parameters))
    return {
        "hours": question.hours,
        "since": _written(since),
        "until": _written(now),
        "model": question.model,
        "deployment": question.deployment,
        "client": question.client,
        "total": groups["total", ()],
        "models": _listed(groups, "models"),
        "deployments": _listed(groups, "deployments"),
        "clients": _listed(groups, "clients"),
    }


def _written(seconds: float) -> str:
    """Return a time as `2026-11-23T03:00:00Z`."""
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(seconds))


def _conditions(question: Question) -> Iterator[str]:
    if question.model is not None:
        yield "model_id = :model"
    if question.deployment is not None:
        yield "deployment = :deployment"
    if question.client is not None:
        yield "client = :client"


def _counted(rows: Sequence[Sequence[object]]) -> _Groups:
    """Add up the counts of rows by each grouping; PostgreSQL returns sums as decimals, and a sum of nothing as NULL."""
    sums: dict[tuple[str, _Key], list[int]] = {("total", ()): [0] * len(_COUNTS)}
    for row in rows:
        values = [int(cast("int", value or 0)) for value in row[len(_KEYS) :]]
        for kind, grouping in _GROUPINGS.items():
            key = grouping.key(row)
            if key is not None:
                total = sums.get((kind, key), [0] * len(_COUNTS))
                sums[kind, key] = [old + new for old, new in zip(total, values, strict=True)]
    return {key: _named(values) for key, values in sums.items()}


def _named(values: list[int]) -> dict[str, object]:
    found = dict(zip(_COUNTS, values, strict=True))
    rate = round(found["errors"] / found["requests"], 6) if found["requests"] else 0.0
    money = {name: found[name] / NANO for name in _MONEY}
    unknown = {time: dict.fromkeys(map("p{}".format, PERCENTILES)) for time in _TIMES}
    return {**found, **money, "error_rate": rate, **unknown}


def _rank(groups: _Groups, time: str, rows: Sequence[Sequence[object]]) -> None:
    for kind, *found in rows:
        key, ranks = found[: -len(PERCENTILES)], found[-len(PERCENTILES) :]
        named = (str(kind), tuple(key[: len(_GROUPINGS[str(kind)].columns)]))
        groups[named][time] = {f"p{percent}": rank for percent, rank in zip(PERCENTILES, ranks, strict=True)}


def _listed(groups: _Groups, wanted: str) -> list[Answer]:
    """Return a grouping's groups, the busiest first."""
    names = _GROUPINGS[wanted].names
    found = [{**dict(zip(names, key, strict=True)), **group} for (kind, key), group in groups.items() if kind == wanted]
    return sorted(found, key=lambda group: -cast("int", group["requests"]))


def _counts(where: str) -> str:
    keys = ", ".join(_KEYS)
    return f"SELECT {keys}, {', '.join(_COUNTS.values())} FROM gateway_requests WHERE {where} GROUP BY {keys}"  # noqa: S608 - SQL of our own, values are parameters


def _ranks(where: str, time: str) -> str:
    """Return the query for the percentiles of a time in every grouping: `n` is how often a value `v` occurred."""
    keys = ", ".join(_KEYS)
    counted = (
        f"SELECT {keys}, {_three_digits(time)} AS v, count(*) AS n FROM gateway_requests"  # noqa: S608 - as above
        f" WHERE {where} AND {time} IS NOT NULL AND {_TIMES[time]} GROUP BY 1, 2, 3, 4, 5, 6"
    )
    ranked = " UNION ALL ".join(_ranked(kind, grouping) for kind, grouping in _GROUPINGS.items())
    return f"WITH counted AS ({counted}) {ranked}"


def _ranked(kind: str, grouping: _Grouping) -> str:
    """Return the query for a grouping's percentiles: `upto` counts the values up to `v`, `among` all of them."""
    most = max(len(each.columns) for each in _GROUPINGS.values())
    columns = (*grouping.columns, *["CAST(NULL AS TEXT)"] * (most - len(grouping.columns)))
    keys = ", ".join(f"k{place}" for place in range(most))
    listed = ", ".join(f"{column} AS k{place}" for place, column in enumerate(columns))
    picked = ", ".join(f"min(v) FILTER (WHERE 100 * upto >= {percent} * among)" for percent in PERCENTILES)
    summed = f"sum(n) OVER (PARTITION BY {keys} ORDER BY v) AS upto, sum(n) OVER (PARTITION BY {keys}) AS among"
    chosen = f"SELECT {listed}, v, n FROM counted WHERE {grouping.condition}"  # noqa: S608 - as above
    return (
        f"SELECT '{kind}', {keys}, {picked} FROM"  # noqa: S608 - as above
        f" (SELECT {keys}, v, {summed} FROM ({chosen}) AS chosen) AS ranked GROUP BY {keys}"
    )


def _three_digits(time: str) -> str:
    """Return SQL that rounds to three digits; below 10 ms to hundredths. SQLite rounds half up, PostgreSQL to even."""
    return (
        f"CASE WHEN {time} < 10 THEN round({time} * 100) / 100 WHEN {time} < 100 THEN round({time} * 10) / 10"
        f" WHEN {time} < 1000 THEN round({time}) WHEN {time} < 10000 THEN round({time} / 10) * 10"
        f" WHEN {time} < 100000 THEN round({time} / 100) * 100 ELSE round({time} / 1000) * 1000 END"
    )
