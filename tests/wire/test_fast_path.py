"""One connection carries what takes the fast path and what is aiohttp's, in any order; both answer alike."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from gateway import connection
from gateway.api.body import Limits
from gateway.execution.upstream import TRANSPORTS, Transport
from tests.execution.support import CHAT, CONTENT, DONE, FINISH, Running, ask, chain, error_of, running
from tests.fakes.client import Answer, RawClient, get, post
from tests.fakes.connection import PATIENCE, Cut
from tests.fakes.leaping import RUNS_OUT, leap
from tests.fakes.upstream import (
    Hang,
    Pause,
    Request,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
    refused_url,
    sse_head,
)
from tests.running import Config, until

BODY = json.dumps({"model": "m", "user": "x"}).encode()
FIELDS = b"host: gateway\r\ncontent-type: application/json\r\n"
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\n" + FIELDS + b"transfer-encoding: chunked\r\nx-request-id: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
)
WHOLE = sse_head() + chunk(CONTENT) + chunk(FINISH) + chunk(DONE) + last_chunk()


def named(name: str, **fields: object) -> bytes:
    return post(CHAT, {"model": "m", **fields}, [("x-request-id", name)])


def held_back(more: asyncio.Event) -> list[Step]:
    """A stream whose end waits."""
    return [Send(sse_head() + chunk(CONTENT)), Pause(more), Send(chunk(FINISH) + chunk(DONE) + last_chunk())]


def answering(_: int, request: Request) -> list[Step]:
    return [Send(WHOLE if request.json().get("stream") else json_answer({"id": request.values("x-request-id")[0]}))]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    way: Transport = request.param
    return way


@pytest.fixture
async def gate(config: Config, transport: Transport) -> AsyncIterator[Running]:
    async with ScriptedUpstream(answering) as a, running(config, {"m": chain(a.url)}, transport=transport) as gate:
        yield gate


async def answers(client: RawClient, number: int) -> list[Answer]:
    return [await client.read_answer() for _ in range(number)]


ALL = [
    named("first"),
    get("/v1/models", [("x-request-id", "models")]),
    named("second"),
    CHUNKED,
    named("stream", stream=True),
    get("/nowhere", [("x-request-id", "nowhere")]),
    named("third"),
]
NAMES = ["first", "models", "second", "chunked", "stream", "nowhere", "third"]


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_connection_carries_both_in_order(gate: Running, at_once: bool) -> None:  # noqa: FBT001 - pytest's
    async with gate.client() as client:
        if at_once:
            await client.send(b"".join(ALL))
            got = await answers(client, len(ALL))
        else:
            got = []
            for each in ALL:
                await client.send(each)
                got.append(await client.read_answer())
        assert [answer.head.get("x-request-id") for answer in got] == NAMES
        assert [answer.status for answer in got] == [200] * 5 + [404, 200]
        assert [answer.json().get("id") for answer in got if answer.status == 200 and b"id" in answer.body[:6]] == [
            "first",
            "second",
            "chunked",
            "third",
        ]
        assert got[4].body == CONTENT + FINISH + DONE


async def test_many_in_advance_are_answered_in_order(gate: Running) -> None:
    """More than aiohttp queues, so that its parser stops and goes on."""
    names = [f"n{number}" for number in range(120)]
    async with gate.client() as client:
        await client.send(b"".join(map(named, names)))
        got = await answers(client, len(names))
        assert [answer.json()["id"] for answer in got] == names


async def test_many_in_advance_behind_a_body_that_came_late_are_answered(config: Config, transport: Transport) -> None:
    """Aiohttp's parser stopped one short of a full queue, and what was left waited for further bytes."""
    go_on = asyncio.Event()

    def first_waits(number: int, request: Request) -> list[Step]:
        return [*([] if number else [Pause(go_on)]), *answering(number, request)]

    names = [f"n{number}" for number in range(60)]
    async with (
        ScriptedUpstream(first_waits) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        first, *others = map(named, names)
        await client.send(first[:-1])
        await until(lambda: gate.gateway.active)
        await client.send(first[-1:])
        await a.arrived()
        await client.send(b"".join(others))
        go_on.set()
        got = await answers(client, len(names))
        assert [answer.json()["id"] for answer in got] == names


async def test_what_comes_in_mid_stream_waits(config: Config, transport: Transport) -> None:
    more = asyncio.Event()
    async with (
        ScriptedUpstream(held_back(more)) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        head = await client.read_head()
        assert head.get("transfer-encoding") == "chunked"
        assert await client.read_chunk() == CONTENT
        await client.send(get("/health/ready"))
        more.set()
        assert await client.read_body(head) == FINISH + DONE
        assert (await client.read_answer()).status == 200


@pytest.mark.parametrize("how", ["head first", "in two parts", "byte by byte"])
async def test_a_body_may_come_later(gate: Running, how: str) -> None:
    request = named("late")
    place = request.index(b"\r\n\r\n") + 4
    cuts = {"head first": [place], "in two parts": [place + 5], "byte by byte": list(range(1, len(request)))}[how]
    async with gate.client() as client:
        for begin, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
            await client.send(request[begin:end])
            await asyncio.sleep(0)
        assert (await client.read_answer()).json() == {"id": "late"}


@pytest.mark.parametrize("request_", [named("late"), CHUNKED])
@pytest.mark.parametrize("when", ["before its body", "while it is answered"])
async def test_an_answer_tells_the_generation_that_it_was_routed_by(
    config: Config, transport: Transport, request_: bytes, when: str
) -> None:
    """It told the one when its head came, or when the answer's did."""
    go_on = asyncio.Event()
    late = 3 if when == "before its body" else 0

    async def reloads() -> None:
        config.models(m=chain(a.url), other=chain(a.url))
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.generation == 2)

    async with (
        ScriptedUpstream([Pause(go_on), Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        await client.send(request_[: len(request_) - late])
        if late:
            await until(lambda: gate.gateway.active)
            await reloads()
            await client.send(request_[-late:])
        else:
            await a.arrived()
            await reloads()
        go_on.set()
        told = (await client.read_answer()).head.get("x-gateway-generation")
        assert (told, (await gate.outcome()).generation) == (("2", 2) if late else ("1", 1))


async def test_both_answer_with_the_same_fields(config: Config) -> None:
    told: list[dict[str, str]] = []
    upstream = [Send(json_answer({"choices": []}, headers=[("retry-after", "1"), ("x-secret", "s")]))]
    for way in TRANSPORTS:
        async with ScriptedUpstream(upstream) as a, running(config, {"m": chain(a.url)}, transport=way) as gate:
            head = (await gate.say(named("one"))).head
            assert head.get("date")
            told.append({name.lower(): value for name, value in head.headers if name.lower() != "date"})
    assert told[0] == told[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_ends_when_its_client_says_so(gate: Running, stream: bool) -> None:  # noqa: FBT001 - pytest's
    async with gate.client() as client:
        await client.send(post(CHAT, {"model": "m", "stream": stream}, [("connection", "close")]))
        answer = await client.read_answer()
        assert (answer.status, answer.head.get("connection")) == (200, "close")
        assert await client.read_to_end() == b""


async def test_an_error_that_does_not_wait_for_the_body_closes(config: Config, transport: Transport) -> None:
    """The rest of the body is read for a while, so that the answer is not lost to a reset."""
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport, limits=Limits(body=1000)) as gate,
        gate.client() as client,
    ):
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + FIELDS + b"content-length: 5000\r\n\r\n"
        await client.send(head + b" " * 10)
        answer = await client.read_answer()
        assert (answer.status, error_of(answer)["code"]) == (413, "request_too_large")
        assert answer.head.get("connection") == "close"
        await client.send(b" " * 4990)
        assert await client.read_to_end() == b""
        assert client.ended == "fin"


async def test_a_request_that_was_refused_is_not_active_while_its_body_is_read(
    config: Config, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held up the end for as long as the rest of its body did not come, and counted as cut."""
    monkeypatch.setitem(connection.ARGUMENTS, "lingering_time", 2 * PATIENCE)
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport, limits=Limits(stall=0.1)) as gate,
        gate.client() as client,
    ):
        await client.send(named("late")[:-3])
        assert (await client.read_answer()).status == 408
        await until(lambda: not gate.gateway.active)
        assert client.ended is None
        await gate.door.close(PATIENCE)
        assert gate.gateway.cut == 0


async def test_a_client_that_leaves_while_its_body_is_awaited_is_told_of(config: Config, transport: Transport) -> None:
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        await client.send(named("gone")[:-3])
        await until(lambda: gate.gateway.active)
        await client.abort()
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.attempts) == (499, "client_left", ())
        assert {record["level"] for record in await gate.log()} == {"info"}
        assert outcome.request_id == "gone"
        await until(lambda: not gate.gateway.active)


async def test_an_idle_connection_is_closed_after_a_while(config: Config, transport: Transport) -> None:
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport, keep_alive=RUNS_OUT) as gate,
        gate.client() as client,
    ):
        await client.send(named("one"))
        assert (await client.read_answer()).status == 200
        leap(RUNS_OUT)
        assert await client.read_to_end() == b""


async def test_a_connection_that_is_not_kept_is_announced_to_close(config: Config, transport: Transport) -> None:
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport, keep_alive=0.0) as gate,
        gate.client() as client,
    ):
        await client.send(named("one"))
        answer = await client.read_answer()
        assert (answer.status, answer.head.get("connection")) == (200, "close")
        assert await client.read_to_end() == b""


async def test_who_sends_nothing_is_closed_where_no_connection_is_kept(config: Config, transport: Transport) -> None:
    async with (
        running(config, {"m": chain(refused_url())}, transport=transport, keep_alive=0.0) as gate,
        gate.client() as client,
    ):
        await until(lambda: gate.door.capacity.connections)
        await asyncio.sleep(0)
        leap(RUNS_OUT)
        assert await client.read_to_end() == b""


async def test_a_connection_is_idle_from_its_last_answer_on(config: Config, transport: Transport) -> None:
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport, keep_alive=RUNS_OUT) as gate,
        gate.client() as client,
    ):
        for name in ("one", "two", "three"):
            await client.send(named(name))
            assert (await client.read_answer()).json() == {"id": name}
            leap(RUNS_OUT * 0.6)
            await asyncio.sleep(0)
        assert client.ended is None


async def test_a_stream_outlives_the_time_that_a_connection_may_be_idle(config: Config, transport: Transport) -> None:
    more = asyncio.Event()
    async with (
        ScriptedUpstream(held_back(more)) as a,
        running(config, {"m": chain(a.url)}, transport=transport, keep_alive=RUNS_OUT) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        head = await client.read_head()
        assert await client.read_chunk() == CONTENT
        leap(RUNS_OUT)
        more.set()
        assert await client.read_body(head) == FINISH + DONE
        leap(RUNS_OUT)
        assert await client.read_to_end() == b""


async def test_what_is_in_flight_is_cut_at_the_end(config: Config, transport: Transport) -> None:
    async with ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Hang()]) as a:
        async with running(config, {"m": chain(a.url)}, transport=transport) as gate, gate.client() as client:
            await client.send(ask(stream=True))
            await client.read_head()
            assert await client.read_chunk() == CONTENT
            await gate.door.close(0)
            with pytest.raises(Cut):
                await client.read_chunk()
            outcome = await gate.outcome()
            assert (outcome.status, outcome.failure) == (200, "cut")
        await a.closed_by_peer()


@pytest.mark.parametrize("turns", range(4))
async def test_what_has_just_come_at_the_end_is_answered(config: Config, transport: Transport, turns: int) -> None:
    """It had not begun yet, so that nothing seemed to be waited for."""
    more = asyncio.Event()
    async with (
        ScriptedUpstream([Pause(more), Send(json_answer({"id": "1"}))]) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        await client.send(get("/health/ready"))
        assert (await client.read_answer()).status == 200
        await client.send(named("one"))
        for _ in range(turns):
            await asyncio.sleep(0)
        closing = asyncio.create_task(gate.door.close(PATIENCE))
        await until(lambda: gate.gateway.active or gate.gateway.executor.cutting)
        assert not gate.gateway.executor.cutting
        more.set()
        answer = await client.read_answer()
        assert (answer.status, answer.head.get("connection")) == (200, "close")
        await closing
        assert (await gate.outcome()).failure is None


async def test_answers_are_whole_whose_connections_are_to_end(config: Config) -> None:
    """There are enough of them for answers to wait for one another."""
    more = asyncio.Event()
    async with (
        ScriptedUpstream([Pause(more), Send(json_answer({"id": "1"}))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(gate.client()) for _ in range(6)]
        for client in clients:
            await client.send(named("one"))
        await until(lambda: len(a.requests) == len(clients))
        for line in gate.door.capacity.connections:
            assert isinstance(line, web.RequestHandler)
            line.close()
        more.set()
        for client in clients:
            assert (await client.read_answer()).json() == {"id": "1"}
            assert await client.read_to_end() == b""


async def test_what_is_cut_in_http_1_0_is_no_whole_answer(config: Config, transport: Transport) -> None:
    """It ended with a FIN, as what is whole does."""
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Hang()]) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        await client.read_head()
        assert await client.read_exactly(len(CONTENT)) == CONTENT
        await gate.door.close(0)
        await client.read_to_end()
        assert client.ended == "reset"


async def test_a_request_whose_body_is_awaited_is_cut_at_the_end(config: Config, transport: Transport) -> None:
    """Its client was said to have left."""
    async with (
        ScriptedUpstream(answering) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        await client.send(named("late")[:-3])
        await until(lambda: gate.gateway.active)
        await gate.door.close(0)
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.request_id) == (503, "cut", "late")


async def test_answers_close_the_connection_while_the_gateway_drains(config: Config, transport: Transport) -> None:
    more = asyncio.Event()
    async with (
        ScriptedUpstream([Pause(more), Send(json_answer({"id": "1"}))]) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
        gate.client() as other,
    ):
        await client.send(named("one"))
        await until(lambda: a.requests)
        gate.gateway.drain()
        await other.send(named("two"))
        more.set()
        for each in (client, other):
            answer = await each.read_answer()
            assert (answer.status, answer.head.get("connection")) == (200, "close")
            assert await each.read_to_end() == b""
