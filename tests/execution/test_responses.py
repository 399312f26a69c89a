"""Streams of `/v1/responses`: what passes, when such a stream is over, and what its client is told when it breaks."""

import itertools
import json
import sys
from collections.abc import Sequence

import pytest

from gateway.execution.outcome import Usage
from gateway.execution.responses import ResponseStream
from gateway.execution.upstream import TRANSPORTS, Transport
from tests.execution.support import chain, running
from tests.fakes.client import post
from tests.fakes.leaping import RUNS_OUT, SILENCE
from tests.fakes.upstream import Hang, Reset, ScriptedUpstream, Send, Step, chunk, json_answer, last_chunk, sse_head
from tests.running import Config

TARGET = "/v1/responses"
SPENT = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 5,
}
USAGE = Usage(3, 2, 1, 1)
COMMENT = b": keep-alive\n\n"
LAST = b"data: [DONE]\n\n"


def event(kind: str, /, **fields: object) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": 0, **fields})
    return f"event: {kind}\ndata: {data}\n\n".encode()


def of_response(kind: str, **fields: object) -> bytes:
    return event(kind, response={"id": "resp", "error": None, **fields})


CREATED = of_response("response.created", usage=None)
OPENING = (
    CREATED
    + of_response("response.in_progress")
    + event("response.output_item.added", item={"type": "message"})
    + event("response.content_part.added", part={"text": ""})
)
DELTA = event("response.output_text.delta", sequence_number=4, delta="hi")
COMPLETED = of_response("response.completed", usage=SPENT)
WHOLE = OPENING + DELTA + event("response.output_text.done", sequence_number=5, text="hi") + COMPLETED
GOOD = [Send(sse_head() + chunk(WHOLE) + last_chunk())]


def ask(**fields: object) -> bytes:
    return post(TARGET, {"model": "m", "input": "who are you?", "stream": True, **fields})


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def stream() -> ResponseStream:
    return ResponseStream(itertools.count(1.0).__next__)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_bytes_pass_as_they_are(size: int) -> None:
    passing = stream()
    body = COMMENT + WHOLE + LAST
    passed = b"".join(passing.feed(body[place : place + size])[0] for place in range(0, len(body), size))
    assert (passed + passing.end(), passing.size) == (body, len(body))
    assert (passing.done, passing.truncated, passing.failed, passing.malformed) == (True, False, False, 0)
    assert (passing.usage, passing.first_content) == (USAGE, 1.0)


@pytest.mark.parametrize(
    "said",
    [
        DELTA,
        event("response.function_call_arguments.delta", delta="{"),
        event("response.reasoning_text.delta", delta="hm"),
        event("response.web_search_call.searching"),
        event("response.of_a_kind_to_come"),
        COMPLETED,
        b'data: {"type": []}\n\n',
        b"data: [1]\n\n",
    ],
)
def test_what_announces_nothing_is_content(said: bytes) -> None:
    passing = stream()
    waiting = OPENING + event("keepalive")
    assert passing.feed(COMMENT + waiting) == (COMMENT + waiting, False)
    assert passing.feed(b"data:\n\n" + said) == (b"data:\n\n" + said, True)


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.cancelled"])
@pytest.mark.parametrize("told", [{}, {"response": None}, {"response": {"usage": None}}, {"response": {"usage": "3"}}])
def test_three_events_end_an_answer(kind: str, told: dict[str, object]) -> None:
    passing = stream()
    passing.feed(OPENING + DELTA)
    assert (passing.whole, passing.truncated) == (False, True)
    passing.feed(event(kind, **told))
    assert (passing.whole, passing.complete, passing.truncated, passing.usage) == (True, True, False, None)
    assert passing.feed(b'data: {"error": {"message": "late"}}\n\n') == (b"", False)
    assert not passing.failed


def test_what_other_decoders_read_ends_an_answer_too() -> None:
    passing = stream()
    end = b'data: {"type":"response.completed","response":{"output":"\\ud83d","usage":{"input_tokens":3}}}\n\n'
    assert passing.feed(DELTA + end) == (DELTA + end, True)
    assert (passing.done, passing.usage) == (True, Usage(3))


@pytest.mark.parametrize(
    ("rest", "passed"),
    [(COMPLETED[:-2], True), (COMPLETED[:-1], True), (LAST[:-2], True), (DELTA[:-2], False), (COMPLETED[:-9], False)],
)
def test_a_last_event_counts_without_its_empty_line_if_it_is_the_end(rest: bytes, *, passed: bool) -> None:
    passing = stream()
    assert passing.feed(DELTA + rest) == (DELTA, True)
    assert passing.end() == (rest if passed else b"")
    assert (passing.truncated, passing.malformed) == (not passed, 0)


def test_events_that_are_no_json_are_left_out() -> None:
    passing = stream()
    assert passing.feed(DELTA + b"data: {\n\n" + COMPLETED) == (DELTA + COMPLETED, True)
    assert passing.malformed == 1


ERRORS = [
    (event("error", code="server_error", message="no"), {"code": "server_error", "message": "no"}),
    (event("error", error={"message": "no"}), {"message": "no"}),
    (b'data: {"error": {"message": "no"}}\n\n', {"message": "no"}),
    (of_response("response.failed", error={"code": "server_error", "message": "\ud83d"}), None),
    (event("response.failed"), {"code": "response.failed"}),
]


@pytest.mark.parametrize(("failed", "error"), ERRORS)
def test_an_error_ends_what_passes(failed: bytes, error: object) -> None:
    passing = stream()
    assert passing.feed(DELTA + failed + DELTA) == (DELTA, True)
    assert (passing.failed, passing.truncated, passing.end()) == (True, False, b"")
    assert json.loads(passing.error)["error"] == (error or {"code": "server_error", "message": "\ud83d"})


@pytest.mark.parametrize("error", [b"{}", b'""', b"false", b"null"])
def test_an_empty_error_is_none(error: bytes) -> None:
    passing = stream()
    event = b'data: {"type":"response.output_text.delta","error":' + error + b"}\n\n"
    assert passing.feed(event) == (event, True)


def test_an_error_that_is_nested_as_deep_as_can_be_read_is_one() -> None:
    """To write it takes more of the stack than to read it."""
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
        passing = stream()
        passing.feed(b'data: {"error":{"a":' + nested(depth) + b"}}\n\n")
        assert (passing.failed, passing.malformed) in {(True, 0), (False, 1)}
        passing = stream()
        passing.feed(b'data: {"type":"response.completed","response":{"usage":' + nested(depth) + b"}}\n\n")
        assert (passing.done, passing.malformed) in {(True, 0), (False, 1)}
        assert passing.usage is None


def test_an_event_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.execution.responses._LONGEST", 100)
    passing = stream()
    assert passing.feed(b"data: " + b"x" * 94) == (b"", False)
    assert not passing.failed
    passing.feed(b"y")
    assert (passing.failed, b"longer than" in passing.error) == (True, True)


def test_the_last_words_are_an_event_of_this_kind() -> None:
    passing = stream()
    passing.feed(CREATED + DELTA + b"data: {}\n\n")
    name, data, *_ = passing.last_words({"message": "no", "code": "c", "param": None, "type": "t"}).split(b"\n")
    assert name == b"event: error"
    error = {"message": "no", "code": "c", "param": None, "type": "t"}
    assert json.loads(data.removeprefix(b"data: ")) == {**error, "type": "error", "sequence_number": 5, "error": error}


async def test_a_stream_is_relayed_and_counted(config: Config) -> None:
    async with ScriptedUpstream(GOOD) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.say(ask())
        assert (answer.status, answer.body) == (200, WHOLE)
        (asked,) = a.requests
        assert (asked.target, asked.json()) == (TARGET, {"model": "m", "input": "who are you?", "stream": True})
        told = await gate.outcome()
        assert (told.operation, told.usage, told.failure, told.stream) == ("responses", USAGE, None, True)


@pytest.mark.parametrize("error", [None, {}, ""])
async def test_a_whole_answer_is_counted(config: Config, error: object) -> None:
    output = [{"type": "message"}]
    body: dict[str, object] = {"status": "completed", "error": error, "output": output, "usage": SPENT}
    async with ScriptedUpstream([Send(json_answer(body))]) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.say(ask(stream=False))).json() == body
        assert (await gate.outcome()).usage == USAGE


TOO_LONG = {"code": "context_length_exceeded", "message": "no"}
SHOWN = of_response("response.created", tools="x" * (2 << 20))
FAILING: dict[str, tuple[Sequence[Step], str]] = {
    "an error in its place": (
        [Send(json_answer({"status": "failed", "error": {"code": "server_error"}}))],
        "error_answer",
    ),
    "no such path": ([Send(json_answer({"detail": "Not Found"}, 404))], "not_served"),
    "announced only": ([Send(sse_head() + chunk(OPENING) + last_chunk())], "cut_answer"),
    "silence": ([Send(sse_head() + chunk(OPENING)), SILENCE], "first_token_timeout"),
    "failed": ([Send(sse_head() + chunk(OPENING + ERRORS[3][0]) + last_chunk())], "error_answer"),
    "failed behind much that is shown": (
        [Send(sse_head() + chunk(SHOWN + ERRORS[3][0]) + last_chunk())],
        "error_answer",
    ),
    "too long": (
        [Send(sse_head() + chunk(event("error", **TOO_LONG)) + last_chunk())],
        "context_length",
    ),
}


@pytest.mark.parametrize(("steps", "failure"), FAILING.values(), ids=FAILING)
async def test_what_fails_before_its_content_is_asked_of_another(
    config: Config, steps: Sequence[Step], failure: str
) -> None:
    async with (
        ScriptedUpstream(steps) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}, timeouts={"first_token": RUNS_OUT}) as gate,
    ):
        answer = await gate.say(ask())
        assert (await gate.outcome()).attempts[0].failure == failure
        if failure == "context_length":
            assert (answer.status, answer.json()) == (400, {"error": TOO_LONG})
        else:
            assert (answer.status, answer.body) == (200, WHOLE)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("steps", "said", "failure"),
    [
        ([Reset()], "the upstream broke off in mid-stream", "cut_answer"),
        ([Send(last_chunk())], "the upstream broke off in mid-stream", "cut_answer"),
        (
            [Send(chunk(event("error", message="no GPU")))],
            "the upstream broke off in mid-stream: no GPU",
            "error_answer",
        ),
        ([SILENCE], "the upstream broke off in mid-stream", "stalled"),
    ],
)
async def test_what_breaks_after_it_is_not_carried_on(
    config: Config, steps: list[Step], said: str, failure: str, transport: Transport
) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(OPENING + DELTA)), *steps]) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}, timeouts={"idle": RUNS_OUT}, transport=transport) as gate,
    ):
        body, how = await gate.broken(ask())
        assert (body[: len(OPENING + DELTA)], how) == (OPENING + DELTA, "fin")
        name, data, *_ = body[len(OPENING + DELTA) :].split(b"\n")
        told = json.loads(data.removeprefix(b"data: "))
        assert (name, told["type"], told["code"]) == (b"event: error", "error", "stream_broken")
        assert (told["sequence_number"], told["message"], told["error"]["message"]) == (5, said, said)
        outcome = await gate.outcome()
        assert (outcome.failure, outcome.rescue, b.requests) == (failure, None, [])


@pytest.mark.parametrize("before", [OPENING, OPENING + DELTA])
async def test_our_key_in_an_error_is_masked(config: Config, before: bytes) -> None:
    failed = of_response("response.failed", error={"code": "server_error", "message": "no GPU for sk-canary-0123"})
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(before + failed) + last_chunk())]) as a,
        running(config, {"m": {"a": {"base_url": a.url, "api_key": "sk-canary-0123"}}}) as gate,
        gate.client() as client,
    ):
        await client.send(ask().replace(b"HTTP/1.1", b"HTTP/1.1\r\nConnection: close"))
        told = await client.read_to_end()
        assert (b"no GPU for ***" in told, b"sk-canary" in told) == (True, False)
        await gate.outcome()
        assert "GPU" not in json.dumps(await gate.log())


async def test_a_complete_stream_that_is_left_open_is_ended(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(WHOLE)), SILENCE]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.say(ask())
        assert (answer.status, answer.body, (await gate.outcome()).failure) == (200, WHOLE, None)


async def test_who_leaves_after_its_end_has_it(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(WHOLE)), Hang()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask())
        await client.read_until(COMPLETED)
        await client.close()
        assert (await gate.outcome()).failure is None
        await a.closed_by_peer()
