"""Doors that are opened in this process, and closed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from gateway.lifecycle import CannotListenError, CannotServeError, Door, Listen
from gateway.server import Options
from gateway.simulator import Box
from tests.conftest import MakeBox, OpenDoor
from tests.execution.support import ROOM, ask, cramp
from tests.fakes.client import RawClient, get, post
from tests.fakes.connection import PATIENCE
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer, sse_answer
from tests.running import Config, open_door, until

WHOLE = json_answer({"text": "x" * 1_000_000})


class Unread(NamedTuple):
    """An answer that its client does not read."""

    door: Door
    client: RawClient
    transport: asyncio.Transport
    answer: bytes


@asynccontextmanager
async def unread(
    door: OpenDoor,
    config: Config,
    write_buffer: int | None = None,
    answer: bytes = WHOLE,
    request: bytes = post("/v1/chat/completions", {"model": "m"}),
) -> AsyncIterator[Unread]:
    """Ask for a megabyte, and read nothing of it; so many bytes may wait for a client before it is waited for."""
    async with ScriptedUpstream([Send(answer)]) as upstream:
        config.models(m={"box": upstream.url})
        config.routing()
        opened = await door(Options(config.path, environ={}))
        async with RawClient(opened.urls[0], room=ROOM) as client:
            _, transport = await cramp(opened)
            if write_buffer is not None:
                transport.set_write_buffer_limits(high=write_buffer)
            client.pause_reading()
            await client.send(request)
            yield Unread(opened, client, transport, answer)


async def test_an_answer_is_in_flight_until_it_has_left(door: OpenDoor, config: Config) -> None:
    """What a handler had written for a slow client when the process ended used to be lost."""
    async with unread(door, config, write_buffer=4_000_000) as (opened, client, transport, answer):
        await until(transport.get_write_buffer_size)
        await until(lambda: not opened.gateway.active)
        closing = asyncio.create_task(opened.close(PATIENCE))
        await asyncio.sleep(0.3)
        assert not closing.done()
        client.resume_reading()
        assert answer.endswith((await client.read_answer()).body)
        await closing
        assert client.ended == "fin"


async def test_an_unread_answer_holds_the_door_until_the_deadline(door: OpenDoor, config: Config) -> None:
    async with unread(door, config) as (opened, client, _, answer):
        await until(lambda: opened.gateway.executor.in_flight["m", "box"])
        await opened.close(0.1)
        assert opened.capacity.connections == {}
        client.resume_reading()
        await client.read_to_end()
        assert len(client.raw) < len(answer)


async def test_an_unread_answer_in_http_1_0_is_cut_visibly(door: OpenDoor, config: Config) -> None:
    """It ended with a FIN, as what is whole does."""
    answer = sse_answer('{"choices": [{"delta": {"content": "%s"}}]}' % ("x" * 1_000_000), "[DONE]")
    request = ask(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with unread(door, config, 4_000_000, answer, request) as (opened, client, transport, _):
        await until(transport.get_write_buffer_size)
        await until(lambda: not opened.gateway.active)
        await opened.close(0.1)
        client.resume_reading()
        await client.read_to_end()
        assert len(client.raw) < len(answer)
        assert client.ended == "reset"


async def test_a_taken_address_is_refused_before_anything_is_done(door: OpenDoor, config: Config) -> None:
    """A second gateway on the port used to write its start and its stop into the first one's log."""
    config.models(m={"box": "http://localhost:9"})
    config.routing()
    first = await door(Options(config.path, environ={}))
    port = first.ports[0]
    with pytest.raises(CannotListenError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: address already in use$"):
        await open_door(Options(config.path, environ={}), Listen(port=port))
    await first.close(0)
    assert [record["event"] for record in config.records()] == ["gateway.started", "gateway.stopped"]


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", r"192\.0\.2\.1:8080: cannot assign requested address"),
        ("nosuch.invalid", r"nosuch\.invalid:8080: .*(name|service|resolution).*"),
        ("fe80::1:2", r"\[fe80::1:2\]:8080: .*"),
        ("gpu..lan", r"gpu\.\.lan:8080: its host is malformed"),
    ],
)
async def test_an_address_that_is_not_ours_is_refused(config: Config, host: str, why: str) -> None:
    with pytest.raises(CannotServeError, match=f"^cannot listen on {why}$"):
        await open_door(Options(config.path, environ={}), Listen(host))


async def test_a_door_may_be_opened_on_several_addresses(config: Config) -> None:
    opened = await open_door(Options(config.path, environ={}), Listen("127.0.0.1, ::1", 0))
    assert [url.rpartition(":")[0] for url in opened.urls] == ["http://127.0.0.1", "http://[::1]"]
    for url in opened.urls:
        async with RawClient(url) as client:
            await client.send(get("/health"))
            assert (await client.read_answer()).status == 200
    await opened.close(0)
    with pytest.raises(
        CannotServeError, match=r"^cannot listen on 127\.0\.0\.1:8080, 192\.0\.2\.1:8080: cannot assign"
    ):
        await open_door(Options(config.path, environ={}), Listen("127.0.0.1,192.0.2.1", 8080))


async def test_a_door_may_be_opened_on_ipv6(config: Config, make_box: MakeBox) -> None:
    config.models(m={"box": await make_box(Box("box"))})
    config.routing()
    opened = await open_door(Options(config.path, environ={}), Listen("::1", 0))
    assert opened.urls == (f"http://[::1]:{opened.ports[0]}",)
    async with RawClient(opened.urls[0]) as client:
        await client.send(get("/health"))
        assert (await client.read_answer()).status == 200
    await opened.close(0)


async def test_a_door_that_never_opened_can_be_closed(config: Config) -> None:
    opened = Door(Options(config.path, environ={}))
    await opened.close(0)
    assert (opened.ports, opened.urls) == ((), ())


async def test_a_closed_door_accepts_nothing_more(config: Config) -> None:
    config.models(m={"box": "http://127.0.0.1:9"})
    config.routing()
    opened = await open_door(Options(config.path, environ={}), Listen(port=0))
    async with RawClient(opened.urls[0]) as client:
        await client.send(get("/health"))
        assert (await client.read_answer()).status == 200
        await opened.close(0)
    opened.listener.resume()  # as a connection that ends late would
    assert (opened.listener.sockets, opened.listener._accepts) == ([], False)
