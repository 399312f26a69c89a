"""The ledger of a running gateway: what reloads, signals and absent databases do to its rows. And its password."""

import json
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import ClientSession

from gateway.cli import main
from gateway.lifecycle import Door
from gateway.server import Options
from gateway.simulator import Box
from tests.conftest import MakeBox, OpenDoor
from tests.fakes.client import RawClient, post
from tests.running import Config, Process, until

ASK = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
CANARY = "canary-password"
AWAY = f"postgresql://keeper:{CANARY}@127.0.0.1:1/ledger"


@pytest.fixture
async def served(config: Config, make_box: MakeBox) -> Config:
    """Configure a model on one box."""
    config.models(chat={"box": await make_box(Box("box", tokens=3))})
    config.routing()
    return config


def keep(config: Config, url: str | None) -> None:
    config.routing(**({"ledger": {"url": url}} if url else {}))


def at(path: Path) -> str:
    return f"sqlite:///{path}"


async def ask(url: str, count: int) -> list[str]:
    """Ask so often, over one connection; give the requests' ids."""
    ids = []
    async with ClientSession() as session:
        for _ in range(count):
            async with session.post(f"{url}/v1/chat/completions", json=ASK) as answer:
                assert answer.status == 200
                ids.append(answer.headers["x-request-id"])
    return ids


def written(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [each for (each,) in connection.execute("SELECT request_id FROM gateway_requests ORDER BY run, seq")]
    finally:
        connection.close()


async def generation(door: Door, number: int) -> None:
    def reached() -> bool:
        snapshot = door.gateway.manager.snapshot
        return snapshot is not None and snapshot.generation == number

    await until(reached)


async def test_a_reload_turns_it_on_moves_it_and_turns_it_off_without_losing_a_row(
    served: Config, door: OpenDoor, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.db", tmp_path / "new" / "second.db"
    opened = await door(Options(served.path, environ={}))
    url = opened.urls[0]
    found = []
    for number, ledger in enumerate([None, at(first), at(second), None, at(first)], 1):
        keep(served, ledger)
        await generation(opened, number)
        found.append(await ask(url, 20))
    await opened.close(0)
    assert written(second) == found[2]
    assert sorted(written(first)) == sorted(found[1] + found[4])
    assert opened.gateway.ledger.dropped == 0
    changes = [record["settings"] for record in served.records("config.reloaded")]
    assert changes[0] == [f"ledger.url: none -> {at(first)}"]
    assert changes[2] == [f"ledger.url: {at(second)} -> none"]


async def test_sigterm_loses_no_row(served: Config, tmp_path: Path) -> None:
    keep(served, "sqlite:///data/ledger.db")
    arguments = ["serve", "--config-dir", str(served.path), "--port", "0"]
    async with Process(*arguments, cwd=tmp_path) as gateway:
        found = await ask(await gateway.url(), 300)
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    assert written(tmp_path / "data" / "ledger.db") == found
    assert [record["request_id"] for record in served.records("request")] == found


async def test_sigkill_loses_no_row_that_was_told(served: Config, tmp_path: Path) -> None:
    keep(served, at(tmp_path / "ledger.db"))
    async with Process("serve", "--config-dir", str(served.path), "--port", "0") as gateway:
        url = await gateway.url()
        found = await ask(url, 50)
        async with ClientSession() as session, session.get(f"{url}/stats") as answer:
            assert (await answer.json())["total"]["requests"] == 50
        gateway.process.kill()
        await gateway.ended()
    assert written(tmp_path / "ledger.db") == found


async def test_every_end_of_a_request_is_a_row_as_it_is_a_line_of_the_log(
    served: Config, door: OpenDoor, tmp_path: Path
) -> None:
    keep(served, at(tmp_path / "ledger.db"))
    opened = await door(Options(served.path, environ={}))
    await ask(opened.urls[0], 3)
    async with RawClient(opened.urls[0]) as client:
        for body in (ASK | {"stream": True}, {"model": "a\x00b"}, {"model": 3}, {"model": "chat", "messages": 5}):
            await client.send(post("/v1/chat/completions", body))
            await client.read_answer()
    async with RawClient(opened.urls[0]) as client:
        await client.send(post("/v1/chat/completions", ASK))
    await opened.close(0)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    rows = connection.execute("SELECT request_id, status, stream, deployment FROM gateway_requests").fetchall()
    connection.close()
    logged = [
        (record["request_id"], record["status"], int(record["stream"]), record.get("deployment"))
        for record in served.records("request")
    ]
    assert Counter(rows) == Counter(logged)
    assert len(rows) >= 7


async def test_a_database_that_is_away_is_no_fault_and_costs_no_request(
    served: Config, door: OpenDoor, tmp_path: Path
) -> None:
    keep(served, AWAY)
    opened = await door(Options(served.path, environ={}))
    found = await ask(opened.urls[0], 5)
    await until(lambda: served.records("ledger.unavailable"))
    assert opened.gateway.state.faults == ()
    async with ClientSession() as session:
        async with session.get(f"{opened.urls[0]}/stats") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "ledger_unavailable")
        async with session.get(f"{opened.urls[0]}/routing") as answer:
            told = await answer.text()
    assert json.loads(told)["ledger"]["url"] == "postgresql://127.0.0.1:1/ledger"
    keep(served, at(tmp_path / "ledger.db"))
    await until(lambda: opened.gateway.ledger.as_dict()["written"] == 5)
    assert written(tmp_path / "ledger.db") == found
    everything = (told, served.log.read_text(), repr(opened.gateway.manager.snapshot), repr(opened.gateway.options))
    settings = opened.gateway.manager.snapshot
    assert settings is not None
    assert all(CANARY not in text for text in (*everything, repr(settings.settings), repr(opened.gateway.ledger.place)))


def test_a_missing_driver_is_a_fault_with_its_line(
    served: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(served, AWAY)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert main(["check", "--config-dir", str(served.path)]) == 1
    told = capsys.readouterr().err
    advice = "found a PostgreSQL URL without its driver, expected psycopg: install the extra"
    assert f"routing.yaml:7:10: ledger.url: {advice}" in told
    assert CANARY not in told


async def test_a_password_is_masked_wherever_it_turns_up(served: Config, door: OpenDoor) -> None:
    keep(served, AWAY)
    opened = await door(Options(served.path, environ={}))
    opened.gateway.log.warning("told", by="a library", text=f"cannot use {AWAY}, {CANARY}")
    await until(lambda: served.records("told"))
    assert served.records("told")[0]["text"] == "cannot use ***, ***"
