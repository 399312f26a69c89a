"""The client's side alone, on a server that lets its handlers go on when the client has left."""

import asyncio

import pytest
from aiohttp import web

from gateway.execution.client import ClientLeftError, WebClient
from gateway.execution.fields import Fields
from tests.fakes.client import RawClient, get
from tests.fakes.connection import PATIENCE
from tests.running import until

HEADERS = Fields([("Content-Type", "text/event-stream")])


@pytest.mark.parametrize("step", ["begin", "send", "finish", "break_off"])
async def test_a_client_that_has_left_is_noticed_at_each_step(step: str) -> None:
    asked, noticed = asyncio.Event(), asyncio.Event()

    async def steps(client: WebClient) -> None:
        match step:
            case "begin":
                await client.begin(200, HEADERS, None)
            case "send":
                await client.send(b"data")
            case _:
                await client.finish()

    async def handle(request: web.Request) -> web.StreamResponse:
        client = WebClient(request)
        if step != "begin":
            await client.begin(200, HEADERS, None)
        asked.set()
        await until(lambda: request.transport is None)
        if step == "break_off":
            await client.break_off(b"last words")
        else:
            with pytest.raises(ClientLeftError):
                await steps(client)
        noticed.set()
        return client.response or web.Response()

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, handler_cancellation=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with RawClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
        await client.send(get("/"))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
            await client.abort()
            await noticed.wait()
    await runner.cleanup()
