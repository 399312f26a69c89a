"""The four clocks, at the wire; time leaps, and nothing is said of how long a thing took."""

import asyncio
import itertools

import pytest

from gateway.execution.outcome import Usage
from tests.execution.support import CONTENT, DONE, FINISH, ROOM, ask, chain, error_of, read_broken, running
from tests.fakes.leaping import RUNS_OUT, SILENCE, Drip, leap
from tests.fakes.upstream import (
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
    sse_head,
)
from tests.running import Config, until

OK: dict[str, object] = {"choices": []}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
COMMENT = b": keep-alive\n\n"
ENDING = sse('{"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}')
ROLE = sse('{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
REASONING = sse('{"choices":[{"delta":{"reasoning_content":"hm"},"finish_reason":null}]}')
LINE = sse(r'{"choices":[{"delta":{"content":"\n"},"finish_reason":null}]}')  # is read each time, for its escape
BROKEN = b'"code":"stream_broken"}}\n\n'
LARGE = 1 << 20  # more than is kept for a client that has no room


SILENT: list[list[Step]] = [
    [SILENCE],
    [Send(HEAD), SILENCE],
    [Send(HEAD + b"content-length: 9\r\n\r\n"), SILENCE],
    [Send(sse_head()), SILENCE],
    [Send(sse_head() + chunk(ROLE)), SILENCE],
    [Send(sse_head() + chunk(FINISH)), SILENCE],
    [Send(sse_head()), Drip(itertools.repeat(chunk(COMMENT)))],
    [Send(sse_head()), Drip(itertools.repeat(chunk(ROLE)))],
    [Send(sse_head()), Drip(itertools.repeat(chunk(b":")))],
    [Send(HEAD + b"x: "), Drip(itertools.repeat(b"y"))],
]


@pytest.mark.parametrize("steps", SILENT)
async def test_a_box_without_content_is_given_up_once(config: Config, steps: list[Step]) -> None:
    async with (
        ScriptedUpstream(steps) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}, timeouts={"first_token": RUNS_OUT}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json()) == (200, OK)
        assert (await gate.failures(), len(a.requests), len(b.requests)) == (["first_token_timeout", None], 1, 1)
        await a.closed_by_peer()


async def test_a_silent_box_alone_is_a_504(config: Config) -> None:
    async with (
        ScriptedUpstream([SILENCE]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"first_token": RUNS_OUT}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"]) == (504, "all_deployments_failed")
        assert (await gate.failures(), len(a.requests), gate.delays) == (["first_token_timeout"], 1, [])
        assert (await gate.outcome()).failure == "first_token_timeout"


@pytest.mark.parametrize(("clock", "stream"), [("first_token", True), ("answer", False)])
async def test_an_answer_in_one_piece_has_a_clock_of_its_own(config: Config, clock: str, *, stream: bool) -> None:
    """It used to be given up as a stream without a first token is, elsewhere too, and healthy boxes were out then."""
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Pause(go_on), Send(json_answer(OK))]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"first_token": 0, "answer": 0, clock: RUNS_OUT}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=not stream))
        await a.arrived()
        assert (await gate.say(ask(stream=stream))).status == 504
        go_on.set()
        assert (await client.read_answer()).json() == OK


async def test_an_error_that_comes_too_late_is_silence(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(b"HTTP/1.1 400 No\r\ncontent-length: 9\r\n\r\nab"), SILENCE]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"first_token": RUNS_OUT}) as gate,
    ):
        assert (await gate.post("m")).status == 504
        assert await gate.failures() == ["first_token_timeout"]
        await a.closed_by_peer()


async def test_a_model_has_clocks_of_its_own(config: Config) -> None:
    async with ScriptedUpstream([SILENCE]) as a:
        config.save(
            "models.yaml",
            f"models: [{{id: m, provider: vllm, base_url: '{a.url}', timeouts: {{first_token: {RUNS_OUT}}}}}]\n",
        )
        async with running(config) as gate:
            assert (await gate.post("m")).status == 504


async def test_the_first_content_ends_the_first_clock(config: Config) -> None:
    steps = [Send(sse_head()), Drip([chunk(CONTENT)] * 25), Send(chunk(DONE) + last_chunk())]
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}, timeouts={"first_token": RUNS_OUT, "idle": 0}) as gate,
    ):
        assert (await gate.say(ask(stream=True))).body == CONTENT * 25 + DONE


async def test_the_first_byte_of_a_json_body_ends_the_first_clock(config: Config) -> None:
    body = b'{"choices": []}'
    steps = [Send(HEAD + b"content-length: %d\r\n\r\n" % len(body)), Drip(bytes([byte]) for byte in body)]
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}, timeouts={"first_token": RUNS_OUT, "idle": 5 * RUNS_OUT}) as gate,
    ):
        assert (await gate.post("m")).body == body


async def test_a_json_body_that_stalls_is_asked_for_elsewhere(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(HEAD + b"content-length: 9\r\n\r\n{"), SILENCE]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}, timeouts={"idle": RUNS_OUT}) as gate,
    ):
        assert (await gate.post("m")).json() == OK
        assert (await gate.failures(), len(a.requests)) == (["stalled", None], 1)


async def test_a_clock_of_zero_does_not_run(config: Config) -> None:
    go_on = asyncio.Event()
    steps = [Pause(go_on), Send(sse_head() + chunk(CONTENT)), Send(chunk(DONE) + last_chunk())]
    clocks = {"first_token": 0, "idle": 0, "total": 0}
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}, timeouts=clocks) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await a.arrived()
        go_on.set()
        assert (await client.read_answer()).body == CONTENT + DONE


@pytest.mark.parametrize(
    "stall", [SILENCE, Drip(itertools.repeat(chunk(COMMENT))), Drip(itertools.repeat(chunk(ROLE)))]
)
@pytest.mark.parametrize("content", [CONTENT, REASONING])
async def test_a_stall_after_content_ends_as_an_error(config: Config, content: bytes, stall: Step) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(content)), stall]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
    ):
        body, ended = await gate.broken(ask(stream=True))
        assert (body.startswith(content), body.endswith(BROKEN), ended) == (True, True, "fin")
        assert DONE not in body
        assert (await gate.failures(), (await gate.outcome()).failure) == (["stalled"], "stalled")
        await a.closed_by_peer()


async def test_a_large_json_body_that_stalls_is_cut(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(HEAD + b"\r\n" + b'{"data": "' + b"x" * (2 << 20)), SILENCE]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
    ):
        body, _ = await gate.broken(ask())
        assert (body.endswith(b"x"), await gate.failures()) == (True, ["stalled"])


@pytest.mark.parametrize("content", [CONTENT, REASONING, LINE])
async def test_content_feeds_the_idle_clock(config: Config, content: bytes) -> None:
    steps = [Send(sse_head()), Drip([chunk(content)] * 25), Send(chunk(DONE) + last_chunk())]
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
    ):
        assert (await gate.say(ask(stream=True))).body == content * 25 + DONE


async def test_a_slow_client_does_not_starve_the_idle_clock(config: Config) -> None:
    piece = CONTENT.replace(b"hi", b"x" * (1 << 16))
    async with (
        ScriptedUpstream([Send(sse_head()), *[Send(chunk(piece))] * 16, Send(chunk(DONE) + last_chunk())]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
        gate.client(room=ROOM) as client,
    ):
        line = await gate.cramped()
        client.pause_reading()
        await client.send(ask(stream=True))
        await until(lambda: line.writing_paused)
        leap(3 * RUNS_OUT)
        await asyncio.sleep(0.01)
        client.resume_reading()
        assert (await client.read_answer()).body == piece * 16 + DONE


@pytest.mark.parametrize("follows", [True, False])
async def test_a_slow_client_does_not_starve_what_follows_on_the_end(
    config: Config, monkeypatch: pytest.MonkeyPatch, *, follows: bool
) -> None:
    monkeypatch.setattr("gateway.execution.relay._AFTERMATH", RUNS_OUT)
    piece = CONTENT.replace(b"hi", b"x" * (1 << 15))
    usage = sse('{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}')
    last = Send(chunk(usage) + chunk(DONE) + last_chunk()) if follows else SILENCE
    end = [Pause(more := asyncio.Event()), last]
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(piece + FINISH)), *end]) as a,
        running(config, {"m": chain(a.url)}, transport="direct", timeouts={"idle": 5 * RUNS_OUT}) as gate,
        gate.client(room=ROOM) as client,
    ):
        line = await gate.cramped()
        client.pause_reading()
        await client.send(ask(stream=True, stream_options={"include_usage": True}))
        await until(lambda: line.writing_paused)
        leap(2 * RUNS_OUT)
        client.resume_reading()
        await until(lambda: not line.writing_paused)
        await asyncio.sleep(0.05)
        more.set()
        assert (await client.read_answer()).body == piece + FINISH + (usage if follows else b"") + DONE
        assert (await gate.outcome()).usage == (Usage(1, 2) if follows else None)


@pytest.mark.parametrize("steps", [[SILENCE], [Send(sse_head()), Drip(itertools.repeat(chunk(COMMENT)))]])
async def test_the_whole_request_has_a_clock(config: Config, steps: list[Step]) -> None:
    async with (
        ScriptedUpstream(steps) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}, timeouts={"total": RUNS_OUT}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"]) == (504, "all_deployments_failed")
        assert (await gate.failures(), b.requests) == (["total_timeout"], [])
        assert (await gate.outcome()).failure == "total_timeout"
        await a.closed_by_peer()


async def test_the_whole_clock_cuts_a_stream(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head()), Drip(itertools.repeat(chunk(CONTENT)))]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"total": RUNS_OUT}) as gate,
    ):
        body, ended = await gate.broken(ask(stream=True))
        assert (body.startswith(CONTENT), body.endswith(BROKEN), ended) == (True, True, "fin")
        assert (await gate.failures(), gate.outcomes[0].status) == (["total_timeout"], 200)
        await a.closed_by_peer()


@pytest.mark.parametrize("end", [FINISH, FINISH + DONE])
@pytest.mark.parametrize("shape", [CONTENT, LINE])
async def test_the_whole_clock_ends_a_complete_stream_well(
    config: Config, monkeypatch: pytest.MonkeyPatch, shape: bytes, end: bytes
) -> None:
    """A box that left it open made it a broken one."""
    monkeypatch.setattr("gateway.execution.relay._AFTERMATH", 2 * RUNS_OUT)
    monkeypatch.setattr("gateway.execution.relay._FAREWELL", 2 * RUNS_OUT)
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(shape) + chunk(end)), Hang()]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"total": RUNS_OUT}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await until(lambda: FINISH in client.raw)
        leap(RUNS_OUT)
        assert (await client.read_answer()).body == shape + FINISH + DONE
        assert await gate.failures() == [None]
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.served_model) == (200, None, "m")
        await a.closed_by_peer()


@pytest.mark.parametrize("prompt", ["short", "x" * 70_000])
@pytest.mark.parametrize(
    "steps", [[Send(sse_head()), *[Send(chunk(CONTENT * 1000))] * 40, Hang()], [Send(json_answer({"x": "x" * LARGE}))]]
)
async def test_the_whole_clock_cuts_a_client_that_does_not_read(
    config: Config, monkeypatch: pytest.MonkeyPatch, steps: list[Step], prompt: str
) -> None:
    monkeypatch.setattr("gateway.execution.client._LAST_WORDS", 0.01)
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}, timeouts={"total": RUNS_OUT}) as gate,
        gate.client(room=ROOM) as client,
    ):
        line = await gate.cramped()
        client.pause_reading()
        await client.send(ask(stream=True, prompt=prompt))
        await until(lambda: line.writing_paused)
        leap(RUNS_OUT)
        outcome = await gate.outcome()
        assert (outcome.failure, outcome.status) == ("total_timeout", 200)
        assert gate.gateway.active == 0
        await until(lambda: not gate.door.capacity.connections)


async def test_the_last_words_are_said_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who did not read them at once was told of two breaks, if the whole clock ran out meanwhile."""
    monkeypatch.setattr("gateway.execution.client._LAST_WORDS", 2 * RUNS_OUT)
    event = sse('{"choices":[{"delta":{"content":"%s"}}]}' % ("x" * 200_000))
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(event + sse('{"error":{}}'))), Hang()]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"total": RUNS_OUT}, transport="direct") as gate,
        gate.client(room=ROOM) as client,
    ):
        await gate.cramped()
        client.pause_reading()
        await client.send(ask(stream=True))
        await a.closed_by_peer()
        leap(RUNS_OUT)
        client.resume_reading()
        assert (await client.read_to_end()).count(BROKEN) == 1
        assert client.ended == "fin"


@pytest.mark.parametrize(("sent", "added"), [(FINISH, DONE), (FINISH + DONE, b""), (DONE, b""), (FINISH[:-1], None)])
async def test_a_complete_stream_that_is_kept_open_ends_well(
    config: Config, monkeypatch: pytest.MonkeyPatch, sent: bytes, added: bytes | None
) -> None:
    monkeypatch.setattr("gateway.execution.relay._AFTERMATH", RUNS_OUT if DONE in sent else 0.01)
    monkeypatch.setattr("gateway.execution.relay._FAREWELL", 0.01)
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT) + chunk(sent)), SILENCE]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
    ):
        if added is None:
            body, _ = await gate.broken(ask(stream=True))
            assert body.endswith(BROKEN)
        else:
            assert (await gate.say(ask(stream=True))).body == CONTENT + sent + added
        assert (await gate.outcome()).failure == (None if added is not None else "stalled")
        await a.closed_by_peer()


@pytest.mark.parametrize("event", [CONTENT, ENDING])
async def test_a_stream_that_goes_on_after_a_finish_reason_has_its_time(
    config: Config, monkeypatch: pytest.MonkeyPatch, event: bytes
) -> None:
    """It was cut a second after the first one, and the client was told that this is all."""
    monkeypatch.setattr("gateway.execution.relay._AFTERMATH", RUNS_OUT / 4)
    more = asyncio.Event()
    async with (
        ScriptedUpstream(
            [Send(sse_head() + chunk(ENDING) + chunk(event)), Pause(more), Send(chunk(event + DONE) + last_chunk())]
        ) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await client.read_until(ENDING + event)
        leap(RUNS_OUT / 2)
        await asyncio.sleep(0.01)
        more.set()
        rest = await client.read_until(b"\r\n0\r\n")
        assert (rest.count(event), rest.count(DONE)) == (1, 1)
        assert (await gate.outcome()).failure is None


async def test_a_stream_that_went_on_after_a_finish_reason_is_broken_by_a_reset(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(ENDING) + chunk(ENDING)), Reset()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        body, _ = await gate.broken(ask(stream=True))
        assert (body.startswith(ENDING * 2), body.endswith(BROKEN)) == (True, True)


async def test_a_complete_stream_that_is_reset_ends_well(config: Config) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT + FINISH)), Pause(go_on), Reset()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        head = await client.read_head()
        go_on.set()
        assert await client.read_body(head) == CONTENT + FINISH + DONE
        assert (await gate.failures()) == [None]


async def test_a_stream_with_a_length_may_still_be_finished(config: Config) -> None:
    body = CONTENT + FINISH
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with ScriptedUpstream([Send(head + body)]) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.say(ask(stream=True))).body == body + DONE


async def test_the_break_of_a_stream_is_read_by_a_client(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT + b"data: {")), SILENCE]) as a,
        running(config, {"m": chain(a.url)}, timeouts={"idle": RUNS_OUT}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        body, _ = await read_broken(client)
        assert body.startswith(CONTENT + b'data: {"error":')
