"""Both databases, for real: what is written is read, once; what is old goes; versions go forward."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace
from pydantic import SecretStr

from gateway.config.ledger_place import Place
from gateway.execution.outcome import Attempt, Usage
from gateway.observe.batch import Batch
from gateway.observe.cost import Cost
from gateway.observe.ledger.places import reader_at
from gateway.observe.ledger.postgres import PostgresStore, check_driver
from gateway.observe.ledger.rows import NAMES, id_of
from gateway.observe.ledger.rows import rows as made
from gateway.observe.ledger.schema import MIGRATIONS, Migrations, migrate
from gateway.observe.ledger.sqlite import SqliteStore
from gateway.observe.ledger.store import RefusedError, Store, UnavailableError
from tests.observe.ledger.outcomes import PLAIN, Postgres, batch, outcome, rows

NEWER: Migrations = (*MIGRATIONS, ("ALTER TABLE gateway_requests ADD COLUMN region {text}",))
FULL = replace(
    outcome(7),
    model="alias",
    generation=3,
    status=200,
    attempts=(Attempt("llama", "far", "remote", 3.25, 503, "server_error", "a detail"), PLAIN.attempts[0]),
    fallback=True,
    stream=True,
    usage=Usage(10, 20, 4, 5),
    lost=Usage(1, 2),
    failure="cut_answer",
    client_name="alice",
)


class Database:
    """One of the two: where it is, a store of it, and a look into it."""

    def __init__(self, place: Place, make: Callable[[Migrations], Store]) -> None:
        self.place = place
        self._make = make
        self._made: list[Store] = []

    def store(self, migrations: Migrations = MIGRATIONS) -> Store:
        self._made.append(self._make(migrations))
        return self._made[-1]

    def ask(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        with reader_at(self.place, 10) as reader:
            return [tuple(found) for found in reader.rows(query.format(since=reader.since), parameters)]

    def close(self) -> None:
        for store in self._made:
            store.close()


def database_at(path: Path) -> Database:
    return Database(Place.of(f"sqlite:///{path}"), lambda migrations: SqliteStore(str(path), migrations))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Make an empty database of each sort."""
    if request.param == "sqlite":
        path = tmp_path / "new folder" / "ledger.db"
        made = database_at(path)
    else:
        server: Postgres = request.getfixturevalue("postgres")
        name = f"stores_{abs(hash(request.node.name))}"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name}".encode())
            connection.execute(f"CREATE DATABASE {name}".encode())
        url = server.secret(name)
        made = Database(server.place(name), lambda migrations: PostgresStore(url, migrations))
    yield made
    made.close()


def numbers(database: Database) -> list[int]:
    return [found for (found,) in database.ask("SELECT seq FROM gateway_requests ORDER BY seq")]


def test_a_row_comes_back_as_it_was_written(database: Database) -> None:
    batch = Batch([1_700_000_000.25], [FULL])
    batch.odd_costs = [Cost(11, 12)]
    database.store().write(made(5, 1, batch, id_of(1_700_000_000.25)))
    columns = ", ".join(name for name in NAMES if name not in {"time", "failed_attempts"})
    (found,) = database.ask(f"SELECT {columns} FROM gateway_requests")  # noqa: S608 - names of our own
    expected = (
        *(5, 1, "r-7", "chat/completions", "alias", "llama", "llama", "near", "local", 3, 200, "cut_answer"),
        *(2, True, None, True, 10.0, 12.5, 10, 20, 4, 5, 1, 2, 11, 12, "alice"),
    )
    assert found == expected
    in_sqlite = "SELECT failed_attempts ->> '$[0].failure', time FROM gateway_requests WHERE {since}"
    elsewhere = in_sqlite.replace("->> '$[0].failure', time", "-> 0 ->> 'failure', extract(epoch FROM time)")
    query = in_sqlite if database.place.kind == "sqlite" else elsewhere
    ((failure, time),) = database.ask(query, since=1_700_000_000.25)
    assert (failure, float(time)) == ("server_error", 1_700_000_000.25)
    assert database.ask("SELECT 1 FROM gateway_requests WHERE {since}", since=1_700_000_000.5) == []


def test_many_rows_are_written_once_however_often_they_are_sent(database: Database) -> None:
    store = database.store()
    store.write(rows(*range(1_234)))
    store.write(rows(*range(1_200, 1_300)))
    store.write(rows(1, run=2))
    assert numbers(database) == sorted([*range(1_300), 1])


def test_a_store_that_writes_nothing_makes_the_tables(database: Database) -> None:
    store = database.store()
    store.write([])
    store.write([])
    assert numbers(database) == []


def test_old_rows_go_a_few_at_a_time(database: Database) -> None:
    store = database.store()
    store.write([*rows(1, 2, 3, at=100.0), *rows(4, 5, at=200.0)])
    assert [store.prune(200.0, 2), store.prune(200.0, 2), store.prune(200.0, 2)] == [2, 1, 0]
    assert numbers(database) == [4, 5]


def test_a_row_that_cannot_be_written_is_refused_and_takes_no_other_along(database: Database) -> None:
    store = database.store()
    (good,) = rows(2)
    bad = good._replace(shared={**good.shared, "generation": 2**70})
    with pytest.raises(RefusedError):
        store.write([*rows(1), bad, *rows(3)])
    store.write(rows(4))
    assert numbers(database) == [4]


def test_an_older_schema_is_brought_forward_with_its_rows(database: Database) -> None:
    database.store().write(rows(1))
    assert database.ask("SELECT version FROM gateway_ledger") == [(4,)]
    database.store(NEWER).write(rows(2))
    assert database.ask("SELECT version FROM gateway_ledger") == [(5,)]
    assert database.ask("SELECT seq, region FROM gateway_requests ORDER BY seq") == [(1, None), (2, None)]


def test_a_new_ledger_is_what_an_old_one_becomes() -> None:
    def schema(*versions: int) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(":memory:")
        for version in versions:
            migrate(connection, "sqlite", MIGRATIONS[:version])
        told = "SELECT type, name, replace(sql, '\"', '') FROM sqlite_master ORDER BY type, name"
        found = connection.execute(told).fetchall()
        found += connection.execute("SELECT version FROM gateway_ledger").fetchall()
        connection.close()
        return found

    assert schema(3) == schema(1, 2, 3)


def test_rows_of_the_second_version_keep_what_they_are_and_lie_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    migrate(connection, "sqlite", MIGRATIONS[:2])
    given = [(1, 1, 1000.5, "a"), (1, 2, 1000.5, "b"), (2, 1, 999.0, "c")]
    alike = [(3, number, 998.0, "d") for number in range(3_000)]
    columns = (
        "run, seq, time, request_id, operation, model, generation, status, attempts, fallback, stream, duration_ms"
    )
    values = "?, ?, ?, ?, 'completions', 'm', 1, 200, 1, 0, 0, 2.5"
    connection.executemany(f"INSERT INTO gateway_requests ({columns}) VALUES ({values})", given + alike)  # noqa: S608 - our own
    connection.commit()
    connection.close()
    store = SqliteStore(str(path))
    store.write(rows(4, at=1_001.0))
    store.close()
    with reader_at(Place.of(f"sqlite:///{path}"), 10) as reader:
        found = reader.rows("SELECT run, seq, time, request_id FROM gateway_requests ORDER BY id", {})
        assert found == [*alike, given[2], given[0], given[1], (1, 4, 1_001.0, "r-4")]
    late = database_at(path).ask("SELECT request_id FROM gateway_requests WHERE {since} ORDER BY id", since=1_000.5)
    assert late == [("a",), ("b",), ("r-4",)]


def test_what_others_added_to_the_second_version_stays(tmp_path: Path) -> None:
    """Indexes, triggers and columns used to go, and views read a table that was gone."""
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    migrate(connection, "sqlite", MIGRATIONS[:2])
    names = "run, seq, time, request_id, operation, model, generation, status, attempts, fallback, stream, duration_ms"
    connection.executescript(
        f"""
        ALTER TABLE gateway_requests ADD COLUMN "the team" TEXT DEFAULT 'none';
        ALTER TABLE gateway_requests ADD COLUMN seconds REAL AS (duration_ms / 1000);
        INSERT INTO gateway_requests ({names}, "the team") VALUES (1, 1, 5, 'a', 'c', 'm', 1, 200, 1, 0, 0, 2.5, 'us');
        CREATE UNIQUE INDEX IF NOT EXISTS mine ON gateway_requests (request_id) WHERE status = 200;
        CREATE INDEX by_team ON gateway_requests ("the team", seconds);
        CREATE TABLE heard (id TEXT);
        CREATE TRIGGER hear AFTER INSERT ON Gateway_Requests BEGIN INSERT INTO heard VALUES (new.request_id); END;
        CREATE VIEW teams AS SELECT request_id, "the team", seconds FROM gateway_requests;
        CREATE VIEW broken AS SELECT * FROM nowhere;
        CREATE TRIGGER forget INSTEAD OF DELETE ON teams BEGIN
          DELETE FROM gateway_requests WHERE request_id = old.request_id;
        END;
        """  # noqa: S608 - our own
    )
    connection.close()
    store = SqliteStore(str(path))
    store.write(rows(4, at=1_001.0))
    store.close()
    connection = sqlite3.connect(path)

    def ask(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query).fetchall()

    assert ask("SELECT * FROM teams ORDER BY 1") == [("a", "us", 0.0025), ("r-4", "none", 0.0125)]
    assert ask("SELECT id FROM heard") == [("r-4",)]
    found = ask("SELECT type, name FROM sqlite_master ORDER BY type, name")
    assert found == [
        *[("index", "by_team"), ("index", "mine"), ("table", "gateway_ledger"), ("table", "gateway_requests")],
        *[("table", "heard"), ("trigger", "forget"), ("trigger", "hear"), ("view", "broken"), ("view", "teams")],
    ]
    with pytest.raises(sqlite3.IntegrityError, match=r"gateway_requests\.request_id"):
        ask("UPDATE gateway_requests SET request_id = 'one'")
    ask("DELETE FROM teams WHERE request_id = 'a'")
    assert ask("SELECT seq FROM gateway_requests") == [(4,)]
    connection.close()


def test_two_processes_may_want_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    one, other = SqliteStore(str(path)), SqliteStore(str(path))
    one.write(rows(*range(200)))
    other.write(rows(*range(100, 300), run=2))
    other.write(rows(*range(100, 300), run=2))
    one.close()
    other.close()
    with reader_at(Place.of(f"sqlite:///{path}"), 10) as reader:
        found = reader.rows("SELECT run, count(*), count(DISTINCT seq) FROM gateway_requests GROUP BY run", {})
    assert found == [(1, 200, 200), (2, 200, 200)]


def test_rows_that_share_what_they_can_are_all_written(database: Database) -> None:
    store = database.store()
    whole = made(7, 1, batch(*range(256)), id_of(5.0))
    assert [len(each.values) for each in whole] == [256]
    store.write(whole)
    store.write(whole)
    found = database.ask("SELECT seq, request_id, cost_nusd FROM gateway_requests ORDER BY seq")
    assert found == [(1 + number, f"r-{number}", 5 if number else None) for number in range(256)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_ledger_that_grows_takes_no_more_memory(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from gateway.observe.ledger.rows import id_of, rows
from gateway.observe.ledger.sqlite import SqliteStore
from tests.observe.ledger.outcomes import batch

store = SqliteStore(sys.argv[1])
for second in range(100):
    numbers = range(500 * second, 500 * second + 500)
    store.write(rows(1, numbers.start + 1, batch(*numbers), id_of(1_000.0 + second)))
    if second in {5, 99}:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        print(status.partition("RssAnon:")[2].split()[0])
store.close()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "ledger.db")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])  # noqa: S603 - our own
    before, after = map(int, told.stdout.split())
    assert (tmp_path / "ledger.db").stat().st_size > 4 << 20
    assert after - before < 1_000


def test_an_empty_ledger_takes_all_versions_at_once(database: Database) -> None:
    database.store(NEWER).write(rows(1))
    assert database.ask("SELECT version, region FROM gateway_ledger, gateway_requests") == [(5, None)]


def test_a_newer_schema_is_refused_and_stays_as_it_is(database: Database) -> None:
    database.store(NEWER).write(rows(1))
    with pytest.raises(
        UnavailableError, match="its schema has version 5 and this gateway knows 4: use a newer gateway"
    ):
        database.store().write(rows(2))
    assert database.ask("SELECT version FROM gateway_ledger") == [(5,)]
    assert numbers(database) == [1]


def test_a_migration_that_fails_leaves_nothing_behind(database: Database) -> None:
    database.store().write(rows(1))
    broken: Migrations = (*MIGRATIONS, ("CREATE TABLE half (a {text})", "ALTER TABLE nothing ADD COLUMN b {text}"))
    with pytest.raises(UnavailableError, match="nothing"):
        database.store(broken).write(rows(2))
    assert database.ask("SELECT version FROM gateway_ledger") == [(4,)]
    with pytest.raises(UnavailableError, match="half"):
        database.ask("SELECT * FROM half")
    database.store().write(rows(3))
    assert numbers(database) == [1, 3]


def test_no_row_is_to_blame_for_a_migration_that_does_not_fit_what_is_there(database: Database) -> None:
    database.store().write(rows(1))
    broken: Migrations = (*MIGRATIONS, ("INSERT INTO gateway_ledger (version) VALUES (NULL)",))
    with pytest.raises(UnavailableError, match="version"):
        database.store(broken).write(rows(2))
    assert numbers(database) == [1]


def test_what_takes_too_long_is_stopped(database: Database) -> None:
    database.store().write([])
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with reader_at(database.place, 0.05) as reader, pytest.raises(UnavailableError, match="the query took too long"):
        reader.rows(endless, {})


def test_a_bad_query_is_told(database: Database) -> None:
    database.store().write([])
    with reader_at(database.place, 10) as reader, pytest.raises(UnavailableError, match="nowhere"):
        reader.rows("SELECT * FROM nowhere", {})


def test_a_look_is_at_one_moment_and_changes_nothing(database: Database) -> None:
    store = database.store()
    store.write(rows(1))
    with reader_at(database.place, 10) as reader:
        assert [tuple(found) for found in reader.rows("SELECT seq FROM gateway_requests", {})] == [(1,)]
        store.write(rows(2))
        assert [tuple(found) for found in reader.rows("SELECT seq FROM gateway_requests", {})] == [(1,)]
        with pytest.raises(UnavailableError, match=r"read-?only"):
            reader.rows("DELETE FROM gateway_requests", {})
    assert numbers(database) == [1, 2]


def test_a_removed_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(str(path))
    store.write(rows(1))
    path.unlink()
    store.write(rows(2))
    path.rename(tmp_path / "moved.db")
    store.write([])
    assert path.exists()
    store.close()
    assert sqlite_numbers(path) == []
    assert sqlite_numbers(tmp_path / "moved.db") == [2]
    assert path.stat().st_mode & 0o777 == 0o640


class RemovedMeanwhile(Sequence[Any]):
    """Rows whose reading removes the file that they are written to."""

    def __init__(self, path: Path, content: Sequence[Any]) -> None:
        self._path = path
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def __getitem__(self, index: Any) -> Any:
        self._path.unlink(missing_ok=True)
        return self._content[index]


def test_rows_that_went_into_a_file_that_is_gone_are_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(str(path))
    store.write([])
    with pytest.raises(UnavailableError, match="the file was removed while it was written"):
        store.write(RemovedMeanwhile(path, rows(1)))
    store.write(rows(1))
    store.close()
    assert sqlite_numbers(path) == [1]


def sqlite_numbers(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [number for (number,) in connection.execute("SELECT seq FROM gateway_requests ORDER BY seq")]
    finally:
        connection.close()


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, but text that is long enough to be looked at" * 10)
    with pytest.raises(UnavailableError, match="file is not a database"):
        SqliteStore(str(tmp_path / "text")).write(rows(1))
    with pytest.raises(UnavailableError, match="is a directory"):
        SqliteStore(str(tmp_path)).write(rows(1))
    with pytest.raises(UnavailableError, match="is a directory"), reader_at(Place.of(f"sqlite:///{tmp_path}"), 1):
        pass
    with pytest.raises(UnavailableError, match="a part of its path is not a folder"):
        SqliteStore(str(tmp_path / "text" / "ledger.db")).write(rows(1))
    with pytest.raises(UnavailableError, match="unable to open"), reader_at(Place.of(f"sqlite:///{tmp_path}/none"), 1):
        pass


def test_a_locked_file_takes_rows_once_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(str(path))
    store.write(rows(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store.write([])  # has nothing to wait for
    with pytest.raises(UnavailableError, match="database is locked"):
        store.write(rows(2))
    with reader_at(Place.of(f"sqlite:///{path}"), 1) as reader:
        assert reader.rows("SELECT count(*) FROM gateway_requests", {}) == [(1,)]
    other.execute("ROLLBACK")
    other.close()
    store.write(rows(2))
    store.close()
    assert sqlite_numbers(path) == [1, 2]


def test_a_batch_that_fails_half_way_leaves_the_file_free(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(str(path))
    store.write(rows(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("ALTER TABLE gateway_requests RENAME TO elsewhere")
    with pytest.raises(UnavailableError, match="no such table"):
        store.write(rows(2))
    other.execute("ALTER TABLE elsewhere RENAME TO gateway_requests")
    other.close()
    store.write(rows(2))
    store.close()
    assert sqlite_numbers(path) == [1, 2]


def test_a_server_that_is_away_is_told_without_a_secret(postgres: Postgres) -> None:
    nowhere = SecretStr("postgresql://keeper:canary@/none?host=/nowhere&connect_timeout=1")
    with pytest.raises(UnavailableError, match="nowhere") as caught:
        PostgresStore(nowhere).write(rows(1))
    assert "canary" not in str(caught.value)
    place = postgres.place("no_such_database")
    with pytest.raises(UnavailableError, match="no_such_database"), reader_at(place, 1):
        pass


def test_a_locked_table_takes_rows_once_it_is_free(
    postgres: Postgres, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.place.kind == "sqlite":
        return
    monkeypatch.setattr("gateway.observe.ledger.postgres._LONGEST_STATEMENT", 300)
    store = database.store()
    store.write(rows(1))
    ((name,),) = database.ask("SELECT current_database()")
    with psycopg.connect(postgres.url(name), options="-c idle_in_transaction_session_timeout=20s") as connection:
        connection.execute("LOCK TABLE gateway_requests")
        store.write([])  # has nothing to wait for
        with pytest.raises(UnavailableError, match="statement timeout"):
            store.write(rows(2))
    store.write(rows(2))
    assert numbers(database) == [1, 2]


def test_a_connection_that_is_cut_is_made_again(postgres: Postgres, database: Database) -> None:
    if database.place.kind == "sqlite":
        return
    store = database.store()
    store.write(rows(1))
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hybrid-inference-gateway'"
        )
    with pytest.raises(UnavailableError):
        store.write(rows(2))
    store.write(rows(2))
    assert numbers(database) == [1, 2]


def test_a_server_that_goes_away_around_the_queries_is_told(postgres: Postgres) -> None:
    place, beyond = postgres.place(), 1e9
    with pytest.raises(UnavailableError, match="statement_timeout"), reader_at(place, beyond):
        pass
    with (
        psycopg.connect(postgres.url(), autocommit=True) as connection,
        pytest.raises(UnavailableError),
        reader_at(place, 10) as reader,
    ):
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", *reader.rows("SELECT pg_backend_pid()", {}))


def test_a_url_is_checked_without_connecting() -> None:
    check_driver(SecretStr("postgresql://keeper@host-that-is-not-there/ledger"))
    with pytest.raises(ValueError, match="found a URL that libpq does not accept") as caught:
        check_driver(SecretStr("postgresql://keeper:canary@host/ledger?canary=1"))
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_driver_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(
        ValueError, match=r"expected psycopg: install the extra postgres, or pip install 'psycopg\[binary\]"
    ):
        check_driver(SecretStr("postgresql://keeper@host/ledger"))


def test_rows_of_requests_that_others_answered_keep_who_answered(database: Database) -> None:
    answers = [Attempt("llama", name, group, 1.0, 200) for name, group in (("near", "local"), ("far", "remote"))]
    mixed = Batch([5.0] * 4, [replace(outcome(number), attempts=(answers[number % 2],)) for number in range(4)])
    [whole] = made(7, 1, mixed, id_of(5.0))
    assert len(whole.values) == 4
    database.store().write([whole])
    found = database.ask("SELECT request_id, deployment, deployment_group FROM gateway_requests ORDER BY seq")
    assert found == [(f"r-{number}", *(("near", "local"), ("far", "remote"))[number % 2]) for number in range(4)]
