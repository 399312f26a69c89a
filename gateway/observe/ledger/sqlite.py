"""The ledger in a SQLite file.

WAL keeps readers and the writer out of each other's way. With `synchronous=NORMAL` a commit is not brought to the disk
at once: a killed process loses nothing of it, a machine that loses power may lose the last commits.

The file belongs to the operator: it may be removed or replaced while it is open. SQLite would go on writing into what
has no name any more, so that the file under the path is compared before each batch and after it; a batch that went
into a file that is gone is written again into the next one.

A statement lets other threads run, and waits for its turn afterwards, up to 5 ms when the event loop is busy. So rows
are written many to a statement; 999 is the least number of parameters that a SQLite allows. More than half of what a
row takes is to hand its values over, one by one. Rows that are alike but for what is each request's own (`_OWN`) are
written by one statement, which is handed the rest once.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Final

from gateway.observe.ledger.rows import NAMES, Row, Value
from gateway.observe.ledger.schema import MIGRATIONS, Migrations, migrate
from gateway.observe.ledger.store import Reader, RefusedError, UnavailableError

_BUSY_SECONDS: Final = 0.25
_MODE: Final = 0o640
_WAL_LEFT: Final = 16 << 20
_LOOKS: Final = 1_000_000
_READING: Final = ("temp_store = MEMORY", "cache_size = -32768")
_OWN: Final = (
    "seq",
    "time",
    "request_id",
    "ttft_ms",
    "duration_ms",
    "prompt_tokens",
    "completion_tokens",
    "cost_nusd",
    "avoided_nusd",
)
_ALIKE: Final = tuple(name for name in NAMES if name not in _OWN)
_CHUNKS: Final = ((999 - len(_ALIKE)) // len(_OWN), 20, 4, 1)
_own: Final = itemgetter(*map(NAMES.index, _OWN))
_alike: Final = itemgetter(*map(NAMES.index, _ALIKE))
_PRUNE: Final = (
    "DELETE FROM gateway_requests WHERE rowid IN (SELECT rowid FROM gateway_requests WHERE time < ? LIMIT ?)"
)
_BAD_ROW: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, ValueError)


class SqliteStore:
    """A SQLite file; `path` is relative to the working directory, and its folder is created."""

    def __init__(self, path: str, migrations: Migrations = MIGRATIONS) -> None:
        self._path = Path(path)
        self._migrations = migrations
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        with self._told():
            connection = self._open()
            if not rows:
                return
            with _transaction(connection):
                _insert(connection, rows)
            if self._is_gone():
                raise FileNotFoundError("the file was removed while it was written")

    def prune(self, before: float, most: int) -> int:
        """Delete old rows."""
        with self._told():
            connection = self._open()
            with _transaction(connection):
                return connection.execute(_PRUNE, (before, most)).rowcount

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
            with suppress(sqlite3.Error):  # a file that was moved is to hold all of its rows
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
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LEFT}")
            with _transaction(connection):
                migrate(connection, "sqlite", self._migrations)
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

    since = ":since"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, query: str, parameters: Mapping[str, Value]) -> Sequence[Sequence[object]]:
        """Run a query."""
        try:
            return self._connection.execute(query, dict(parameters)).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(_reason(error)) from error


@contextmanager
def read_sqlite(path: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Reader]:
    """Open a file for reading, for at most so many seconds."""
    connection = None
    ends = clock() + seconds
    try:
        uri = f"{Path(path).absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.set_progress_handler(lambda: clock() > ends, _LOOKS)
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
    """Commit what is done inside; what fails is rolled back by closing the connection."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    kinds: dict[Row, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_alike(row), []).append(_own(row))
    for alike, those in kinds.items():
        start = 0
        for size in _CHUNKS:
            while len(those) - start >= size:
                values = chain(alike, *those[start : start + size])
                connection.execute(_statement(size), tuple(values))
                start += size


@cache
def _statement(rows: int) -> str:
    """Write the statement that inserts so many rows: parameters are the columns that are alike, then each row's own."""
    given, each = len(_ALIKE), len(_OWN)
    alike = ", ".join(f"?{number + 1}" for number in range(given))
    places = range(given + 1, given + 1 + rows * each, each)
    own = ", ".join(f"({', '.join(f'?{place + number}' for number in range(each))})" for place in places)
    return (
        f"INSERT INTO gateway_requests ({', '.join((*_ALIKE, *_OWN))})"  # noqa: S608 - names of our own
        f" SELECT {alike}, * FROM (VALUES {own}) WHERE TRUE ON CONFLICT DO NOTHING"
    )


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - called for each batch
    return found.st_dev, found.st_ino


def _reason(error: Exception) -> str:
    """Say why; what SQLite calls interrupted has run into our limit."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a part of its path is not a folder"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else str(error)
    return "it takes too long" if str(error) == "interrupted" else str(error)
