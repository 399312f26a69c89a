"""What is held back, so that failing over is still possible, and what is no answer at all."""

import asyncio
import json

import pytest

from gateway.execution.outcome import Usage
from gateway.execution.upstream import TRANSPORTS, Transport
from tests.execution.support import CONTENT, DONE, FINISH, ask, chain, error_of, running
from tests.fakes.upstream import (
    Close,
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
    status,
)
from tests.running import Config

ROLE = sse('{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
COMMENT = b": keep-alive\n\n"
NO_CHOICE = sse('{"choices":[]}')
NO_DELTA = sse('{"choices":[{"delta":{},"finish_reason":null}]}')
FAILED = sse('{"error":{"message":"out of memory","code":500}}')
WHOLE = CONTENT + FINISH + DONE
GOOD = [Send(sse_head() + chunk(WHOLE) + last_chunk())]
OK = {"choices": [{"message": {"content": "hi"}}]}


@pytest.mark.parametrize("end", [Close(), Reset(), Send(last_chunk())])
@pytest.mark.parametrize("held", [b"", COMMENT, ROLE, NO_CHOICE, NO_DELTA, sse("{"), COMMENT * 99 + ROLE, CONTENT[:-1]])
async def test_a_stream_that_ends_before_its_content_is_asked_for_elsewhere(
    config: Config, held: bytes, end: Step
) -> None:
    go_on = asyncio.Event()
    begun = [Send(sse_head() + (chunk(held) if held else b"")), Pause(go_on), end]
    async with (
        ScriptedUpstream(begun) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await a.arrived()
        assert client.raw == b""
        go_on.set()
        answer = await client.read_answer()
        assert (answer.status, answer.body) == (200, WHOLE)
        assert (answer.head.get("x-gateway-deployment"), answer.head.get("x-gateway-attempts")) == ("b", "2")
        told = "empty_answer" if not held and isinstance(end, Send) else "cut_answer"
        assert await gate.failures() == [told, None]
        assert (len(a.requests), len(b.requests)) == (1, 1)


@pytest.mark.parametrize("failed", [FAILED, b'error: {"code":500,"message":"out of memory"}\n\n'])
@pytest.mark.parametrize("before", [b"", COMMENT, ROLE])
async def test_an_error_as_the_first_event_is_a_failure(config: Config, before: bytes, failed: bytes) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(before + failed + DONE) + last_chunk())]) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.say(ask(stream=True))
        assert (answer.status, answer.body) == (200, WHOLE)
        assert (await gate.failures(), len(a.requests)) == (["error_answer", None], 1)


def streamed(event: bytes) -> bytes:
    return sse_head() + chunk(event + DONE) + last_chunk()


TOP_P: dict[str, object] = {
    "object": "error",
    "message": "top_p must be in (0, 1], got 0.0.",
    "type": "BadRequestError",
}
REJECTIONS = {
    "sglang": (400, TOP_P | {"code": 400}, streamed(sse(json.dumps({"error": TOP_P | {"code": 400}})))),
    "after a role": (400, TOP_P | {"code": 400}, streamed(ROLE + sse(json.dumps({"error": TOP_P | {"code": 400}})))),
    "a text": (422, {"code": "422"}, streamed(sse('{"error": {"code": "422"}}'))),
    "llama.cpp": (400, {"code": 400, "message": "no"}, streamed(b'error: {"code":400,"message":"no"}\n\n')),
    "a line that is no JSON": (
        400,
        {"message": 'the context size "is" exceeded'},
        streamed(b'error: the context size "is" exceeded\n\n'),
    ),
    "a body": (400, {"code": 400}, json_answer({"error": {"code": 400}})),
    "a choice": (400, {"code": 400}, json_answer({"choices": [{"finish_reason": "error", "error": {"code": 400}}]})),
    "a choice of a stream": (400, {"code": 400}, streamed(sse('{"choices":[{"delta":{},"error":{"code":400}}]}'))),
    "a prompt that is too long": (
        413,
        {"message": "longer than the model's context length", "code": 413},
        streamed(sse(json.dumps({"error": {"message": "longer than the model's context length", "code": 413}}))),
    ),
    "the same, without a code": (
        400,
        {"message": "greater than the context length"},
        streamed(sse('{"error": {"message": "greater than the context length"}}')),
    ),
}


@pytest.mark.parametrize(("code", "error", "answer"), REJECTIONS.values(), ids=REJECTIONS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_wrong_with_a_request_is_told_under_a_good_status_too(
    config: Config, code: int, error: dict[str, object], answer: bytes, transport: Transport
) -> None:
    """A row of them puts nothing out."""
    async with (
        ScriptedUpstream(lambda index, _: [Send(answer)] if index < 3 else GOOD) as a,
        ScriptedUpstream(lambda index, _: [Send(answer)] if index < 3 else GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}, transport=transport, breaker={"failures": 1}) as gate,
    ):
        for _ in range(3):
            told = await gate.say(ask(stream=True))
            assert (told.status, told.head.get("content-type")) == (code, "application/json")
            assert (told.json(), told.head.get("x-gateway-deployment")) == ({"error": error}, "a")
        served = await gate.say(ask(stream=True))
        assert (served.body, served.head.get("x-gateway-deployment")) == (WHOLE, "a")
        assert await gate.failures(4) == [None]
        failure = "context_length" if "context" in str(error) else "not_served"
        assert {each.failure for each in gate.outcomes[0].attempts} == {failure}


async def test_what_one_box_rejects_in_its_stream_another_may_not(config: Config) -> None:
    """As vLLM tells that its engine has died."""
    rejected = sse('{"error": {"message": "EngineCore encountered an issue.", "code": 400}}')
    async with (
        ScriptedUpstream([Send(streamed(rejected))]) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.say(ask(stream=True))
        assert (answer.status, answer.body, await gate.failures()) == (200, WHOLE, ["not_served", None])


async def test_a_key_in_an_error_event_is_masked(config: Config) -> None:
    event = sse('{"error": {"message": "not for sk-secret", "code": 400}}')
    async with (
        ScriptedUpstream([Send(streamed(event))]) as a,
        running(config, {"m": {"a": {"base_url": a.url, "api_key": "sk-secret"}}}) as gate,
    ):
        answer = await gate.say(ask(stream=True))
        assert answer.json() == {"error": {"message": "not for ***", "code": 400}}


@pytest.mark.parametrize("body", [ROLE + FINISH + DONE, DONE, COMMENT + DONE, FINISH + DONE, ROLE + FINISH + COMMENT])
async def test_a_stream_that_ends_well_without_content_is_an_answer(config: Config, body: bytes) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(body) + last_chunk())]) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.say(ask(stream=True))
        assert (answer.status, answer.body, b.requests) == (200, body.removesuffix(DONE) + DONE, [])
        assert await gate.failures() == [None]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_what_was_held_back_is_passed_on_whole(config: Config, size: int) -> None:
    body = "\ufeff".encode() + COMMENT * 9 + ROLE + sse("1") + WHOLE
    pieces = b"".join(chunk(body[place : place + size]) for place in range(0, len(body), size))
    async with (
        ScriptedUpstream([Send(sse_head() + pieces + last_chunk())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        assert (await gate.say(ask(stream=True))).body == body


@pytest.mark.parametrize("before", [(b": " + b"x" * 70_000 + b"\n\n") * 17, b": " + b"x" * (2 << 20) + b"\n\n"])
async def test_not_more_than_a_mib_is_held_back(config: Config, before: bytes) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(before)), Pause(go_on), Send(chunk(WHOLE) + last_chunk())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        head = await client.read_head()
        go_on.set()
        assert await client.read_body(head) == before + WHOLE


def typed(kind: str | None, body: bytes) -> bytes:
    return status(200, "OK", body, [] if kind is None else [("content-type", kind)])


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (typed("application/json", b""), "empty_answer"),
        (typed("application/json", b" \r\n"), "empty_answer"),
        (typed("application/json", json.dumps(OK).encode()[:-1]), "cut_answer"),
        (typed("application/json", b'{"choices": [{"message": {"content": "\xff"}}]}'), "cut_answer"),
        (typed("application/json", b'{"choices": [], "id": "\xff"}'), "cut_answer"),
        (typed("application/json", b'{"choices": ' + b"[" * 5000), "cut_answer"),
        (typed("application/json", b"[]"), "cut_answer"),
        (typed("application/json", b"no JSON"), "cut_answer"),
        (json_answer({"error": {"message": "out of memory"}}), "error_answer"),
        (json_answer({"error": "out of memory"}), "error_answer"),
        (json_answer({"error": {"code": 502}, "choices": [], "data": []}), "error_answer"),
        (typed("application/json", b'{"error": {}, "choices": [], "x": "\\ud83d"}'), "error_answer"),
        (json_answer({"choices": [{"finish_reason": "error", "message": {"content": "hal"}}]}), "error_answer"),
        (json_answer({"choices": [{"error": {"code": 502}}] * 2}), "error_answer"),
        (typed("text/html", b"<h1>It works!</h1>"), "wrong_content_type"),
        (typed("text/plain", json.dumps(OK).encode()), "wrong_content_type"),
        (typed(None, json.dumps(OK).encode()), "wrong_content_type"),
        (typed("json; x*", json.dumps(OK).encode()), "wrong_content_type"),
        (status(200, "OK", b"", [("content-type", "application/json"), ("content-encoding", "gzip")]), "empty_answer"),
    ],
)
async def test_a_body_that_is_no_answer_is_asked_for_elsewhere(config: Config, answer: bytes, failure: str) -> None:
    async with (
        ScriptedUpstream([Send(answer)]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url), "alone": chain(a.url)}) as gate,
    ):
        got = await gate.post("m")
        assert (got.status, got.json(), got.head.get("x-gateway-deployment")) == (200, OK, "b")
        assert (await gate.failures(), len(a.requests)) == ([failure, None], 1)
        alone = await gate.post("alone")
        assert (alone.status, error_of(alone)["code"]) == (502, "all_deployments_failed")
        assert (await gate.outcome(2)).failure == failure


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("text/html; charset=utf-8", "content-type text/html"),
        ("Image/SVG+XML", "content-type image/svg+xml"),
        ("text/sk-0123", "an unusual content-type"),
    ],
)
async def test_a_content_type_is_told_if_it_is_a_usual_one(config: Config, kind: str, told: str) -> None:
    """Any other was quoted, and could echo our key."""
    async with ScriptedUpstream([Send(typed(kind, b"x"))]) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.post("m")).status == 502
        assert (await gate.outcome()).attempts[0].detail == told


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", {"error": None, "choices": []}),
        ("application/json", {"error": {"code": 1}, "choices": [{}]}),
        ("application/json", {"error": {"code": 1}, "data": [{}]}),
        ("application/json", {"choices": [{"finish_reason": "stop", "error": None, "x": "error"}]}),
        ("application/json", {"choices": [{"finish_reason": "error"}, {"finish_reason": "stop"}]}),
        ("application/json", {"choices": [], "x": "error"}),
        ("application/json", {"choices": [{"finish_reason": "stop", "error": ""}]}),
        ("application/vnd.box+json; charset=utf-8", OK),
        ("application/json; charset*", OK),
        ("application/json", {"data": "x" * (3 << 20)}),
    ],
)
async def test_every_other_json_is_an_answer(config: Config, kind: str, body: object) -> None:
    raw = json.dumps(body).encode()
    async with (
        ScriptedUpstream([Send(typed(kind, raw))]) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.body, answer.head.get("content-type")) == (200, raw, kind)
        assert (answer.head.get("content-length"), b.requests) == (str(len(raw)), [])


@pytest.mark.parametrize("said", [b'"\\ud83d"', b"NaN", b"-Infinity", b"1e999", b"1" * 40])
async def test_json_that_clients_read_is_an_answer(config: Config, said: bytes) -> None:
    body = b'{"choices": [{"message": {"content": "hi"}, "said": ' + said + b'}], "usage": {"prompt_tokens": 3}}'
    failed = b'{"error": {"said": ' + said + b"}}"
    bodies = [typed("application/json", body), typed("application/json", failed)]
    async with (
        ScriptedUpstream(lambda index, _: [Send(bodies[index])]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.body, await gate.failures()) == (200, body, [None])
        assert (await gate.outcome()).usage == Usage(3)
        assert (await gate.post("m")).json() == OK
        assert await gate.failures(2) == ["error_answer", None]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_large_body_that_is_there_whole_is_looked_at(config: Config, transport: Transport) -> None:
    """One that ended just above what is held back was handed over unseen, cut short or not."""
    cut = status(200, "OK", b'{"choices": "' + b"x" * (1 << 20), [("content-type", "application/json")])
    async with (
        ScriptedUpstream([Send(cut)]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}, transport=transport) as gate,
    ):
        assert (await gate.say(ask())).json() == OK
        assert await gate.failures() == ["cut_answer", None]
