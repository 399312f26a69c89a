import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from tests.fakes.client import RawClient, get, post
from tests.fakes.connection import Cut
from tests.fakes.upstream import (
    Close,
    Hang,
    Pause,
    Request,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    fd_count,
    json_answer,
    last_chunk,
    refused_url,
    sse,
    sse_answer,
    sse_head,
    status,
)


async def test_requests_are_recorded_byte_for_byte_on_one_kept_connection() -> None:
    first = b"POST /v1/x?q=1 HTTP/1.1\r\nHost: a\r\nX-Twice: 1\r\nx-twice:  2\r\nContent-Length: 4\r\n\r\nbody"
    second = b"PUT /y HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;ext\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
    async with ScriptedUpstream([Send(status(200, "OK", b"hi"))]) as upstream, RawClient(upstream.url) as client:
        for request in (first, second):
            await client.send(request)
            assert (await client.read_answer()).body == b"hi"
        assert upstream.received() == first + second
        assert (upstream.connections, upstream.open, upstream.leftover) == (1, 1, [])
    one, two = upstream.requests
    assert (one.method, one.target, one.head + one.body, one.values("X-TWICE")) == (
        "POST",
        "/v1/x?q=1",
        first,
        ["1", "2"],
    )
    assert (two.method, two.body, two.connection) == ("PUT", b"abcde", 1)


async def test_a_script_may_depend_on_the_request() -> None:
    def script(index: int, request: Request) -> Sequence[Step]:
        return [Send(json_answer({"index": index, "saw": request.json()}, 201, [("x-a", "b")]))]

    async with ScriptedUpstream(script) as upstream:
        for index in range(2):
            async with RawClient(upstream.url) as client:
                await client.send(post("/v1/y", {"n": index}, [("x-test", "1")]))
                answer = await client.read_answer()
            assert (answer.status, answer.head.reason, answer.head.get("X-A")) == (201, "Created", "b")
            assert answer.json() == {"index": index, "saw": {"n": index}}
        assert upstream.connections == 2
        assert upstream.requests[1].values("x-test") == ["1"]


async def test_an_exception_of_the_script_is_raised_at_the_end() -> None:
    def script(index: int, _: Request) -> Sequence[Step]:
        raise LookupError(index)

    upstream = await ScriptedUpstream(script).__aenter__()
    async with RawClient(upstream.url) as client:
        await client.send(get("/"))
        assert await client.read_to_end() == b""
    with pytest.raises(LookupError):
        await upstream.__aexit__()


async def test_a_paused_stream_goes_on_when_the_test_says_so() -> None:
    go_on = asyncio.Event()
    steps = [Send(sse_head() + chunk(sse("one"))), Pause(go_on), Send(chunk(sse("two\nlines")) + last_chunk())]
    async with ScriptedUpstream(steps) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/stream"))
        head = await client.read_head()
        assert head.values("content-type") == ["text/event-stream"]
        assert await client.read_chunk() == b"data: one\n\n"
        assert client.raw.endswith(b"data: one\n\n\r\n")
        go_on.set()
        assert await client.read_chunk() == b"data: two\ndata: lines\n\n"
        assert await client.read_chunk() == b""
        await client.close()
        await upstream.closed_by_peer()


async def test_a_whole_stream_is_one_body() -> None:
    async with ScriptedUpstream([Send(sse_answer("a", "[DONE]"))]) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/"))
        assert (await client.read_answer()).body == b"data: a\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(("step", "ended", "size"), [(Reset(), "reset", 50_000), (Close(), "fin", 3_000_000)])
async def test_an_ended_connection_loses_no_byte_sent_before(step: Step, ended: str, size: int) -> None:
    steps = [Send(sse_head() + chunk(b"x" * size)), step]
    async with ScriptedUpstream(steps) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/"))
        await client.read_head()
        assert await client.read_chunk() == b"x" * size
        with pytest.raises(Cut) as cut:
            await client.read_chunk()
        assert (cut.value.how, client.ended) == (ended, ended)
        await upstream.all_closed()
        assert "closed" in repr(upstream)


async def test_a_connection_can_be_reset_before_its_request_is_read() -> None:
    async with ScriptedUpstream(on_accept=[Reset()]) as upstream, RawClient(upstream.url) as client:
        assert await client.read_to_end() == b""
        assert client.ended == "reset"
        with pytest.raises(ConnectionResetError):
            await client.send(b"late")
    assert upstream.requests == []


@pytest.mark.parametrize(
    "steps", [[Hang()], [Pause(asyncio.Event())], [Send(b"HTTP/1.1 100 Continue\r\n\r\n"), Hang()]]
)
@pytest.mark.parametrize("leave", [RawClient.close, RawClient.abort])
async def test_a_peer_that_leaves_is_noticed(steps: list[Step], leave: Callable[..., asyncio.Future[None]]) -> None:
    async with ScriptedUpstream(steps) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/"))
        await upstream.arrived()
        assert upstream.open == 1
        await leave(client)
        await upstream.closed_by_peer(1)
        await upstream.all_closed()


async def test_a_half_closed_client_still_gets_its_answer() -> None:
    async with ScriptedUpstream([Send(status(204, "No Content"))]) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/"))
        client.half_close()
        answer = await client.read_answer()
        assert (answer.status, answer.body) == (204, b"")
        assert await client.read_to_end() == b""


async def test_a_body_without_length_ends_with_the_connection() -> None:
    steps = [Send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), Close()]
    async with ScriptedUpstream(steps) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/"))
        assert (await client.read_answer()).body == b"until the end"


@pytest.mark.parametrize("data", [b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort"])
async def test_bytes_that_make_no_request_are_left_over(data: bytes) -> None:
    async with ScriptedUpstream() as upstream:
        async with RawClient(upstream.url) as client:
            await client.send(get("/whole") + data)
            await client.close()
        await upstream.all_closed()
        assert (upstream.leftover, [request.target for request in upstream.requests]) == ([data], ["/whole"])


async def test_a_slow_reader_gets_everything_once_it_reads_on() -> None:
    piece = b"x" * 1_000_000
    async with (
        ScriptedUpstream([Send(piece)] * 30 + [Close()]) as upstream,
        RawClient(upstream.url) as client,
    ):
        await client.send(get("/"))
        client.pause_reading()
        await upstream.arrived()
        assert upstream.open == 1
        client.resume_reading()
        assert len(await client.read_to_end()) == 30_000_000


async def test_an_upstream_comes_back_on_its_port() -> None:
    async with ScriptedUpstream() as upstream:
        port = upstream.port
    async with ScriptedUpstream([Send(json_answer({}))], port=port) as again, RawClient(again.url) as client:
        await client.send(get("/"))
        assert (again.url, (await client.read_answer()).json()) == (upstream.url, {})


async def test_nothing_listens_on_a_refused_url() -> None:
    with pytest.raises(ConnectionRefusedError):
        async with RawClient(refused_url()):
            pass


async def test_descriptors_are_counted_and_given_back() -> None:
    before = fd_count()
    extra = os.dup(0)
    assert fd_count() == before + 1
    os.close(extra)
    async with ScriptedUpstream([Hang()]) as upstream, RawClient(upstream.url) as client:
        await client.send(get("/"))
        await upstream.arrived()
        assert fd_count() > before
    assert fd_count() == before


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_comes_at_the_end_is_closed_too(turns: int) -> None:
    with socket.socket() as client:
        client.settimeout(0)
        async with ScriptedUpstream() as upstream:
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", upstream.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
