"""Which database a place means: the store that writes there, and the reader that looks into it."""

from contextlib import AbstractContextManager

from gateway.config.ledger_place import Place
from gateway.observe.ledger.postgres import PostgresStore, check_driver, read_postgres
from gateway.observe.ledger.sqlite import SqliteStore, read_sqlite
from gateway.observe.ledger.store import Reader, Store


def check(place: Place) -> None:
    """Raise ValueError, with what to do, when what it takes to reach a place is not installed. Opens nothing."""
    if place.kind == "postgresql":
        check_driver(place.url)


def store_at(place: Place) -> Store:
    """Make the store of a place; nothing is opened yet."""
    return SqliteStore(place.path) if place.kind == "sqlite" else PostgresStore(place.url)


def reader_at(place: Place, seconds: float) -> AbstractContextManager[Reader]:
    """Open a reader for at most so many seconds; entering raises UnavailableError. Blocking."""
    return read_sqlite(place.path, seconds) if place.kind == "sqlite" else read_postgres(place.url, seconds)
