"""The ledger in PostgreSQL, through psycopg 3, which is imported when it is used: it comes with the extra `postgres`.

A batch is one statement with one JSON parameter: the server takes it apart, and the driver has next to nothing to do
while it holds the interpreter lock. Whether a COMMIT that got no answer took effect is unknown; the batch is sent
again, and rows that are already there stay as they are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pydantic import SecretStr

from gateway.observe.ledger.rows import COLUMNS, NAMES, Rows, Value
from gateway.observe.ledger.schema import MIGRATIONS, TYPES, Migrations, migrate
from gateway.observe.ledger.store import Reader, RefusedError, UnavailableError

if TYPE_CHECKING:
    import psycopg

EXTRA: Final = "the extra postgres, or pip install 'psycopg[binary]>=3.3.9,<3.4'"
_DEFAULTS: Final[Mapping[str, Any]] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "application_name": "hybrid-inference-gateway",
}
_LONGEST_STATEMENT: Final = 10_000
_LOCK: Final = 0x6769_7461_6779
_PARAMETER: Final = re.compile(r":(\w+)")
_SENT: Final = {"time": "DOUBLE PRECISION"}
_READ: Final = ", ".join(f"to_timestamp({name})" if kind == "time" else name for name, kind in COLUMNS)
_TYPED: Final = ", ".join(f"{name} {_SENT.get(kind, TYPES['postgresql'][kind])}" for name, kind in COLUMNS)
_INSERT: Final = (
    f"INSERT INTO gateway_requests ({', '.join(NAMES)}) SELECT {_READ}"  # noqa: S608 - names of our own
    f" FROM json_to_recordset(%s::json) AS sent({_TYPED}) ON CONFLICT DO NOTHING"
)
_PRUNE: Final = (
    "DELETE FROM gateway_requests WHERE (run, seq) IN"
    " (SELECT run, seq FROM gateway_requests WHERE time < to_timestamp(%s) LIMIT %s)"
)


def check_driver(url: SecretStr) -> None:
    """Raise ValueError, saying what to do, if psycopg is missing or cannot read `url`."""
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an extra
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - as above
    except ImportError as error:
        raise ValueError(f"found a PostgreSQL URL without its driver, expected psycopg: install {EXTRA}") from error
    try:
        conninfo_to_dict(url.get_secret_value())
    except ProgrammingError:
        raise ValueError("found a URL that libpq does not accept, expected postgresql://user@host/database") from None


class PostgresStore:
    """A PostgreSQL database."""

    def __init__(self, url: SecretStr, migrations: Migrations = MIGRATIONS) -> None:
        self._url = url
        self._migrations = migrations
        self._connection: psycopg.Connection | None = None

    def write(self, rows: Sequence[Rows]) -> None:
        """Add rows."""
        if not rows and self._connection is not None:
            return
        with self._transaction() as connection:
            sent = msgspec.json.encode([_json(row) for each in rows for row in each.whole]).decode()
            connection.execute(_INSERT, (sent,))

    def prune(self, before: float, most: int) -> int:
        """Delete old rows."""
        with self._transaction() as connection:
            return connection.execute(_PRUNE, (before, most)).rowcount

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # the connection is given up, whatever the driver raises
                connection.close()

    @contextmanager
    def _transaction(self) -> Iterator["psycopg.Connection"]:
        import psycopg  # noqa: PLC0415 - an extra

        try:
            if self._connection is None:
                self._connection = self._connected()
            with self._connection.transaction():
                yield self._connection
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            self.close()
            raise RefusedError(_reason(error)) from error
        except psycopg.Error as error:
            self.close()
            raise UnavailableError(_reason(error)) from error

    def _connected(self) -> "psycopg.Connection":
        import psycopg  # noqa: PLC0415 - an extra

        connection = _connect(self._url)
        try:
            connection.execute(f"SET statement_timeout = {_LONGEST_STATEMENT}")
            with connection.transaction():
                connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                migrate(connection, "postgresql", self._migrations)
        except (psycopg.DataError, psycopg.IntegrityError) as error:  # existing data is at fault, not a new row
            connection.close()
            raise UnavailableError(_reason(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection


class PostgresReader:
    """A PostgreSQL database, open for reading."""

    since = "time >= to_timestamp(:since)"

    def __init__(self, connection: "psycopg.Connection") -> None:
        self._connection = connection

    def rows(self, query: str, parameters: Mapping[str, Value]) -> Sequence[Sequence[object]]:
        """Run a query."""
        import psycopg  # noqa: PLC0415 - an extra

        try:
            return self._connection.execute(_PARAMETER.sub(r"%(\1)s", query).encode(), parameters).fetchall()
        except psycopg.errors.QueryCanceled as error:
            raise UnavailableError("the query took too long") from error
        except psycopg.Error as error:
            raise UnavailableError(_reason(error)) from error


@contextmanager
def read_postgres(url: SecretStr, seconds: float) -> Iterator[Reader]:
    """Connect for reading; each query may take at most so many seconds."""
    import psycopg  # noqa: PLC0415 - an extra

    try:
        with _connect(url) as connection:
            connection.execute(f"SET statement_timeout = {int(seconds * 1000)}")
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            with connection.transaction():
                yield PostgresReader(connection)
    except psycopg.Error as error:
        raise UnavailableError(_reason(error)) from error


def _connect(url: SecretStr) -> "psycopg.Connection":
    """Connect, without prepared statements: a pooler between us and the server would not know them."""
    import psycopg  # noqa: PLC0415 - an extra
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - an extra

    parameters = {**_DEFAULTS, **conninfo_to_dict(url.get_secret_value())}
    return psycopg.connect(autocommit=True, prepare_threshold=None, **parameters)


def _json(row: Mapping[str, Value]) -> Mapping[str, Value | msgspec.Raw]:
    failed = row.get("failed_attempts")
    return {**row, "failed_attempts": msgspec.Raw(failed.encode())} if isinstance(failed, str) else row


def _reason(error: Exception) -> str:
    """Return the first line of the driver's message: the others may quote rows."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
