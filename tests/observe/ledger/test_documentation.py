"""docs/ledger.md: its table is the table, its SQL runs, its configuration loads."""

import re
import sqlite3
from pathlib import Path

import psycopg
import pytest

from gateway.observe.ledger.postgres import PostgresStore
from gateway.observe.ledger.rows import COLUMNS
from gateway.observe.ledger.schema import TYPES
from gateway.observe.ledger.sqlite import SqliteStore
from tests.config.loading import MODELS, faults
from tests.observe.ledger.outcomes import Postgres, rows

PAGE = (Path(__file__).parents[3] / "docs" / "ledger.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SQL = [block for kind, block in BLOCKS if kind == "sql"]
ROW = re.compile(r"^\| (`.+?`) \| ([A-Z]+) \| ([A-Z ]+) \| .+ \|$", re.MULTILINE)


def test_the_table_is_what_is_shown() -> None:
    shown = [
        (name, sqlite, postgres) for names, sqlite, postgres in ROW.findall(PAGE) for name in re.findall(r"\w+", names)
    ]
    assert shown == [(name, TYPES["sqlite"][kind], TYPES["postgresql"][kind]) for name, kind in COLUMNS]


def test_the_configuration_loads() -> None:
    ledger, prices = (block for kind, block in BLOCKS if kind == "yaml")
    assert faults(MODELS, ledger) == []
    assert faults(prices) == []


@pytest.mark.parametrize("query", SQL[:3])
def test_the_sql_for_sqlite_runs(query: str, tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "ledger.db"))
    store.write(rows(1, 2))
    store.close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    found = connection.execute(query).fetchall()
    connection.close()
    assert len(found) == (0 if "failed" in query else 1)


def test_the_sql_for_postgresql_runs(postgres: Postgres, database: str) -> None:
    store = PostgresStore(postgres.secret(database))
    store.write(rows(1, 2))
    store.close()
    assert len(SQL) == 4
    with psycopg.connect(postgres.url(database)) as connection:
        by_day, by_failure = (connection.execute(each.encode()) for each in SQL[3].split(";\n") if each)
        assert (len(by_day.fetchall()), len(by_failure.fetchall())) == (1, 0)
