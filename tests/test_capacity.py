"""The limit of connections, with real sockets."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

import pytest

from gateway.capacity import Bounds, Capacity, bounds, open_files, shortfall
from gateway.lifecycle import Door, Listen
from gateway.server import Options
from tests.fakes.client import Answer, RawClient, get, post
from tests.fakes.upstream import Pause, ScriptedUpstream, Send, chunk, json_answer, last_chunk, sse, sse_head
from tests.running import Config, open_door, until

ASK = post("/v1/chat/completions", {"model": "m"})
ASK_STREAM = post("/v1/chat/completions", {"model": "m", "stream": True})
EVENT = '{"choices": [{"delta": {"content": "one"}}]}'
DONE = '{"choices": [{"delta": {}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    ("asked", "files", "expected"),
    [
        (None, 1_048_576, Bounds(524_224, 64)),
        (None, 1024, Bounds(448, 64)),
        (None, 256, Bounds(96, 32)),
        (None, 4, Bounds(1, 1)),
        (None, None, Bounds(None, 64)),
        (100, 1024, Bounds(100, 64)),
        (5000, 1024, Bounds(5000, 64)),
        (100, None, Bounds(100, 64)),
    ],
)
def test_the_bounds_follow_from_the_limit_of_open_files(asked: int | None, files: int | None, expected: Bounds) -> None:
    assert bounds(asked, files) == expected


@pytest.mark.parametrize(
    ("limit", "files", "told"),
    [
        (448, 1024, None),
        (449, 1024, "449 connections may need 1026 open files, the limit is 1024"),
        (None, 1024, None),
        (5000, None, None),
    ],
)
def test_too_few_files_for_a_limit_are_told(limit: int | None, files: int | None, told: str | None) -> None:
    assert shortfall(limit, files) == told


def test_what_a_system_calls_unlimited_is_no_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert open_files() is None


def test_without_a_limit_of_open_files_there_is_always_room() -> None:
    assert Capacity(lambda *_: None).has_room(10**9)


@pytest.fixture
async def upstream(config: Config) -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream([Send(json_answer({"choices": [{"message": {"content": "hi"}}]}))]) as upstream:
        config.models(m={"box": upstream.url})
        config.routing()
        yield upstream


@pytest.fixture
async def door(config: Config, upstream: ScriptedUpstream) -> AsyncIterator[Door]:
    """Serve two connections, and two spare ones."""
    assert upstream.url
    door = await open_door(Options(config.path, environ={}), Listen(port=0, connections=2))
    assert door.capacity.bounds == Bounds(2, (bounds(None, open_files())).spare)
    door.capacity.bounds = Bounds(2, 2)
    yield door
    await door.close(0)


async def ask(client: RawClient, request: bytes) -> Answer:
    await client.send(request)
    return await client.read_answer()


async def test_above_the_limit_a_request_is_refused_and_nothing_else_is_disturbed(door: Door, config: Config) -> None:
    go_on = asyncio.Event()
    end = chunk(sse(DONE)) + chunk(sse("[DONE]")) + last_chunk()
    async with ScriptedUpstream([Send(sse_head() + chunk(sse(EVENT))), Pause(go_on), Send(end)]) as held:
        config.models(m={"box": held.url})
        door.gateway.reloader.request()
        await until(lambda: config.records("config.reloaded"))
        async with RawClient(door.urls[0]) as stream, RawClient(door.urls[0]) as other:
            await stream.send(ASK_STREAM)
            await stream.read_head()
            assert await stream.read_chunk() == sse(EVENT)
            assert (await ask(other, get("/health"))).status == 200
            for _ in range(3):
                async with RawClient(door.urls[0]) as refused:
                    answer = await ask(refused, ASK)
                    assert (await refused.read_to_end(), refused.ended) == (b"", "fin")
                assert (answer.status, answer.head.values("retry-after")) == (503, ["1"])
                assert answer.head.values("connection") == ["close"]
                assert answer.head.get("x-request-id")
                assert answer.json()["error"] == {
                    "message": "the gateway has reached its connection limit, try again shortly",
                    "type": "service_unavailable_error",
                    "param": None,
                    "code": "too_many_connections",
                }
            go_on.set()
            assert sse(DONE) in await stream.read_until(sse("[DONE]"))
            assert (await ask(other, get("/health"))).head.values("connection") == []
        await until(lambda: config.records("connections.free"))
    assert [(record["level"], record["limit"]) for record in config.records("connections.full")] == [("warning", 2)]
    assert [(record["level"], record["refused"]) for record in config.records("connections.free")] == [("info", 3)]
    assert len(held.requests) == 1


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/health/ready", 200), ("/routing", 200)])
async def test_what_tells_of_the_gateway_is_answered_above_the_limit(door: Door, path: str, status: int) -> None:
    async with RawClient(door.urls[0]) as one, RawClient(door.urls[0]) as two, RawClient(door.urls[0]) as spare:
        assert (await ask(one, get("/health"))).status == 200
        assert (await ask(two, get("/health"))).status == 200
        answer = await ask(spare, get(path))
        assert (answer.status, answer.head.values("connection")) == (status, ["close"])
        assert (await spare.read_to_end(), spare.ended) == (b"", "fin")


async def test_a_spare_connection_is_served_once_there_is_room(door: Door, config: Config) -> None:
    async with RawClient(door.urls[0]) as one, RawClient(door.urls[0]) as two:
        assert (await ask(one, get("/health"))).status == 200
        async with RawClient(door.urls[0]) as spare:
            await until(lambda: door.capacity.spare)
            await two.close()
            await until(lambda: len(door.capacity.connections) == 2)
            for _ in range(2):
                answer = await ask(spare, ASK)
                assert (answer.status, answer.head.values("connection")) == (200, [])
            assert not door.capacity.spare
    assert config.records("connections.full") == []


async def test_with_the_spare_ones_taken_a_connection_waits_until_another_ends(door: Door) -> None:
    async with AsyncExitStack() as stack:
        one, *_ = [await stack.enter_async_context(RawClient(door.urls[0])) for _ in range(4)]
        await until(lambda: len(door.capacity.connections) == 4)
        waiting = await stack.enter_async_context(RawClient(door.urls[0]))
        await waiting.send(get("/health"))
        assert (await ask(one, get("/health"))).status == 200
        assert (len(door.capacity.connections), waiting.raw) == (4, b"")
        await one.close()
        assert (await waiting.read_answer()).status == 200


async def test_of_connections_that_arrive_together_only_those_are_accepted_that_there_is_room_for(door: Door) -> None:
    address = door.listener.sockets[0].getsockname()
    with ExitStack() as stack:
        for _ in range(8):  # the kernel takes them, before the loop looks
            stack.enter_context(socket.create_connection(address))
        await until(lambda: len(door.capacity.connections) >= 4)
        assert (len(door.capacity.connections), len(door.capacity.spare)) == (4, 2)


async def test_a_spare_connection_that_asks_for_nothing_is_closed(door: Door) -> None:
    door.capacity._patience = 0.0
    async with RawClient(door.urls[0]) as one, RawClient(door.urls[0]):
        assert (await ask(one, get("/health"))).status == 200
        async with RawClient(door.urls[0]) as silent:
            assert (await silent.read_to_end(), silent.ended) == (b"", "fin")
        await until(lambda: len(door.capacity.connections) == 2)
        assert not door.capacity.spare


@dataclass(eq=False)
class _Busy:
    idle: bool = False


async def test_a_spare_connection_that_is_being_answered_is_left_alone() -> None:
    told: list[tuple[str, Mapping[str, object]]] = []
    capacity = Capacity(lambda event, fields: told.append((event, fields)), patience=0.0)
    capacity.bounds = Bounds(1, 1)
    transports = [asyncio.Transport(), asyncio.Transport()]  # these raise when they are closed
    first, busy = _Busy(), _Busy()
    capacity.enter(first, transports[0])
    capacity.enter(busy, transports[1])
    timer = capacity.spare[busy]
    capacity._expire(busy)
    capacity.leave(busy)
    assert (timer.cancelled(), list(capacity.connections), told) == (True, [first], [])
