"""`GET /stats`, over a ledger that requests have filled; `gateway stats` asks it."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request
from pytest_aiohttp import AiohttpClient

import gateway.cli
from gateway.api.context import Handler
from gateway.api.stats import Stats
from gateway.config.ledger_place import Place
from gateway.observe.ledger.places import reader_at
from gateway.observe.ledger.store import Reader
from gateway.observe.ledger.writer import Ledger
from gateway.observe.log import make_logger
from gateway.observe.sink import LogSink
from gateway.routing.snapshot import LedgerSettings
from gateway.server import GATEWAY, HANDLER_ARGS, Options, create_app
from gateway.simulator import Box
from tests.conftest import MakeBox
from tests.fakes.connection import PATIENCE
from tests.running import Config, split, until

Client = TestClient[web.Request, web.Application]
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(config: Config, make_box: MakeBox, aiohttp_client: AiohttpClient) -> Serve:
    """Serve a model on two boxes, which outlive the gateway, half and half, with or without a ledger."""

    async def start(ledger: Path | None = config.path.parent / "ledger.db", **routing: object) -> Client:
        near, far = await make_box(Box("near", tokens=10)), await make_box(Box("far", tokens=10))
        model = {
            "id": "chat",
            "aliases": ["talk"],
            "pricing": {"prompt": "0.001", "completion": 0.01},
            "route": [{"name": name, "kind": "vllm", "base_url": url} for name, url in (("near", near), ("far", far))],
        }
        config.save("models.yaml", json.dumps({"models": [model]}))
        config.routing(
            routing_parameter={"selection": "smooth"},
            local_deployment=split([near], "chat"),
            remote_deployment=split([far], "chat"),
            **({"ledger": {"url": f"sqlite:///{ledger}"}} if ledger else {}),
            **routing,
        )
        return await aiohttp_client(create_app(Options(config.path, environ={})))

    return start


async def ask(client: Client, *models: str, key: str = "") -> None:
    for model in models:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with client.post("/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()


async def tell(client: Client, query: str = "", status: int = 200) -> Any:
    async with client.get(f"/stats{query}") as answer:
        assert (answer.status, answer.content_type) == (status, "application/json")
        return await answer.json()


async def test_what_was_asked_is_told_at_once(serve: Serve, config: Config) -> None:
    client = await serve()
    await ask(client, *["chat"] * 5, "talk", "nobody")
    told = await tell(client)
    total = told["total"]
    assert (total["requests"], total["errors"], total["prompt_tokens"], total["completion_tokens"]) == (7, 0, 6, 60)
    assert (total["cost_usd"], total["avoided_usd"], total["cost_unknown"]) == (0.303, 0.303, 0)
    assert {each["deployment"]: (each["requests"], each["cost_usd"]) for each in told["deployments"]} == {
        "near": (3, 0.0),
        "far": (3, 0.303),
    }
    assert [(group["model"], group["requests"]) for group in told["models"]] == [("chat", 6), (None, 1)]
    assert told["ledger"] == {"waiting": 0, "dropped": 0}
    await until(lambda: len(config.records("request")) == 7)
    logged = [record["ms"] for record in config.records("request")]
    assert total["duration_ms"]["p99"] == pytest.approx(max(logged), rel=0.01, abs=0.1)


async def test_what_each_client_asked_is_told(serve: Serve) -> None:
    client = await serve(clients=[{"name": name, "api_key": f"key-of-{name}"} for name in ("alice", "ci")])
    await ask(client, "chat", "chat", "nobody", key="key-of-alice")
    await ask(client, "chat", key="key-of-ci")
    await ask(client, "chat")
    told = await tell(client)
    assert [(each["client"], each["requests"], each["completion_tokens"]) for each in told["clients"]] == [
        ("alice", 3, 20),
        ("ci", 1, 10),
    ]
    assert told["total"]["requests"] == 5
    assert (await tell(client, "?client=ci"))["total"]["requests"] == 1


async def test_a_question_may_be_narrowed_and_knows_aliases(serve: Serve) -> None:
    client = await serve()
    await ask(client, *["chat"] * 4, "talk", "nobody")

    async def count(query: str) -> int:
        requests: int = (await tell(client, query))["total"]["requests"]
        return requests

    assert await count("?model=talk") == 5
    assert await count("?model=chat&deployment=&hours=0.5") == 5
    assert await count("?deployment=near&model=chat") == 3
    assert await count("?model=nobody") == 0
    assert (await tell(client, "?model=talk"))["model"] == "chat"


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("?hours=0", "hours", "hours: found '0', expected a number above 0 and at most 87840"),
        ("?hours=-1", "hours", "hours: found '-1', expected a number above 0"),
        ("?hours=nan", "hours", "hours: found 'nan', expected a number above 0"),
        ("?hours=", "hours", "hours: found '', expected a number above 0"),
        ("?hours=1e3", "hours", "hours: found '1e3', expected a number above 0"),
        ("?hours=99999", "hours", "hours: found '99999', expected a number above 0"),
        ("?hour=1", "hour", "hour: unknown parameter, did you mean 'hours'?"),
        ("?zzz=1", "zzz", "zzz: unknown parameter, expected one of hours, model, deployment, client"),
        ("?hours=1&hours=2", "hours", "hours: given more than once, expected once"),
        ("?model=a%00b", "model", "model: expected at most 256 printable characters"),
        (f"?deployment={'x' * 257}", "deployment", "deployment: expected at most 256 printable characters"),
    ],
)
async def test_a_bad_parameter_is_refused(serve: Serve, query: str, param: str, message: str) -> None:
    error = (await tell(await serve(), query, 400))["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_parameter", param)
    assert error["message"].startswith(message)


async def test_without_a_ledger_it_says_how_to_have_one(serve: Serve) -> None:
    error = (await tell(await serve(None), status=503))["error"]
    assert (error["type"], error["code"]) == ("service_unavailable_error", "no_ledger")
    assert "add `ledger: {url: sqlite:///ledger.db}` to routing.yaml" in error["message"]


async def test_a_ledger_that_cannot_be_read_is_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but text " * 100)
    client = await serve(tmp_path / "text")
    error = (await tell(client, status=503))["error"]
    assert (error["code"], error["message"]) == (
        "ledger_unavailable",
        "the ledger cannot be read: file is not a database",
    )
    assert client.app[GATEWAY].ledger.as_dict()["problem"] == "file is not a database"


async def test_the_routing_page_tells_of_the_ledger(serve: Serve, config: Config) -> None:
    client = await serve()
    await ask(client, "chat")
    await tell(client)
    async with client.get("/routing") as answer:
        assert (await answer.json())["ledger"] == {
            "url": f"sqlite:///{config.path.parent}/ledger.db",
            "retention_days": 30.0,
            "problem": None,
            "written": 1,
            "waiting": 0,
            "dropped": 0,
        }


async def test_a_question_whose_client_left_is_still_the_one_that_is_answered(
    aiohttp_client: AiohttpClient, tmp_path: Path
) -> None:
    free, asked, begun, gone = threading.Event(), [], [], []
    ledger = Ledger(make_logger(LogSink(), "info"), gather=0.0, settle=lambda: begun.append(1))
    ledger.move(LedgerSettings(Place.of(f"sqlite:///{tmp_path}/ledger.db"), 0.0))

    @contextmanager
    def held(place: Place, seconds: float) -> Iterator[Reader]:
        assert free.wait(PATIENCE)
        with reader_at(place, seconds) as reader:
            yield reader

    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked.append(1)
        try:
            return await handler(request)
        finally:
            gone.append(1)

    app = web.Application(middlewares=[counted], handler_args=HANDLER_ARGS)
    app.add_routes(Stats(ledger, lambda: None, open_reader=held).routes())
    client = await aiohttp_client(app)

    async def leave(number: int) -> None:
        leaving = asyncio.create_task(tell(client))
        await until(lambda: len(asked) == number)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await until(lambda: len(gone) == number)

    try:
        await leave(1)
        await leave(2)
        staying = asyncio.create_task(tell(client))
        await until(lambda: len(asked) == 3)
        assert len(begun) == 1
        free.set()
        assert (await staying)["total"]["requests"] == 0
        assert len(begun) == 2
    finally:
        free.set()
        ledger.close(PATIENCE)


def test_a_question_that_hangs_holds_up_no_stop(tmp_path: Path) -> None:
    ledger = Ledger(make_logger(LogSink(), "info"), gather=0.0)
    ledger.move(LedgerSettings(Place.of(f"sqlite:///{tmp_path}/ledger.db"), 0.0))
    asked, stopped, over = threading.Event(), threading.Event(), threading.Event()

    @contextmanager
    def hanging(place: Place, seconds: float) -> Iterator[Reader]:
        asked.set()
        if not stopped.wait(PATIENCE):
            over.set()
        with reader_at(place, seconds) as reader:
            yield reader

    async def ask() -> None:
        stats = Stats(ledger, lambda: None, open_reader=hanging)
        asking = asyncio.ensure_future(stats.stats(make_mocked_request("GET", "/stats")))
        await until(asked.is_set)
        assert not asking.done()

    asyncio.run(ask())
    stopped.set()
    assert not over.is_set()
    ledger.close(PATIENCE)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this thread; give its exit code, stdout and stderr."""
    monkeypatch.delenv("GATEWAY_URL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = gateway.cli.main(arguments)
        return code, *capsys.readouterr()

    return run


Command = Callable[..., tuple[int, str, str]]


async def run(command: Command, *arguments: str) -> tuple[int, str, str]:
    return await asyncio.to_thread(command, *arguments)


async def test_the_command_prints_a_table(serve: Serve, command: Command) -> None:
    client = await serve()
    await ask(client, *["chat"] * 5, "nobody")
    code, out, _ = await run(command, "stats", "--url", str(client.make_url("")), "--hours", "2")
    assert code == 0
    first, _, heading, *rows = out.splitlines()
    assert first.startswith("2 h until 20")
    assert heading.split()[:3] == ["requests", "errors", "rate"]
    cells = {row.split("  ")[0]: row.split() for row in rows if row}
    assert cells["all"][1:5] == ["6", "0", "0%", "0"]
    assert cells["all"][-4:] == ["5", "50", "0.202000", "0.303000"]
    assert cells["chat/near (local)"][2:4] == ["3", "0"]
    assert cells["chat/far (remote)"][-2:] == ["0.202000", "0"]
    assert cells["(no such model)"][-4:] == ["0", "0", "0", "0"]


async def test_the_command_prints_json(serve: Serve, command: Command) -> None:
    client = await serve()
    await ask(client, "chat", "chat")
    code, out, _ = await run(
        command, "stats", "--url", str(client.make_url("")), "--json", "--model", "talk", "--deployment", "near"
    )
    told = json.loads(out)
    assert (code, told["total"]["requests"], told["model"], told["deployment"]) == (0, 1, "chat", "near")


async def test_the_command_tells_what_the_gateway_says(serve: Serve, command: Command) -> None:
    url = str((await serve(None)).make_url(""))
    code, out, err = await run(command, "stats", "--url", url)
    assert (code, out) == (1, "")
    assert err.startswith("gateway: there is no ledger: add `ledger")
    code, _, err = await run(command, "stats", "--url", url, "--hours", "many")
    assert (code, err) == (1, "gateway: hours: found 'many', expected a number above 0 and at most 87840\n")


async def test_without_a_configuration_there_is_no_ledger_to_ask(config: Config, aiohttp_client: AiohttpClient) -> None:
    config.save("models.yaml", "models: [")
    client = await aiohttp_client(create_app(Options(config.path, environ={})))
    for query in ("", "?model=chat"):
        assert (await tell(client, query, status=503))["error"]["code"] == "no_ledger"
