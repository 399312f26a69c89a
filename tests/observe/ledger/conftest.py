"""A PostgreSQL server where the machine has one; ledgers that retry fast and are closed at the end."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest

from gateway.observe.ledger.writer import Ledger
from gateway.observe.log import make_logger
from gateway.observe.sink import LogSink
from tests.observe.ledger.outcomes import Postgres, find_initdb, postgres_server

PATIENCE = 20.0
MakeLedger = Callable[..., Ledger]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run a server for all tests of the session."""
    initdb = find_initdb()
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed (Debian, Ubuntu: apt install postgresql)")
    with postgres_server(initdb.parent) as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> str:
    """Make an empty database."""
    name = f"ledger_{uuid4().hex}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return name


@pytest.fixture
def records() -> LogSink:
    """A sink that is never started: what is logged stays in its queue."""
    return LogSink()


@pytest.fixture
def make_ledger(records: LogSink) -> Iterator[MakeLedger]:
    """Make a ledger: `make_ledger(capacity=10)`."""
    made: list[Ledger] = []

    def make(**options: object) -> Ledger:
        options = {"gather": 0.0, "pause": 0.01} | options
        made.append(Ledger(make_logger(records, "info"), **options))  # type: ignore[arg-type] # as given
        return made[-1]

    yield make
    for ledger in made:
        ledger.close(PATIENCE)
