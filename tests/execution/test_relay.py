"""What passes between upstream and client once an answer has begun, and how it ends."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable

import pytest

from gateway.execution.outcome import Usage
from tests.execution.support import CONTENT, DONE, FINISH, ROOM, ask, chain, cramp, limit, read_broken, running
from tests.fakes.client import RawClient
from tests.fakes.connection import Connection, Cut
from tests.fakes.upstream import (
    Close,
    Hang,
    Pause,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
    sse,
    sse_answer,
    sse_head,
)
from tests.running import Config, until

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
USAGE = sse('{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"details":{"cached":1}}}')
ROLE = sse('{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
CODED = b"transfer-encoding: chunked\r\n\r\n"
LARGE = b'{"choices": ["' + b"x" * (2 << 20)
WHOLE = LARGE + b'"]}'
BROKEN = (
    b'data: {"error":{"message":"the upstream broke off in mid-stream","type":"upstream_error",'
    b'"param":null,"code":"stream_broken"}}\n\n'
)


async def test_a_stream_passes_chunk_by_chunk(config: Config) -> None:
    events = [ROLE, CONTENT, b": keep-alive\n\n", 'data: ["äö"]\r\n\r\n'.encode(), FINISH, USAGE, DONE]
    turns = [asyncio.Event() for _ in events]
    steps: list[Step] = [Send(sse_head())]
    for event, turn in zip(events, turns, strict=True):
        steps += [Send(chunk(event)), Pause(turn)]
    async with (
        ScriptedUpstream([*steps, Send(last_chunk())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True, stream_options={"include_usage": True}))
        await a.arrived()
        assert client.raw == b""
        turns[0].set()
        head = await client.read_head()
        assert (head.status, head.get("content-type")) == (200, "text/event-stream")
        assert (head.get("cache-control"), head.get("x-accel-buffering")) == ("no-cache", "no")
        assert await client.read_chunk() == ROLE + CONTENT
        turns[1].set()
        for event, turn in list(zip(events, turns, strict=True))[2:]:
            assert await client.read_chunk() == event
            turn.set()
        assert await client.read_chunk() == b""
        outcome = await gate.outcome()
        assert (outcome.status, outcome.stream, outcome.failure, outcome.fallback) == (200, True, None, False)
        assert (outcome.bytes_out, outcome.usage) == (len(b"".join(events)), Usage(5, 2))
        assert outcome.first_content is not None
        assert 0 < outcome.first_content <= outcome.duration
        await client.send(ask(stream=True))
        assert (await client.read_head()).status == 200
    assert a.connections == 1


async def test_a_json_answer_passes_as_it_came(config: Config) -> None:
    answer = (
        b'{ "choices":[ {"message":{"content":"\xc3\xa4"}} ],\n "usage":{"prompt_tokens":1,"completion_tokens":2} }'
    )
    async with (
        ScriptedUpstream([Send(JSON + b"content-length: %d\r\n\r\n" % len(answer) + answer)]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        got = await gate.post("m")
        assert (got.body, got.head.get("content-length")) == (answer, str(len(answer)))
        assert got.head.get("transfer-encoding") is None
        outcome = await gate.outcome()
        assert (outcome.usage, outcome.bytes_out, outcome.stream) == (Usage(1, 2), len(answer), False)
        assert (outcome.operation, outcome.model, outcome.generation) == ("chat/completions", "m", 1)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"id":"a","usage":{"prompt_tokens":1,"completion_tokens":2},"choices":[{"message":{"content":"\\n%b"}}]}',
        b'{"id":"a","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},"prompt_token_ids":[1%b]}',
    ],
)
async def test_usage_is_found_wherever_a_json_answer_tells_of_it(config: Config, answer: bytes) -> None:
    body = answer % (b"1" * 5000)
    async with (
        ScriptedUpstream([Send(JSON + b"content-length: %d\r\n\r\n" % len(body) + body)]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        assert (await gate.post("m")).body == body
        assert (await gate.outcome()).usage == Usage(1, 2)


@pytest.mark.parametrize(
    "framing",
    [
        b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n3\r\n 1}\r\n0\r\n\r\n',
        b'content-encoding: Identity\r\ntransfer-encoding: Chunked\r\n\r\n8\r\n{"a": 1}\r\n0\r\n\r\n',
        b'\r\n{"a": 1}',
    ],
)
async def test_an_answer_without_a_length_passes_with_one(config: Config, framing: bytes) -> None:
    async with (
        ScriptedUpstream([Send(JSON + framing), Close()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.json(), answer.head.get("content-length")) == ({"a": 1}, "8")
        assert answer.head.get("transfer-encoding") is None


async def test_informational_answers_do_not_pass(config: Config) -> None:
    steps = [Send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + json_answer({}))]
    async with ScriptedUpstream(steps) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.post("m")).json() == {}


@pytest.mark.parametrize("status", [b"204 No Content", b"205 Reset Content"])
async def test_a_good_status_that_has_no_body_is_no_answer(config: Config, status: bytes) -> None:
    """It was passed on, and openai's client raised an AttributeError."""
    head = b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n"
    async with (
        ScriptedUpstream([Send(head)]) as a,
        ScriptedUpstream([Send(json_answer({}))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert (await gate.post("m")).json() == {}
        assert await gate.failures() == ["empty_answer", None]


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_coded_answer_passes_with_its_coding(config: Config, kind: str) -> None:
    body = gzip.compress(CONTENT)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
    async with (
        ScriptedUpstream([Send(head.encode() + body)]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.post("m", headers=[("accept-encoding", "gzip")])
        assert (answer.body, answer.head.get("content-encoding")) == (body, "gzip")
        assert a.requests[0].values("accept-encoding") == ["identity"]
        assert (await gate.outcome()).failure is None


@pytest.mark.parametrize("end", [Close(), Reset(), Send(b"no chunk size\r\n")])
@pytest.mark.parametrize(
    ("before", "part", "blank"),
    [
        (CONTENT, b"", b""),
        (CONTENT + b"data: 1\r\n\r\n", b"", b""),
        (CONTENT, b"data: {", b""),
        (CONTENT, b"data: x\n", b""),
        (CONTENT + b"data: " + b"x" * (1 << 20), b"", b"\n\n"),
    ],
)
async def test_a_stream_that_breaks_ends_with_one_visible_error(
    config: Config, end: Step, before: bytes, part: bytes, blank: bytes
) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(before + part)), Pause(go_on), end, Hang()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await until(lambda: client.raw.count(b"x") >= before.count(b"x") and CONTENT in client.raw)
        go_on.set()
        assert await read_broken(client) == (before + blank + BROKEN, "fin")
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.served_model) == (200, "cut_answer", "m")
        assert [(attempt.status, attempt.failure) for attempt in outcome.attempts] == [(200, "cut_answer")]
        await a.all_closed()


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked\r\n\r\n", b"\r\n"])
async def test_a_stream_that_ends_without_a_reason_is_broken(config: Config, framing: bytes) -> None:
    body = chunk(CONTENT) + last_chunk() if b"chunked" in framing else CONTENT
    async with (
        ScriptedUpstream([Send(SSE + framing + body), Close()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        assert await gate.broken(ask(stream=True)) == (CONTENT + BROKEN, "fin")
        assert (await gate.outcome()).failure == "cut_answer"


@pytest.mark.parametrize(
    ("end", "added"),
    [
        (DONE, b""),
        (DONE[:-2], b""),
        (FINISH, DONE),
        (FINISH[:-2], b"\n\n" + DONE),
    ],
)
async def test_a_stream_that_ends_with_a_reason_is_whole(config: Config, end: bytes, added: bytes) -> None:
    async with (
        ScriptedUpstream([Send(SSE + b"\r\n" + CONTENT + end), Close()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.say(ask(stream=True))
        assert answer.body == CONTENT + end + added
        assert (await gate.outcome()).failure is None


@pytest.mark.parametrize("end", [b"", DONE])
async def test_an_error_event_in_mid_stream_is_a_break(config: Config, end: bytes) -> None:
    """It used to pass as a good end: no failure in the log, nothing counted."""
    stream = CONTENT + sse('{"error":{"message":"overloaded"}}') + CONTENT + end
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(stream) + last_chunk())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        told = BROKEN.replace(b"in mid-stream", b"in mid-stream: overloaded")
        assert await gate.broken(ask(stream=True)) == (CONTENT + told, "fin")
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.attempts[0].failure) == (200, "error_answer", "error_answer")


@pytest.mark.parametrize(
    ("framing", "end"),
    [(b"content-length: 9999999\r\n\r\n", Close()), (b"content-length: 9999999\r\n\r\n", Reset()), (b"\r\n", Reset())],
)
async def test_a_json_answer_that_breaks_ends_uncleanly(config: Config, framing: bytes, end: Step) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Send(JSON + framing + LARGE), Pause(go_on), end]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask())
        await until(lambda: client.raw.count(b"x") >= LARGE.count(b"x"))
        go_on.set()
        await client.read_to_end()
        assert client.raw.endswith((b"xx", b"xx\r\n"))
        assert (await gate.outcome()).failure == "cut_answer"


@pytest.mark.parametrize("end", [b"}", b"} \r\n", b"", b'"]', b"} x"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_large_json_answer_that_is_cut_and_well_framed_ends_uncleanly(
    config: Config, end: bytes, *, chunked: bool
) -> None:
    """What is held back whole was checked; a larger answer used to end well wherever it was cut."""
    body = LARGE + end
    framing = b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: %d\r\n\r\n" % len(body)
    async with (
        ScriptedUpstream([Send(JSON + framing + (chunk(body) + last_chunk() if chunked else body))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask())
        head = await client.read_head()
        if end.rstrip() == b"}":
            assert await client.read_body(head) == body
            assert (await gate.outcome()).failure is None
        else:
            with pytest.raises(Cut):
                await client.read_body(head)
            assert ((await gate.outcome()).failure, await gate.failures()) == ("cut_answer", ["cut_answer"])


async def test_a_large_json_answer_is_whole_and_counted_in_however_small_parts_it_ends(config: Config) -> None:
    ends = [b'"], "usage": {"prompt', b'_tokens": 1, "completion_tokens": 2}', b"}"]
    turns = [asyncio.Event() for _ in ends]
    body = LARGE + b"".join(ends)
    steps: list[Step] = [Send(JSON + b"content-length: %d\r\n\r\n" % len(body) + LARGE)]
    for end, turn in zip(ends, turns, strict=True):
        steps += [Pause(turn), Send(end)]
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask())
        head = await client.read_head()
        for before, turn in zip([b"xx", *ends], turns, strict=False):
            await until(lambda: client.raw.endswith(before))  # noqa: B023 - it is asked now
            turn.set()
        assert await client.read_body(head) == body
        outcome = await gate.outcome()
        assert (outcome.failure, outcome.usage, outcome.bytes_out) == (None, Usage(1, 2), len(body))
        assert outcome.first_content is not None
        assert 0 < outcome.first_content <= outcome.duration


@pytest.mark.exhaustive
@pytest.mark.parametrize("end", [[Close()], [Reset()], [Send(last_chunk()), Close()]])
async def test_a_stream_that_is_cut_anywhere_is_whole_or_visibly_broken(config: Config, end: list[Step]) -> None:
    body = ROLE + CONTENT + FINISH + DONE
    async with (
        ScriptedUpstream(lambda index, _: [Send(sse_head() + chunk(body[: index + 1])), *end]) as a,
        running(config, {"m": chain(a.url)}, retries={"attempts": 1}) as gate,
    ):
        for length in range(1, len(body) + 1):
            async with gate.client() as client:
                await client.send(ask(stream=True))
                head = await client.read_head()
                try:
                    got = await client.read_body(head)
                except Cut:
                    assert (head.status, client.raw.count(BROKEN)) == (200, 1)
                    assert length < len(body) - len(DONE)
                else:
                    if head.status == 200:
                        assert got.startswith(ROLE + CONTENT + FINISH.rstrip(b"\n"))
                        assert got.rstrip(b"\n").endswith(DONE.rstrip(b"\n"))
                    else:
                        assert length < len(ROLE + CONTENT) + len(FINISH)


async def old_answer(client: RawClient, request: bytes) -> bytes:
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head = await client.read_head()
    assert (head.status, head.values("transfer-encoding")) == (200, [])
    return await client.read_to_end()


@pytest.mark.parametrize("kept", [b"", b"\r\nConnection: keep-alive"])
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (sse_answer('"a"', "[DONE]"), sse('"a"') + DONE),
        (JSON + CODED + chunk(WHOLE) + last_chunk(), WHOLE),
    ],
)
async def test_an_http_1_0_client_gets_what_has_no_length_to_the_end(
    config: Config, answer: bytes, body: bytes, kept: bytes
) -> None:
    """One that asks for the connection to be kept waited for more, and took the next answer for that."""
    async with (
        ScriptedUpstream([Send(answer)]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        assert await old_answer(client, ask(stream=True).replace(b"HTTP/1.1", b"HTTP/1.1" + kept)) == body
        assert client.ended == "fin"


@pytest.mark.parametrize(
    ("answer", "body", "last"), [(sse_head() + chunk(CONTENT), CONTENT, BROKEN), (JSON + b"\r\n" + LARGE, LARGE, b"")]
)
async def test_an_http_1_0_client_sees_a_break_by_the_reset(
    config: Config, answer: bytes, body: bytes, last: bytes
) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Send(answer), Pause(go_on), Reset()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        answering = asyncio.create_task(old_answer(client, ask(stream=True)))
        await until(lambda: client.raw.endswith(body))
        go_on.set()
        assert await answering == body + last
        assert client.ended == "reset"


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.abort])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_takes_the_upstream_with_it(
    config: Config, leave: Callable[[RawClient], Awaitable[None]], *, begun: bool
) -> None:
    steps: list[Step] = [Send(sse_head() + chunk(CONTENT)), Hang()] if begun else [Hang()]
    async with (
        ScriptedUpstream(steps) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        async with gate.client() as client:
            await client.send(ask(stream=True))
            await a.arrived()
            if begun:
                await client.read_until(CONTENT)
            assert gate.gateway.executor.in_flight["m", "a"] == 1
            await leave(client)
            await a.closed_by_peer()
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure) == (499, "client_left")
        (attempt,) = outcome.attempts
        assert (attempt.failure, attempt.status) == ("client_left", 200 if begun else None)
        assert (gate.gateway.executor.in_flight["m", "a"], gate.gateway.active, b.requests) == (0, 0, [])
        assert {record["level"] for record in await gate.log()} == {"info"}


async def test_a_client_that_leaves_while_it_is_written_to_is_noticed(config: Config) -> None:
    steps = [Send(sse_head()), *[Send(chunk(CONTENT * 1000))] * 200, Hang()]
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        client.pause_reading()
        await client.send(ask(stream=True))
        await a.arrived()
        await client.abort()
        await a.closed_by_peer()
        assert ((await gate.outcome()).status, gate.outcomes[0].failure) == (499, "client_left")


async def test_a_slow_reader_slows_the_upstream_and_loses_nothing(config: Config) -> None:
    piece, count, room = CONTENT.replace(b"hi", b"x" * (1 << 16)), 256, 1 << 16
    sent = 0

    class Counted(Send):
        async def run(self, connection: Connection) -> None:
            nonlocal sent
            limit(connection.transport, room)
            await super().run(connection)
            sent += 1

    async with (
        ScriptedUpstream([Send(sse_head()), *[Counted(chunk(piece))] * count, Send(chunk(DONE) + last_chunk())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client(room=room) as client,
    ):
        await cramp(gate.door)
        client.pause_reading()
        await client.send(ask(stream=True))
        await until(lambda: sent)
        settled = -1
        while sent != settled:
            settled = sent
            await asyncio.sleep(0.1)
        assert sent < count / 2
        client.resume_reading()
        assert (await client.read_answer()).body == piece * count + DONE


async def test_no_number_of_streams_is_too_large_for_the_pool(config: Config) -> None:
    streams = 120
    go_on = asyncio.Event()
    steps = [Send(sse_head() + chunk(CONTENT)), Pause(go_on), Send(chunk(DONE) + last_chunk())]
    async with ScriptedUpstream(steps) as a, running(config, {"m": chain(a.url)}) as gate:
        answers = [asyncio.create_task(gate.say(ask(stream=True))) for _ in range(streams)]
        await a.arrived(streams)
        assert gate.gateway.executor.in_flight["m", "a"] == streams
        go_on.set()
        assert {(await answer).body for answer in answers} == {CONTENT + DONE}


def of_choice(index: int, text: str | None, finish: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return sse(json.dumps({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}))


async def test_a_stream_of_two_choices_is_whole_when_both_are(config: Config) -> None:
    first = of_choice(0, "a") + of_choice(0, None, "stop")
    both = first + of_choice(1, "b") + of_choice(1, None, "stop")

    def script(number: int, _: object) -> list[Step]:
        return [Send(sse_head() + chunk(both if number else first)), Reset()]

    async with ScriptedUpstream(script) as a, running(config, {"m": chain(a.url)}) as gate:
        async with gate.client() as client:
            await client.send(ask(stream=True, n=2))
            assert await read_broken(client) == (first + BROKEN, "fin")
        assert (await gate.outcome()).failure == "cut_answer"
        async with gate.client() as client:
            await client.send(ask(stream=True, n=2))
            assert (await client.read_answer()).body == both + DONE
        assert (await gate.outcome(2)).failure is None


async def test_an_error_after_the_end_is_none(config: Config) -> None:
    whole, error = CONTENT + FINISH, sse('{"error":{"message":"no usage"}}')

    def script(number: int, _: object) -> list[Step]:
        return [Send(sse_head() + chunk(whole) + chunk(DONE if number else b": \n\n") + chunk(error) + last_chunk())]

    async with (
        ScriptedUpstream(script) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        assert (await client.read_answer()).body == whole + b": \n\n" + DONE
        assert (await gate.outcome()).failure is None
        await client.send(ask(stream=True))
        assert (await client.read_answer()).body == whole + DONE
        assert (await gate.outcome(2)).failure is None
        assert (len(a.requests), b.requests) == (2, [])


async def test_a_client_that_leaves_after_the_last_event_has_all_of_it(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT + FINISH + DONE)), Hang()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        async with gate.client() as client:
            await client.send(ask(stream=True))
            await client.read_until(b"[DONE]\n\n")
            await client.close()
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, await gate.failures()) == (200, None, [None])


async def test_a_client_that_leaves_with_the_last_event_unread_has_not_all_of_it(config: Config) -> None:
    whole = chunk(CONTENT * 800 + FINISH + DONE)
    async with (
        ScriptedUpstream(
            [Send(sse_head() + chunk(CONTENT)), Pause(go_on := asyncio.Event()), Send(whole), Hang()]
        ) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client(room=ROOM) as client,
    ):
        await client.send(ask(stream=True))
        await client.read_until(CONTENT)
        client.pause_reading()
        line = await gate.cramped()
        go_on.set()
        await until(lambda: line.writing_paused)
        await client.abort()
        assert ((await gate.outcome()).status, gate.outcomes[0].failure) == (499, "client_left")
