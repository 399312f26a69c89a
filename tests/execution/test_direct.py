"""Requests on a session's own connections, and when the session is asked instead."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import aiohttp
import pytest
import uvloop
from msgspec.structs import replace as replaced

from gateway.execution.answer import AttemptFailedError
from gateway.execution.direct import KEEPALIVE, LARGEST, Direct, Exchange
from gateway.execution.fields import Fields
from gateway.execution.flow import Straight
from gateway.execution.outbox import Outbox
from gateway.execution.protocol import Connector, is_tested
from gateway.execution.upstream import TRANSPORTS, Call, Transport, Upstream
from gateway.routing.failures import Cause
from tests.execution.support import deployment
from tests.fakes.connection import Connection
from tests.fakes.leaping import leap
from tests.fakes.upstream import (
    Close,
    Pause,
    Request,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
    sse_head,
)
from tests.running import until

CALL = Call("chat/completions", b'{"model": "m"}', Fields([("Accept", "*/*")]), "id")
TARGETS = ["/one/chat/completions", "/other/chat/completions", "/v1/chat/completions"]
BOTH = pytest.mark.parametrize("transport", ["direct", "session"])


class Noted(Exchange):
    """Counts what is sent."""

    parts: int = 0

    def sent(self) -> None:
        self.parts += 1


@BOTH
async def test_both_ways_send_the_same(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(transport=transport)
        exchange = Noted()
        answer = await upstream.open(deployment(a.url), CALL, 5, exchange)
        assert (answer.status, answer.facts.content_type, await answer.read(99)) == (200, "application/json", b"{}")
        assert exchange.parts
        assert a.requests[0].values("host") == [a.url.partition("//")[2].partition("/")[0]]
        assert a.requests[0].values("accept-encoding") == ["identity"]
        assert a.requests[0].values("accept") == ["*/*"]
        assert a.requests[0].values("content-length") == [str(len(CALL.body))]
        assert a.requests[0].body == CALL.body
        await upstream.close()


@BOTH
async def test_what_is_asked_for_is_not_overruled(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(transport=transport)
        call = Call(CALL.operation, CALL.body, Fields([("Accept", "text/event-stream")]), "id")
        answer = await upstream.open(deployment(a.url), call, connect_timeout=5)
        await answer.read(99)
        assert a.requests[0].values("accept") == ["text/event-stream"]
        await upstream.close()


@BOTH
async def test_a_header_field_cannot_smuggle_another(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(transport=transport)
        smuggling = replace(deployment(a.url), headers={"x-a": "a\r\nauthorization: b"})
        with pytest.raises(ValueError, match="header"):
            await upstream.open(smuggling, CALL, connect_timeout=5)
        assert a.requests == []
        await upstream.close()


@BOTH
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b"nonsense\r\n\r\n"])
async def test_an_answer_that_is_not_http_is_told_as_such(transport: Transport, head: bytes) -> None:
    async with ScriptedUpstream([Send(head)]) as a:
        upstream = Upstream(transport=transport)
        with pytest.raises(AttemptFailedError) as error:
            await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert error.value.failure.cause is Cause.MALFORMED_ANSWER
        assert error.value.__cause__ is None
        await upstream.close()


@pytest.mark.parametrize(
    "url", ["http://user:key@box/v1", "http://user@box/v1", "ftp://box/v1", "/v1", "http://[::1", "http:///v1"]
)
async def test_the_session_is_asked_where_a_url_is_odd(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        odd = replace(deployment("http://box"), urls={CALL.operation: url})
        assert Direct(session).prepared(odd, CALL.operation) is None


async def test_a_head_that_we_fail_to_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer was marked as come before it was, so that nobody was told when the connection broke."""

    def failing(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr("gateway.execution.protocol.facts", failing)
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(transport="direct")
        with pytest.raises(IndexError):
            await asyncio.wait_for(upstream.open(deployment(a.url), CALL, connect_timeout=5), 5)
        await upstream.close()


@BOTH
async def test_urls_of_one_origin_share_connections(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(transport=transport)
        for url in (f"{a.url}/one", f"{a.url}/other/", a.url):
            assert await open_and_read(upstream, url) == b"{}"
        assert (a.connections, [each.target for each in a.requests]) == (1, TARGETS)
        # another name is another origin, whatever it resolves to
        assert await open_and_read(upstream, a.url.replace("127.0.0.1", "localhost")) == b"{}"
        assert a.connections == 2
        await upstream.close()


async def test_where_urls_lead_is_kept_for_so_many() -> None:
    async with aiohttp.ClientSession() as session:
        direct, box = Direct(session), deployment("http://box/0")
        first = direct.prepared(box, CALL.operation)
        assert direct.prepared(box, CALL.operation) is first
        for n in range(1, 4097):
            direct.prepared(deployment(f"http://box/{n}"), CALL.operation)
        again = direct.prepared(box, CALL.operation)
        assert again is not None
        assert again is not first


async def test_ways_to_one_place_are_kept_for_so_many() -> None:
    async with aiohttp.ClientSession() as session:
        direct, box = Direct(session), deployment("http://box")
        prepared = [
            direct.prepared(box, CALL.operation) for box in (box, *(replace(box, name=str(n)) for n in range(4096)))
        ]
        assert len({id(each) for each in prepared}) == 4097
        assert direct.prepared(box, CALL.operation) is not prepared[0]


@BOTH
async def test_deployments_at_one_place_are_asked_with_their_own_keys_for_what_is_wanted(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(transport=transport)
        boxes = [replace(deployment(a.url), headers={"authorization": key}) for key in ("one", "other", "one")]
        for box in (*boxes, boxes[0]):
            await (await upstream.open(box, CALL, connect_timeout=5)).read(99)
        await (await upstream.open(boxes[1], replaced(CALL, operation="embeddings"), connect_timeout=5)).read(99)
        assert [each.values("authorization") for each in a.requests] == [
            ["one"],
            ["other"],
            ["one"],
            ["one"],
            ["other"],
        ]
        assert [each.target for each in a.requests] == ["/v1/chat/completions"] * 4 + ["/v1/embeddings"]
        await upstream.close()


def test_other_aiohttps_are_asked_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_tested("3.14.5")
    monkeypatch.setattr(aiohttp, "__version__", "3.15.0")
    assert Upstream().transport == "session"


async def test_an_early_hint_is_passed_over() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with ScriptedUpstream([Send(hint + json_answer({}))]) as a:
        upstream = Upstream()
        answer = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert (answer.status, await answer.read(99)) == (200, b"{}")
        await upstream.close()


async def open_and_read(upstream: Upstream, url: str) -> bytes | None:
    answer = await upstream.open(deployment(url), CALL, connect_timeout=5)
    return await answer.read(1 << 20)


async def test_a_connection_is_used_again() -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream()
        assert [await open_and_read(upstream, a.url) for _ in range(3)] == [b"{}"] * 3
        assert (a.connections, upstream.connections) == (1, 1)
        await upstream.close()
        await a.closed_by_peer()
        assert upstream.connections == 0


async def test_a_connection_that_has_waited_too_long_is_closed() -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream()
        await asyncio.gather(*(open_and_read(upstream, a.url) for _ in range(3)))
        assert upstream.connections == a.connections
        leap(KEEPALIVE)
        await until(lambda: not upstream.connections)
        before = a.connections
        await open_and_read(upstream, a.url)
        assert a.connections == before + 1
        await upstream.close()


async def test_a_connection_that_was_used_since_is_kept_as_long_again() -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream()
        await asyncio.gather(*(open_and_read(upstream, a.url) for _ in range(2)))
        leap(KEEPALIVE / 2)
        await open_and_read(upstream, a.url)
        assert upstream.connections == a.connections == 2
        leap(KEEPALIVE / 2)
        await until(lambda: upstream.connections == 1)
        leap(KEEPALIVE / 2)
        await until(lambda: not upstream.connections)
        await upstream.close()


async def test_an_old_connection_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream()
        await open_and_read(upstream, a.url)
        monkeypatch.setattr("gateway.execution.direct.KEEPALIVE", -1.0)
        await open_and_read(upstream, a.url)
        assert a.connections == 2
        await upstream.close()


async def test_a_connection_whose_end_has_come_in_this_turn_is_not_taken() -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream()
        await open_and_read(upstream, a.url)
        assert upstream._pooled is not None
        assert upstream._pooled.direct is not None
        ((link,),) = (origin._waiting for origin in upstream._pooled.direct._origins.values())
        transport = link.protocol.transport
        assert transport is not None
        transport.close()  # as the loop does on a FIN; the protocol is told in the next turn
        assert await open_and_read(upstream, a.url) == b"{}"
        assert a.connections == 2
        await upstream.close()


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize(
    ("unasked", "when", "wanted"),
    [
        *((json_answer({"evil": 1}), "at once", wanted) for wanted in TRANSPORTS),
        *((json_answer({"evil": 1}), "later", wanted) for wanted in TRANSPORTS),
        *((b"nonsense", "later", wanted) for wanted in TRANSPORTS),
        (b"HTTP/1.1 200 OK\r\nx-a: ", "later", "direct"),
        (b"\r\n", "later", "direct"),
    ],
)
async def test_who_speaks_without_being_asked_is_not_asked_again(
    unasked: bytes, when: str, before: int, wanted: Transport
) -> None:
    """An answer in advance would be taken for the next request's."""
    said, done = asyncio.Event(), asyncio.Event()

    class Says(Step):
        async def run(self, connection: Connection) -> None:
            await connection.write(unasked)
            done.set()

    def script(number: int, _: Request) -> list[Step]:
        if number >= before:
            return [Send(json_answer({"good": 2}))]
        whole = json_answer({"good": 1})
        if number < before - 1:
            return [Send(whole)]
        return [Send(whole + unasked)] if when == "at once" else [Send(whole), Pause(said), Says()]

    async with ScriptedUpstream(script) as a:
        upstream = Upstream(transport=wanted)
        assert [await open_and_read(upstream, a.url) for _ in range(before)] == [b'{"good": 1}'] * before
        if when == "later":
            said.set()
            await done.wait()
            await asyncio.sleep(0.05)
        assert await open_and_read(upstream, a.url) == b'{"good": 2}'
        assert a.connections == 2
        await upstream.close()


@pytest.mark.parametrize("unasked", [json_answer({"evil": 1}), b"nonsense"])
async def test_what_follows_on_a_stream_unasked_is_not_trusted(unasked: bytes) -> None:
    more = asyncio.Event()

    def script(number: int, _: Request) -> list[Step]:
        if number:
            return [Send(json_answer({"good": 2}))]
        return [
            Send(sse_head() + chunk(b"data: 1\n\n")),
            Pause(more),
            Send(chunk(b"data: 2\n\n") + last_chunk() + unasked),
        ]

    async with ScriptedUpstream(script) as a:
        upstream = Upstream()
        answer = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert await answer.chunk() == b"data: 1\n\n"
        more.set()
        assert await answer.chunk() == b"data: 2\n\n"
        assert await answer.chunk() == b""
        assert await open_and_read(upstream, a.url) == b'{"good": 2}'
        assert a.connections == 2
        await upstream.close()


@BOTH
async def test_a_connection_that_the_session_used_before_may_be_stale(transport: Transport) -> None:
    """It was taken for a new one, so that its end was held against the deployment."""

    def script(number: int, _: Request) -> list[Step]:
        return [Close()] if number else [Send(json_answer({}))]

    async with ScriptedUpstream(script) as a:
        upstream = Upstream(transport=transport)
        large = Call(CALL.operation, b" " * LARGEST + b"{}", CALL.fields, "id")
        await (await upstream.open(deployment(a.url), large, connect_timeout=5)).read(99)
        with pytest.raises(AttemptFailedError) as error:
            await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert (error.value.failure.cause, error.value.failure.stale) == (Cause.DISCONNECTED, True)
        assert a.connections == 1
        await upstream.close()


@pytest.mark.parametrize("small", [0, 1])
async def test_who_speaks_without_being_asked_is_not_asked_again_by_the_session(small: int) -> None:
    """What it had said was given to whoever asked next, if both requests were large."""
    said, done = asyncio.Event(), asyncio.Event()

    class Says(Step):
        async def run(self, connection: Connection) -> None:
            await connection.write(json_answer({"evil": 1}))
            done.set()

    def script(number: int, _: Request) -> list[Step]:
        return [Send(json_answer({"good": 2}))] if number else [Send(json_answer({"good": 1})), Pause(said), Says()]

    large = replaced(CALL, body=b" " * LARGEST + b"{}")
    async with ScriptedUpstream(script) as a, ScriptedUpstream([Send(json_answer({}))]) as b:
        upstream = Upstream()
        first = await upstream.open(deployment(a.url), large, connect_timeout=5)
        assert await first.read(99) == b'{"good": 1}'
        said.set()
        await done.wait()
        await open_and_read(upstream, b.url)  # it has arrived by then
        second = await upstream.open(deployment(a.url), CALL if small else large, connect_timeout=5)
        assert await second.read(99) == b'{"good": 2}'
        assert a.connections == 2
        await upstream.close()


async def test_places_beyond_what_is_kept_are_closed() -> None:
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        aiohttp.ClientSession(connector=Connector(Outbox())) as session,
    ):
        direct = Direct(session)
        prepared = direct.prepared(deployment(a.url), CALL.operation)
        assert prepared is not None
        link = await prepared.origin.connected(5)
        prepared.answer(link, await prepared.post(link, CALL.fields, "id", b"{}", Exchange())).release()
        for number in range(4096):
            direct.prepared(deployment(f"http://box/{number}"), CALL.operation)
        await a.closed_by_peer()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_a_connection_receives_goes_another_way_while_it_pours(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def run() -> None:
        go_on = asyncio.Event()
        steps = [Send(sse_head() + chunk(b"a")), Pause(go_on), Send(chunk(b"b")), Pause(ends := asyncio.Event())]
        async with ScriptedUpstream([*steps, Send(last_chunk())]) as a:
            upstream = Upstream()
            answer = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
            received: list[bytes] = []
            poured: list[bytes] = []

            def straight(otherwise: Callable[[bytes], None]) -> Straight:
                while True:
                    received.append((yield))
                    otherwise(received[-1])

            def take(data: bytes) -> bool:
                poured.append(data)
                return data == b"b"

            assert answer.flow is not None
            pouring = asyncio.create_task(answer.pour(answer.flow, take, straight))
            go_on.set()
            await pouring
            ends.set()
            assert await answer.chunk() == b""
            assert (received, poured) == ([chunk(b"b")], [b"a", b"b"])
            await upstream.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())
