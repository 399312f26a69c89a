"""A client that leaves takes the upstream's connection with it, whenever that is, and the log says so."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.execution.support import CONTENT, Running, ask, chain, running
from tests.fakes.client import RawClient
from tests.fakes.upstream import Hang, ScriptedUpstream, Send, Step, chunk, sse_head
from tests.running import Config, until
from tests.wire.cases import request

HALF_JSON = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"a": 1'
MOMENTS: dict[str, tuple[list[Step], bytes]] = {
    "before the head": ([Hang()], b""),
    "inside the head": ([Send(b"HTTP/1.1 200 OK\r\nserver: a\r\n"), Hang()], b""),
    "before the body": ([Send(sse_head()), Hang()], b""),
    "inside a stream": ([Send(sse_head() + chunk(CONTENT)), Hang()], CONTENT),
    "inside a JSON answer": ([Send(HALF_JSON), Hang()], b""),
    "inside an error": ([Send(HALF_JSON.replace(b"200 OK", b"400 No")), Hang()], b""),
}


async def left(gate: Running) -> list[Any]:
    """Wait for the log's record of a request."""
    await until(lambda: len(gate.outcomes) == 1)
    [record] = [record for record in await gate.log() if record["event"] == "request"]
    return [record["status"], record["failure"], [attempt["failure"] for attempt in record["attempts"]]]


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.abort])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_upstream_is_left_too(
    config: Config, leave: Callable[[RawClient], Awaitable[None]], moment: str
) -> None:
    steps, begun = MOMENTS[moment]
    async with (
        ScriptedUpstream(steps) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await (client.read_until(begun) if begun else a.arrived())
        await leave(client)
        await a.closed_by_peer()
        assert await left(gate) == [499, "client_left", ["client_left"]]
        assert (a.leftover, b.connections, gate.gateway.active) == ([], 0, 0)


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.abort])
async def test_who_leaves_before_the_invitation_has_left(
    config: Config, leave: Callable[[RawClient], Awaitable[None]]
) -> None:
    """It was told as an exception, and left no record."""
    async with running(config, {"m": chain("http://127.0.0.1:1")}) as gate, gate.client() as client:
        await client.send(request(b"Expect: 100-continue").partition(b"{")[0])
        await leave(client)
        assert await left(gate) == [499, "client_left", []]
        assert "exception" not in {record["event"] for record in await gate.log()}


async def test_requests_in_the_queue_are_left_too(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Hang()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(request() * 3)
        await client.read_until(CONTENT)
        await client.abort()
        await a.closed_by_peer()
        assert await left(gate) == [499, "client_left", ["client_left"]]
        assert (len(a.requests), a.connections) == (1, 1)


async def test_a_client_that_leaves_inside_its_body_reaches_no_upstream(config: Config) -> None:
    async with ScriptedUpstream() as a, running(config, {"m": chain(a.url)}) as gate:
        async with gate.client() as client:
            await client.send(request()[:-1])
            await until(lambda: gate.gateway.active)
        assert await left(gate) == [499, "client_left", []]
        assert a.connections == 0


async def test_a_crowd_that_leaves_leaves_nothing(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Hang()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(gate.client()) for _ in range(50)]
        await asyncio.gather(*(client.send(ask(stream=True)) for client in clients))
        await asyncio.gather(*(client.read_until(CONTENT) for client in clients))
        await asyncio.gather(*(client.abort() for client in clients))
        await a.all_closed()
        await until(lambda: len(gate.outcomes) == 50)
        assert {outcome.status for outcome in gate.outcomes} == {499}
        assert not any(gate.gateway.executor.in_flight.values())
