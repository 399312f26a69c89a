"""An upstream's own error on its way to the client."""

import gzip
import json
from typing import Any

import pytest

from tests.execution.support import CONTENT, DONE, ask, chain, error_of, running
from tests.fakes.upstream import (
    Hang,
    ScriptedUpstream,
    Send,
    chunk,
    json_answer,
    last_chunk,
    sse,
    sse_head,
    status,
)
from tests.running import Config

KEY = 'sk-canary/+"0123456789'


def keyed(url: str) -> dict[str, Any]:
    return {"a": {"base_url": url, "api_key": KEY}}


async def test_our_key_is_masked_in_an_upstreams_error(config: Config) -> None:
    spellings = [KEY, json.dumps(KEY)[1:-1], json.dumps(KEY)[1:-1].replace("/", "\\/"), "sk-canary%2F%2B%220123456789"]
    body = " ".join(spellings).encode()
    async with (
        ScriptedUpstream([Send(status(400, "No", body, [("content-type", "text/plain")]))]) as a,
        running(config, {"m": keyed(a.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.body) == (400, b"*** *** *** ***")
        assert answer.head.get("content-type") == "text/plain"
        assert a.requests[0].values("authorization") == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (r"sk-canary/\u002B\u00220123456789", "***"),  # System.Text.Json
        (r"sk-canary\/\u002b\"0123456789", "***"),
        (r"\u0073k-canary/+\"012345678\u0039", "***"),
        (r"sk-canary/\u002C\u00220123456789", r"sk-canary/\u002C\u00220123456789"),
        (r"sk-canary/\U002B\u00220123456789", r"sk-canary/\U002B\u00220123456789"),
    ],
)
async def test_our_key_is_masked_however_json_escapes_it(config: Config, said: str, passed: str) -> None:
    body = f'{{"error": {{"message": "bad key {said}"}}}}'
    async with (
        ScriptedUpstream([Send(status(400, "No", body.encode()))]) as a,
        running(config, {"m": keyed(a.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.body) == (400, body.replace(said, passed).encode())


@pytest.mark.parametrize(("key", "passed"), [("four", "*** ***"), ("one", r"one \u006fne")])
async def test_a_key_that_is_part_of_many_words_is_not_masked(config: Config, key: str, passed: str) -> None:
    body = f"{key} \\u{ord(key[0]):04x}{key[1:]}".encode()
    async with (
        ScriptedUpstream([Send(status(400, "No", body, [("x-ratelimit-reset-tokens", key)]))]) as a,
        running(config, {"m": {"a": {"base_url": a.url, "api_key": key}}}) as gate,
    ):
        answer = await gate.post("m")
        assert answer.body == passed.encode()
        assert answer.head.get("x-ratelimit-reset-tokens") == (None if "*" in passed else key)


def event(data: object) -> bytes:
    return sse_head() + chunk(sse(json.dumps(data)) + DONE) + last_chunk()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (json_answer({"error": {"message": f"no memory for {KEY}"}}, 500), "no memory for ***"),
        (json_answer({"error": "model requires\n more system memory "}, 500), "model requires more system memory"),
        (json_answer({"object": "error", "message": "the engine died"}, 500), "the engine died"),
        (json_answer({"detail": "overloaded"}, 503), "overloaded"),
        (json_answer({"error": {"message": "x" * 300}}, 502), "x" * 300),
        (json_answer({"error": {"message": "x" * 301}}, 502), "x" * 300 + "..."),
        (json_answer({"error": {"message": f"no memory for {KEY}"}}), "no memory for ***"),
        (event({"error": {"message": f"no memory for {KEY}", "code": 500}}), "no memory for ***"),
        (json_answer({"error": {"message": json.dumps({"error": f"key {KEY}"})}}, 500), '{"error": "key ***"}'),
        (json_answer({"error": {"message": "no key", "code": 401}}), None),
        (json_answer({"error": {"message": "no key sk-***9", "code": "invalid_api_key"}}, 500), None),
        (json_answer({"error": {"message": "no key", "type": "authentication_error"}}, 503), None),
        (json_answer({"object": "error", "message": "no key", "type": "x", "code": 401}, 500), None),
        (json_answer({"error": {"message": "no memory", "type": "server_error", "code": None}}, 500), "no memory"),
        (json_answer({"error": {"message": "no money", "code": "403"}}), None),
        (json_answer({"choices": [{"finish_reason": "error"}]}), None),
        (json_answer({"choices": [{"error": {"message": "the provider is gone"}}]}), "the provider is gone"),
        (status(200, "OK", b'{"error": "no", "choices": [ ]}', [("content-type", "application/json")]), "no"),
        (json_answer({"error": {"message": 5}, "message": None}, 500), None),
        (json_answer([KEY], 500), None),
        (status(500, "No", KEY.encode()), None),
        (status(500, "No", b'{"error": "n\xf6"}'), None),
        (status(500, "No", gzip.compress(KEY.encode()), [("content-encoding", "gzip")]), None),
        (json_answer({"error": {"message": "no key"}}, 401), None),
    ],
)
async def test_what_an_upstream_says_of_its_failure_is_told_to_the_client_alone(
    config: Config, answer: bytes, said: str | None
) -> None:
    """It may quote the prompt: the log has none of it."""
    async with ScriptedUpstream([Send(answer)]) as a, running(config, {"m": keyed(a.url)}) as gate:
        told = await gate.say(ask(stream=True))
        message = error_of(told)["message"]
        tries = "2 attempts made; one said: " if len(a.requests) > 1 else "1 attempt made; it said: "
        assert message.partition("answered, ")[2] == (tries + said if said else tries.partition(";")[0])
        await gate.outcome()
        assert (said or KEY) not in json.dumps(await gate.log())


async def test_what_is_said_of_a_break_is_told_to_the_client_alone(config: Config) -> None:
    """One that was asked to take over says it of itself, and knows another key."""
    failed = sse(json.dumps({"error": {"message": f"lost {KEY}"}}))
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT + failed) + last_chunk())]) as a,
        ScriptedUpstream([Send(json_answer({"error": {"message": f"lost {KEY}"}}))]) as b,
        running(config, {"m": keyed(a.url) | {"b": {"base_url": b.url, "api_key": KEY + "b"}}}) as gate,
    ):
        body, _ = await gate.broken(ask(stream=True))
        assert b"broke off in mid-stream: lost ***" in body
        assert KEY.encode() not in body
        await gate.outcome()
        assert "lost" not in json.dumps(await gate.log()).replace("lost_", "")


@pytest.mark.parametrize("headers", [[("content-encoding", "gzip")], []])
async def test_an_error_that_cannot_be_read_is_withheld(config: Config, headers: list[tuple[str, str]]) -> None:
    body = gzip.compress(KEY.encode()) if headers else KEY.encode() + b"x" * (1 << 20)
    async with (
        ScriptedUpstream([Send(status(400, "No", body, [*headers, ("retry-after", "3")]))]) as a,
        running(config, {"m": keyed(a.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"]) == (400, "error_withheld")
        assert (answer.head.get("content-encoding"), answer.head.get("retry-after")) == (None, "3")


async def test_an_error_that_stalls_is_given_up(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.execution.opening._REFUSAL_SECONDS", 0.01)
    steps = [Send(b"HTTP/1.1 400 No\r\ncontent-length: 9\r\n\r\nab"), Hang()]
    async with ScriptedUpstream(steps) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.post("m")).status == 502
        assert await gate.failures() == ["cut_answer"]
        await a.closed_by_peer()
