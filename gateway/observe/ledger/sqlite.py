"""The ledger in a SQLite file.

WAL keeps readers and the writer from blocking each other. With `synchronous=NORMAL` a commit is not flushed to disk at
once: a killed process loses nothing, a machine that loses power may lose the last commits.

The file belongs to the operator: it may be removed or replaced while it is open. SQLite would go on writing into a file
without a name, so the file under the path is compared before each batch and after it; a batch that went into a file
that is gone is written again into the next one.

A statement releases the interpreter lock, and waits up to 5 ms to get it back when the event loop is busy. So each
statement writes many rows; 999 is the least number of parameters that any SQLite allows. More than half of a row's cost
is binding its values, one by one: values that rows share are bound once per statement.

Only the end of the file is written, so a quarter of the page cache that SQLite keeps by default is enough.

Rows are stored in the order in which they are written, and their `id` is made of the time (`rows.id_of`): neither a
question about the last hours nor the deletion of old rows needs an index, which would cost each row as much as the row
itself. Two processes may write to one file: a row whose `id` is taken by a row of the other process gets a free one.
"""

import errno
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final

from gateway.observe.ledger.rows import MICROSECONDS, PER_MICROSECOND, Rows, Value, id_of
from gateway.observe.ledger.schema import MIGRATIONS, Migrations, migrate
from gateway.observe.ledger.store import Reader, RefusedError, UnavailableError

_BUSY_SECONDS: Final = 0.25
_MODE: Final = 0o640
_WAL_LEFT: Final = 16 << 20
_WRITING: Final = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    f"journal_size_limit = {_WAL_LEFT}",
    "cache_size = -512",
)
_LOOKS: Final = 1_000_000
_READING: Final = ("temp_store = MEMORY", "cache_size = -32768")
_PARAMETERS: Final = 999
_PRUNE: Final = "DELETE FROM gateway_requests WHERE id IN (SELECT id FROM gateway_requests WHERE id < ? LIMIT ?)"
_BAD_ROW: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, ValueError)
_Keyed = tuple[int, int, float, *tuple[Value, ...]]
"""A row's `id`, and its own values."""


class SqliteStore:
    """A SQLite file; `path` is relative to the working directory, and its folder is created."""

    def __init__(self, path: str, migrations: Migrations = MIGRATIONS) -> None:
        self._path = Path(path)
        self._migrations = migrations
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def write(self, rows: Sequence[Rows]) -> None:
        """Add rows."""
        with self._told():
            connection = self._open()
            if not rows:
                return
            with _transaction(connection):
                for each in rows:
                    _insert(connection, each)
            if self._is_gone():
                raise FileNotFoundError("the file was removed while it was written")

    def prune(self, before: float, most: int) -> int:
        """Delete old rows."""
        with self._told():
            connection = self._open()
            with _transaction(connection):
                return connection.execute(_PRUNE, (id_of(before), most)).rowcount

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except _BAD_ROW as error:
            self.close()
            raise RefusedError(_reason(error)) from error
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise UnavailableError(_reason(error)) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._is_gone():
            with suppress(sqlite3.Error):  # a file that was moved should hold all of its rows
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.close()
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))
            self._connection = self._connected()
            self._identity = _identity(self._path)
        return self._connection

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            for pragma in _WRITING:
                connection.execute(f"PRAGMA {pragma}")
            with _transaction(connection):
                migrate(connection, "sqlite", self._migrations)
        except _BAD_ROW as error:  # what is there does not fit the schema: no new row is to blame
            connection.close()
            raise UnavailableError(_reason(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_gone(self) -> bool:
        try:
            return _identity(self._path) != self._identity
        except OSError:
            return True


class SqliteReader:
    """A SQLite file, open for reading."""

    since = f"id >= CAST(:since * {MICROSECONDS} AS INTEGER) * {PER_MICROSECOND} AND time >= :since"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, query: str, parameters: Mapping[str, Value]) -> Sequence[Sequence[object]]:
        """Run a query."""
        try:
            return self._connection.execute(query, dict(parameters)).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(_reason(error)) from error


@contextmanager
def read_sqlite(path: str, seconds: float) -> Iterator[Reader]:
    """Open a file for reading, for at most so many seconds."""
    if Path(path).is_dir():  # SQLite would say "disk I/O error"
        raise UnavailableError(os.strerror(errno.EISDIR).lower())
    connection = None
    ends = time.monotonic() + seconds
    try:
        uri = f"{Path(path).absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.set_progress_handler(lambda: time.monotonic() > ends, _LOOKS)
        for pragma in _READING:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        yield SqliteReader(connection)
    except sqlite3.Error as error:
        raise UnavailableError(_reason(error)) from error
    finally:
        if connection is not None:
            connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside; after a failure, closing the connection rolls it back."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, rows: Rows) -> None:
    names, shared = tuple(rows.shared), tuple(rows.shared.values())
    keyed: list[_Keyed] = [(number, *values) for number, values in enumerate(rows.values, rows.first)]
    size = (_PARAMETERS - len(names)) // (1 + len(rows.own))
    start, end = 0, len(keyed)
    while start < end:
        if start + size > end:
            size = size // 2  # so that there are few different statements, each prepared once
            continue
        chosen = keyed[start : start + size]
        try:
            connection.execute(_statement(names, rows.own, size), (*chain(shared, *chosen),))
        except sqlite3.IntegrityError:
            for row in chosen:
                _insert_anew(connection, _statement(names, rows.own, 1), shared, row, rows.shared["run"])
        start += size


def _insert_anew(
    connection: sqlite3.Connection,
    statement: str,
    shared: tuple[Value, ...],
    row: _Keyed,
    run: Value,
) -> None:
    """Insert a row under a free `id`, unless it is there already."""
    number, seq, *rest = row
    while not connection.execute(f"{statement} ON CONFLICT (id) DO NOTHING", (*shared, number, seq, *rest)).rowcount:
        there = connection.execute("SELECT run, seq FROM gateway_requests WHERE id = ?", (number,)).fetchone()
        if there == (run, seq):
            return
        number += PER_MICROSECOND


@lru_cache(maxsize=128)
def _statement(shared: tuple[str, ...], own: tuple[str, ...], rows: int) -> str:
    """Return the statement that inserts so many rows: its parameters are the shared values, then each row's own."""
    given = "".join(f"?{place}, " for place in range(1, len(shared) + 1))
    each = f"({given}{', '.join('?' * (1 + len(own)))})"
    return (
        f"INSERT INTO gateway_requests ({', '.join((*shared, 'id', *own))})"  # noqa: S608 - names of our own
        f" VALUES {', '.join([each] * rows)}"
    )


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - called for each batch
    return found.st_dev, found.st_ino


def _reason(error: Exception) -> str:
    """Return why it failed; what SQLite calls interrupted has exceeded our time limit."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a part of its path is not a folder"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else str(error)
    return "the query took too long" if str(error) == "interrupted" else str(error)
