"""Which database a place means: the store that writes to it, and the reader that queries it.

SQLite is imported when it is used: it takes a megabyte, and many gateways keep no ledger.
"""

from contextlib import AbstractContextManager

from gateway.config.ledger_place import Place
from gateway.observe.ledger.postgres import PostgresStore, check_driver, read_postgres
from gateway.observe.ledger.store import Reader, Store


def check(place: Place) -> None:
    """Raise ValueError, saying what to do, if a place's driver is missing or rejects its URL. Opens nothing."""
    if place.kind == "postgresql":
        check_driver(place.url)
    else:
        store_at(place)  # imports SQLite now: later there may be no file descriptor left for it


def store_at(place: Place) -> Store:
    """Return the store of a place; nothing is opened yet."""
    if place.kind == "postgresql":
        return PostgresStore(place.url)
    from gateway.observe.ledger.sqlite import SqliteStore  # noqa: PLC0415 - see above

    return SqliteStore(place.path)


def reader_at(place: Place, seconds: float) -> AbstractContextManager[Reader]:
    """Return a reader with a limit of so many seconds; entering it may raise UnavailableError. Blocking."""
    if place.kind == "postgresql":
        return read_postgres(place.url, seconds)
    from gateway.observe.ledger.sqlite import read_sqlite  # noqa: PLC0415 - see above

    return read_sqlite(place.path, seconds)
