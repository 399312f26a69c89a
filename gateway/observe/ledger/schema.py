"""The tables, and how older ones are migrated.

`gateway_ledger` holds one number: the version of the schema. `MIGRATIONS[0]` makes version 1, each further entry the
next version, in one of the dialects or in both; an entry that was released does not change. A ledger is migrated when
it is opened, in one transaction, from whatever version it has. One that is newer than this gateway knows is refused and
stays untouched.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from gateway.observe.ledger.rows import COLUMNS, MICROSECONDS, PER_MICROSECOND
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
_LATER: Final = frozenset({"client"})
_TYPED: Final = tuple(
    f"  {name} {{{kind}}}{'' if name in _MAY_LACK or name.endswith(_COUNTED) else ' NOT NULL'}"
    for name, kind in COLUMNS
    if name not in _LATER
)
_PRIMARY_KEY: Final = ",\n  PRIMARY KEY (run, seq)"
_FIRST: Final = (
    "CREATE TABLE gateway_requests (\n" + ",\n".join(_TYPED) + _PRIMARY_KEY + "\n)",
    "CREATE INDEX gateway_requests_time ON gateway_requests (time)",
    "CREATE INDEX gateway_requests_model ON gateway_requests (model_id, time)",
    "CREATE INDEX gateway_requests_deployment ON gateway_requests (deployment, time)",
)

_FEWER_INDEXES: Final = (
    "DROP INDEX IF EXISTS gateway_requests_model",
    "DROP INDEX IF EXISTS gateway_requests_deployment",
)
"""A question is about the last hours, which `time` finds; the other indexes cost a fifth of the time to write a row."""

_MICROSECOND: Final = f"CAST(time * {MICROSECONDS} AS INTEGER)"
_ID: Final = (
    f"{_MICROSECOND} * {PER_MICROSECOND} - 1 + row_number() OVER (PARTITION BY {_MICROSECOND} ORDER BY time, run, seq)"
)
_WRITTEN: Final = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'gateway_requests'"
_GIVEN: Final = "SELECT name FROM pragma_table_xinfo('gateway_requests') WHERE hidden = 0"
_ADDED: Final = (
    "SELECT sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND tbl_name = 'gateway_requests' COLLATE NOCASE"
    " AND sql IS NOT NULL AND name <> 'gateway_requests_time' ORDER BY rowid"
)
"""What others added: all but our own index. In SQLite an index costs each row as much as the row itself."""


class Connection(Protocol):
    """What both drivers have in common."""

    def execute(self, query: Any, /) -> Any:  # noqa: ANN401 - each driver has its own types
        """Run a statement and return a cursor."""
        ...


def _lay_by_time(connection: Connection) -> None:
    """Rebuild SQLite's table with an `id` made of the time, so that it needs no index. What others added stays.

    The steps are SQLite's (https://www.sqlite.org/lang_altertable.html#otheralter): a new table takes the old one's
    name. Indexes and triggers go with the old table, and are made again. Views that name the table stay as they are; a
    rename without `legacy_alter_table` would fail because they name a table that does not exist.
    """
    ((written,),) = connection.execute(_WRITTEN).fetchall()
    added = connection.execute(_ADDED).fetchall()
    given = connection.execute(_GIVEN).fetchall()
    columns = ", ".join('"{}"'.format(name.replace('"', '""')) for (name,) in given)
    ((legacy,),) = connection.execute("PRAGMA legacy_alter_table").fetchall()
    for statement in (
        f"CREATE TABLE gateway_newer (\n  id INTEGER PRIMARY KEY,{written.partition('(')[2].replace(_PRIMARY_KEY, '')}",
        f"INSERT INTO gateway_newer (id, {columns}) SELECT {_ID}, {columns} FROM gateway_requests",  # noqa: S608 - their names, quoted
        "DROP TABLE gateway_requests",
        "PRAGMA legacy_alter_table = ON",
        "ALTER TABLE gateway_newer RENAME TO gateway_requests",
        f"PRAGMA legacy_alter_table = {legacy}",
        *(sql for (sql,) in added),
    ):
        connection.execute(statement)


Step = str | Callable[[Connection], None]
Migration = Sequence[Step] | Mapping[Dialect, Sequence[Step]]
Migrations = Sequence[Migration]
_WITH_CLIENT: Final = ("ALTER TABLE gateway_requests ADD COLUMN client {text}",)
MIGRATIONS: Final[Migrations] = (
    _FIRST,
    _FEWER_INDEXES,
    {"sqlite": (_lay_by_time,), "postgresql": ()},
    _WITH_CLIENT,
)

_BY_TIME: Final = "CREATE TABLE gateway_requests (\n  id INTEGER PRIMARY KEY,\n" + ",\n".join(_TYPED) + "\n)"
_BEGINNINGS: Final[Mapping[Dialect, tuple[int, Sequence[str]]]] = {"sqlite": (3, (_BY_TIME,)), "postgresql": (0, ())}
"""The version that a new ledger starts with, and what makes it: rebuilding a table takes SQLite half a megabyte."""


def migrate(connection: Connection, dialect: Dialect, migrations: Migrations) -> None:
    """Migrate a ledger to the newest version, inside the open transaction.

    Raises:
        UnavailableError: it has a newer version.

    """
    connection.execute("CREATE TABLE IF NOT EXISTS gateway_ledger (version INTEGER NOT NULL)")
    found = connection.execute("SELECT version FROM gateway_ledger").fetchone()
    version = found[0] if found else _begin(connection, dialect, len(migrations))
    if version > len(migrations):
        told = f"its schema has version {version} and this gateway knows {len(migrations)}"
        raise UnavailableError(f"{told}: use a newer gateway, or another ledger")
    for migration in migrations[version:]:
        for step in migration[dialect] if isinstance(migration, Mapping) else migration:
            if isinstance(step, str):
                connection.execute(step.format_map(TYPES[dialect]))
            else:
                step(connection)
        connection.execute("UPDATE gateway_ledger SET version = version + 1")


def _begin(connection: Connection, dialect: Dialect, newest: int) -> int:
    """Make a new ledger, and return its version."""
    version, steps = _BEGINNINGS[dialect]
    if version > newest:
        version, steps = 0, ()
    for step in steps:
        connection.execute(step.format_map(TYPES[dialect]))
    connection.execute(f"INSERT INTO gateway_ledger (version) VALUES ({version})")  # noqa: S608 - a number of our own
    return version
