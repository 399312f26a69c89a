"""The stream of the page's states."""

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpServer

from gateway.api.context import errors
from gateway.api.events import Events
from gateway.server import Options
from tests.conftest import OpenDoor
from tests.execution.support import chain, running
from tests.fakes.client import RawClient, get
from tests.fakes.connection import Cut
from tests.running import Config, Process, until

GET = get("/events")


class Canned:
    """A board whose states are as long as is wanted; it fails when it is told to."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.ticks = 0
        self.rests = 0
        self.fails = False

    async def tick(self) -> bytes:
        await asyncio.sleep(0)
        self.ticks += 1
        if self.fails:
            self.fails = False
            raise ValueError("no state today")
        return b'{"tick": %d, "pad": "%b"}' % (self.ticks, b"x" * self.size)

    def full(self) -> bytes:
        return b'{"full": %d}' % self.ticks

    def rest(self) -> None:
        self.rests += 1


Serve = Callable[..., Any]


@pytest.fixture
def serve(aiohttp_server: AiohttpServer) -> Serve:
    """Serve canned states."""

    async def make(board: Canned, interval: float = 0.01, limit: int = 100) -> tuple[Events, str]:
        events = Events(board, interval=interval, limit=limit)
        app = web.Application(middlewares=[errors])
        app.add_routes(events.routes())
        server = await aiohttp_server(app)
        return events, str(server.make_url("/"))

    return make


def read(event: bytes) -> tuple[int, Any]:
    """Read one event: its id, and its state."""
    lines = event.removeprefix(b"retry: 1000\n").split(b"\n")
    assert (lines[0][:4], lines[1][:6], lines[2:]) == (b"id: ", b"data: ", [b"", b""])
    return int(lines[0][4:]), json.loads(lines[1][6:])


async def begin(client: RawClient) -> tuple[int, Any]:
    """Begin to watch; give the first event."""
    await client.send(GET)
    assert (await client.read_head()).status == 200
    first = await client.read_chunk()
    assert first.startswith(b"retry: ")
    return read(first)


async def test_the_gateway_tells_everything_and_then_what_changes(config: Config) -> None:
    async with running(config, {"m": chain("http://127.0.0.1:1")}) as gate, gate.client() as client:
        gate.gateway.events._interval = 0.01
        await client.send(GET)
        head = await client.read_head()
        told = {name: head.get(name) for name in ("content-type", "cache-control", "x-content-type-options")}
        assert told == {
            "content-type": "text/event-stream",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }
        number, state = read(await client.read_chunk())
        assert (state["full"], [model["id"] for model in state["models"]]) == (True, ["m"])
        further, change = read(await client.read_chunk())
        assert further > number
        assert ("full" in change, change["models"]) == (False, [])

        answer = await gate.post("m")
        assert answer.status == 502

        async def is_told() -> object:
            _, change = read(await client.read_chunk())
            return change["requests"] and change["requests"][0]["model"] == "m"

        await until(is_told)
        assert gate.gateway.events._task is not None
        await client.close()
        await until(lambda: gate.gateway.events._task is None and not gate.gateway.events.viewers)


async def test_no_key_is_told(config: Config) -> None:
    route = {"a": {"base_url": "http://127.0.0.1:1", "api_key": "sk-canary-0123456789"}}
    async with running(config, {"m": route}) as gate, gate.client() as client:
        await gate.post("m")
        await client.send(get("/events", [("authorization", "Bearer sk-canary-0123456789")]))
        await client.read_head()
        told = await client.read_chunk()
        assert b'"m"' in told
        assert b"canary" not in told


async def test_a_page_that_asks_again_is_told_everything_again(config: Config) -> None:
    async with running(config, {"m": chain("http://127.0.0.1:1")}) as gate, gate.client() as client:
        await client.send(get("/events", [("last-event-id", "17"), ("accept", "text/event-stream")]))
        await client.read_head()
        assert read(await client.read_chunk())[1]["full"] is True


async def test_without_a_viewer_nothing_is_made(serve: Serve) -> None:
    board = Canned()
    events, url = await serve(board)
    async with RawClient(url) as client:
        await begin(client)
        await until(lambda: board.ticks > 2)
    await until(lambda: events._task is None)
    before = board.ticks
    assert board.rests == 1
    async with RawClient(url) as client:
        assert await begin(client) == (2, {"full": before + 1})


async def test_a_state_is_made_once_for_all(serve: Serve) -> None:
    board = Canned()
    events, url = await serve(board)
    async with RawClient(url) as one, RawClient(url) as other:
        await begin(one)
        number, _ = await begin(other)
        assert events.viewers == 2
        theirs = await other.read_chunk()
        assert read(theirs)[0] > number

        async def is_the_same() -> object:
            return await one.read_chunk() == theirs

        await until(is_the_same)


async def test_who_does_not_read_is_cut_off_and_the_others_are_not(serve: Serve) -> None:
    events, url = await serve(Canned(size=1 << 20), interval=0.001)
    async with RawClient(url) as reader, RawClient(url) as stuck:
        await begin(reader)
        await begin(stuck)
        stuck.pause_reading()

        async def is_cut_off() -> object:
            await reader.read_chunk()
            return events.viewers == 1

        await until(is_cut_off)
        stuck.resume_reading()
        await stuck.read_to_end()
        assert stuck.ended
        assert read(await reader.read_chunk())[0] > 1


async def test_there_are_only_so_many_viewers(serve: Serve) -> None:
    _, url = await serve(Canned(), limit=1)
    async with RawClient(url) as first, RawClient(url) as second:
        await begin(first)
        await second.send(GET)
        answer = await second.read_answer()
        assert (answer.status, answer.head.get("retry-after")) == (503, "1")
        assert answer.json()["error"]["code"] == "too_many_viewers"
        await first.close()

        async def is_let_in() -> bool:
            await second.send(GET)
            head = await second.read_head()
            if head.status == 503:
                await second.read_body(head)
            return head.status == 200

        await until(is_let_in)


async def test_a_state_that_cannot_be_made_is_logged_and_the_next_one_is_made(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    board = Canned()
    _, url = await serve(board)
    async with RawClient(url) as client:
        await begin(client)
        board.fails = True
        await until(lambda: not board.fails)
        assert read(await client.read_chunk())[1]["tick"] > 1
    [record] = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no state today"


async def test_a_head_request_is_no_viewer(serve: Serve) -> None:
    events, url = await serve(Canned())
    async with RawClient(url) as client:
        await client.send(GET.replace(b"GET", b"HEAD", 1))
        assert (await client.read_head()).status == 405
        assert events.viewers == 0


async def test_when_the_gateway_drains_streams_end_and_none_begins(serve: Serve) -> None:
    events, url = await serve(Canned())
    async with RawClient(url) as client:
        await begin(client)
        events.close()
        while await client.read_chunk():
            pass
        await client.send(GET)
        answer = await client.read_answer()
        assert (answer.status, answer.json()["error"]["code"]) == (503, "draining")
        await until(lambda: events._task is None)


async def test_when_the_gateway_drains_who_does_not_read_is_cut_off(serve: Serve) -> None:
    events, url = await serve(Canned(size=16 << 20), interval=3600)
    async with RawClient(url) as client:
        await begin(client)
        client.pause_reading()
        [viewer] = events._viewers
        viewer.send(b"x" * (64 << 20))
        await until(lambda: viewer._is_writing)
        events.close()
        client.resume_reading()
        with pytest.raises(Cut):
            await client.read_chunk()
        await until(lambda: not events.viewers)


async def test_viewers_do_not_hold_up_the_end(config: Config, door: OpenDoor) -> None:
    config.models(m={"a": "http://127.0.0.1:1"})
    config.routing()
    opened = await door(Options(config.path, environ={}))
    async with RawClient(opened.urls[0]) as client:
        await begin(client)
        await opened.close(3600)
        assert opened.gateway.cut == 0
        while await client.read_chunk():
            pass


async def test_sigterm_ends_a_stream_well(config: Config) -> None:
    config.models(m={"a": "http://127.0.0.1:1"})
    config.routing()
    arguments = ("serve", "--config-dir", str(config.path), "--port", "0", "--drain-timeout", "3600")
    async with Process(*arguments) as gateway, RawClient(await gateway.url()) as client:
        await begin(client)
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        assert (await client.read_to_end()).endswith(b"0\r\n\r\n")
    assert [record["cut"] for record in config.records("gateway.stopped")] == [0]


async def test_one_viewer_that_leaves_takes_nothing_from_the_others(serve: Serve) -> None:
    board = Canned()
    events, url = await serve(board)
    async with RawClient(url) as stays:
        await begin(stays)
        async with RawClient(url) as leaves:
            await begin(leaves)
        await until(lambda: events.viewers == 1)
        before = board.ticks

        async def is_told_more() -> object:
            return read(await stays.read_chunk())[1]["tick"] > before

        await until(is_told_more)
        assert board.rests == 0
