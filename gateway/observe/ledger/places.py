"""Which database a place means: the store that writes there, and the reader that looks into it.

SQLite is imported when it is used: it takes a megabyte, and many a gateway keeps no ledger.
"""

from contextlib import AbstractContextManager

from gateway.config.ledger_place import Place
from gateway.observe.ledger.postgres import PostgresStore, check_driver, read_postgres
from gateway.observe.ledger.store import Reader, Store


def check(place: Place) -> None:
    """Raise ValueError, with what to do, when what it takes to reach a place is not installed. Opens nothing."""
    if place.kind == "postgresql":
        check_driver(place.url)
    else:
        store_at(place)  # imports SQLite now: later there may be no descriptor left to do so


def store_at(place: Place) -> Store:
    """Make the store of a place; nothing is opened yet."""
    if place.kind == "postgresql":
        return PostgresStore(place.url)
    from gateway.observe.ledger.sqlite import SqliteStore  # noqa: PLC0415 - see above

    return SqliteStore(place.path)


def reader_at(place: Place, seconds: float) -> AbstractContextManager[Reader]:
    """Open a reader for at most so many seconds; entering raises UnavailableError. Blocking."""
    if place.kind == "postgresql":
        return read_postgres(place.url, seconds)
    from gateway.observe.ledger.sqlite import read_sqlite  # noqa: PLC0415 - see above

    return read_sqlite(place.path, seconds)
