"""The tables, and how an older one becomes today's.

`gateway_ledger` holds one number: the version of the schema. `MIGRATIONS[0]` makes version 1, each further entry one
more version, in one of the dialects or in both; an entry that was released does not change. A ledger is brought forward
when it is opened, in one transaction, whatever the version it has. One that is newer than this gateway knows is refused
and stays untouched.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from gateway.observe.ledger.rows import COLUMNS, MICROSECONDS, NAMES, PER_MICROSECOND
from gateway.observe.ledger.store import UnavailableError

Dialect = Literal["sqlite", "postgresql"]

TYPES: Final[Mapping[Dialect, Mapping[str, str]]] = {
    "sqlite": {
        "bigint": "INTEGER",
        "integer": "INTEGER",
        "boolean": "INTEGER",
        "real": "REAL",
        "text": "TEXT",
        "json": "TEXT",
        "time": "REAL",
    },
    "postgresql": {
        "bigint": "BIGINT",
        "integer": "INTEGER",
        "boolean": "BOOLEAN",
        "real": "DOUBLE PRECISION",
        "text": "TEXT",
        "json": "JSONB",
        "time": "TIMESTAMPTZ",
    },
}
_MAY_LACK: Final = frozenset(
    {"model_id", "served_model", "deployment", "deployment_group", "failure", "failed_attempts", "rescue", "ttft_ms"}
)
_COUNTED: Final = ("_tokens", "_nusd")
_TYPED: Final = tuple(
    f"  {name} {{{kind}}}{'' if name in _MAY_LACK or name.endswith(_COUNTED) else ' NOT NULL'}"
    for name, kind in COLUMNS
)
_NAMES: Final = ", ".join(NAMES)
_FIRST: Final = (
    "CREATE TABLE gateway_requests (\n" + ",\n".join(_TYPED) + ",\n  PRIMARY KEY (run, seq)\n)",
    "CREATE INDEX gateway_requests_time ON gateway_requests (time)",
    "CREATE INDEX gateway_requests_model ON gateway_requests (model_id, time)",
    "CREATE INDEX gateway_requests_deployment ON gateway_requests (deployment, time)",
)

_FEWER_INDEXES: Final = (
    "DROP INDEX IF EXISTS gateway_requests_model",
    "DROP INDEX IF EXISTS gateway_requests_deployment",
)
"""A question is of the last hours, which `time` finds; the others cost each row a fifth of what it takes to write."""

_MICROSECOND: Final = f"CAST(time * {MICROSECONDS} AS INTEGER)"
_ID: Final = (
    f"{_MICROSECOND} * {PER_MICROSECOND} - 1 + row_number() OVER (PARTITION BY {_MICROSECOND} ORDER BY time, run, seq)"
)
_BY_TIME: Final = (
    "ALTER TABLE gateway_requests RENAME TO gateway_older",
    "CREATE TABLE gateway_requests (\n  id INTEGER PRIMARY KEY,\n" + ",\n".join(_TYPED) + "\n)",
    f"INSERT INTO gateway_requests (id, {_NAMES}) SELECT {_ID}, {_NAMES} FROM gateway_older",  # noqa: S608 - our own
    "DROP TABLE gateway_older",
)
"""In SQLite an index costs a row as much as the row itself; `id` is of the time, so that a table does without any."""

Migration = Sequence[str] | Mapping[Dialect, Sequence[str]]
Migrations = Sequence[Migration]
MIGRATIONS: Final[Migrations] = (_FIRST, _FEWER_INDEXES, {"sqlite": _BY_TIME, "postgresql": ()})


class Connection(Protocol):
    """What both drivers have."""

    def execute(self, query: Any, /) -> Any:  # noqa: ANN401 - each driver has its own types
        """Run a statement; what comes back is a cursor."""
        ...


def migrate(connection: Connection, dialect: Dialect, migrations: Migrations) -> None:
    """Bring a ledger to the newest version, inside the transaction that is open.

    Raises:
        UnavailableError: it is of a newer version.

    """
    connection.execute("CREATE TABLE IF NOT EXISTS gateway_ledger (version INTEGER NOT NULL)")
    found = connection.execute("SELECT version FROM gateway_ledger").fetchone()
    if found is None:
        connection.execute("INSERT INTO gateway_ledger (version) VALUES (0)")
    version = found[0] if found else 0
    if version > len(migrations):
        told = f"its schema has version {version} and this gateway knows {len(migrations)}"
        raise UnavailableError(f"{told}: use a newer gateway, or another ledger")
    for migration in migrations[version:]:
        for statement in migration[dialect] if isinstance(migration, Mapping) else migration:
            connection.execute(statement.format_map(TYPES[dialect]))
        connection.execute("UPDATE gateway_ledger SET version = version + 1")
