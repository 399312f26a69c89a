"""How a request's body may arrive, and how much of it."""

import asyncio
import json

import pytest
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.adapters.openai_compatible import Operation
from gateway.api.body import Limits, peek_body
from gateway.api.openai import Asked
from tests.execution.support import CHAT, ask, chain, error_of, running
from tests.fakes.answers import sse_answer
from tests.fakes.client import RawClient, get, post
from tests.fakes.connection import PATIENCE
from tests.fakes.upstream import ScriptedUpstream, Send, chunk, json_answer, last_chunk, refused_url
from tests.running import Config, until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"
NOWHERE = {"m": chain(refused_url())}
MIB = 1 << 20
JOINED = 1 << 16


def body_of(size: int) -> bytes:
    """Write a body of exactly so many bytes."""
    return json.dumps({"model": "m", "x": ""})[:-2].encode().ljust(size - 2, b"x") + b'"}'


@pytest.mark.parametrize("size", [JOINED, JOINED + 1, MIB, MIB + 1, 5 * MIB, 32 * MIB])
async def test_a_large_body_passes_whole(config: Config, size: int) -> None:
    body = body_of(size)
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.say(HEAD + b"content-length: %d\r\n\r\n%b" % (size, body))
        assert answer.status == 200
        assert a.requests[0].body == body


@pytest.mark.parametrize("size", [100_000, MIB])
async def test_a_large_body_is_sent_with_what_is_written_into_it(config: Config, size: int) -> None:
    text = "x" * size
    body = json.dumps({"model": "m", "stream": True, "x": text}).encode()
    async with ScriptedUpstream([Send(sse_answer('{"choices":[{"delta":{"content":"hi"}}]}', "[DONE]"))]) as a:
        named = {"base_url": a.url, "provider_model_id": "their-m", "weight": 0}
        async with running(config, {"m": {"a": {"base_url": refused_url()}, "b": named}}) as gate:
            answer = await gate.say(HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body))
            assert (answer.status, answer.head.get("x-gateway-attempts")) == (200, "2")
            passed = a.requests[0]
            added = {"stream_options": {"include_usage": True}}
            assert json.loads(passed.body) == {"model": "their-m", "stream": True, "x": text, **added}
            assert passed.values("content-length") == [str(len(passed.body))]


@pytest.mark.parametrize("size", [100_000, 5 * MIB])
async def test_a_large_body_may_begin_slowly(config: Config, size: int) -> None:
    body = body_of(size)
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(HEAD + b"content-length: %d\r\n\r\n%b" % (size, body[:1]))
        await until(lambda: gate.gateway.active == 1)
        await client.send(body[1 : size // 4])
        await client.send(body[size // 4 :])
        assert (await client.read_answer()).status == 200
        assert a.requests[0].body == body


async def test_a_chunked_body_passes_with_a_length(config: Config) -> None:
    body = body_of(1000)
    pieces = b"".join(chunk(body[place : place + 7]) for place in range(0, 1000, 7))
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}, limits=Limits(body=1000)) as gate,
    ):
        assert (await gate.say(HEAD + b"transfer-encoding: chunked\r\n\r\n" + pieces + last_chunk())).status == 200
        assert (a.requests[0].body, a.requests[0].values("content-length")) == (body, ["1000"])


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"content-length: %d\r\n\r\n" % (32 * MIB + 1), 32 * MIB),
        (b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % (32 * MIB + 1), 32 * MIB),
        (b"content-length: 1001\r\n\r\n" + body_of(1001), 1000),
        (b"transfer-encoding: chunked\r\n\r\n" + chunk(body_of(1001)) + last_chunk(), 1000),
        (b"transfer-encoding: chunked\r\n\r\n" + chunk(b"x" * 1000) + chunk(b"y"), 1000),
    ],
)
async def test_a_larger_body_is_refused(config: Config, data: bytes, limit: int) -> None:
    async with running(config, NOWHERE, limits=Limits(body=limit)) as gate:
        answer = await gate.say(HEAD + data)
        error = error_of(answer)
        assert (answer.status, error["code"]) == (413, "request_too_large")
        assert error["message"] == f"the body is larger than {limit} bytes"
        assert answer.head.get("connection") == (None if b"1001\r\n\r\n" in data or b"0\r\n\r\n" in data else "close")
        assert (await gate.outcome()).status == 413


@pytest.mark.parametrize(
    "data",
    [b"content-length: 13\r\n\r\n{", b"content-length: 13\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"],
)
async def test_a_body_that_stalls_is_given_up(config: Config, data: bytes) -> None:
    async with running(config, NOWHERE, limits=Limits(stall=0.02)) as gate:
        answer = await gate.say(HEAD + data)
        assert (answer.status, error_of(answer)["code"]) == (408, "request_timeout")
        assert answer.head.get("connection") == "close"
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure) == (408, "request_timeout")
        assert 10 < outcome.duration < 1000 * PATIENCE


async def test_a_body_gets_more_time_the_more_has_come(config: Config) -> None:
    body = body_of(MIB)
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}, limits=Limits(stall=0.1)) as gate,
        gate.client() as client,
    ):
        await client.send(HEAD + b"content-length: %d\r\n\r\n%b" % (MIB, body[:-1]))
        await asyncio.sleep(0.3)
        await client.send(body[-1:])
        assert (await client.read_answer()).status == 200


async def continued(client: RawClient, version: bytes = b"1.1", expect: bytes = b"100-Continue") -> list[int]:
    body = b'{"model":"m"}'
    head = HEAD.replace(b"1.1", version) + b"content-length: %d\r\nexpect: %b\r\n\r\n" % (len(body), expect)
    await client.send(head + (b"" if version == b"1.1" else body))
    heads = [(await client.read_head()).status]
    if heads == [100]:
        await client.send(body)
        heads.append((await client.read_head()).status)
    return heads


async def test_a_client_may_ask_before_it_sends(config: Config) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        async with gate.client() as client:
            assert await continued(client) == [100, 200]
        async with gate.client() as client:
            assert await continued(client, version=b"1.0") == [200]
        assert [request.values("expect") for request in a.requests] == [[], []]


@pytest.mark.parametrize("target", [CHAT, "/nowhere", "/health"])
async def test_another_expectation_is_refused(config: Config, target: str) -> None:
    async with running(config, NOWHERE) as gate:
        answer = await gate.say(post(target, {"model": "m"}, [("expect", "canary")]))
        assert (answer.status, error_of(answer)["message"]) == (417, "expectation failed")
        assert b"canary" not in answer.head.raw + answer.body
        assert answer.head.get("x-request-id")


async def test_a_request_without_a_body_is_no_error_of_framing(config: Config) -> None:
    async with running(config, NOWHERE) as gate, gate.client() as client:
        await client.send(HEAD + b"\r\n" + get("/health"))
        assert (await client.read_answer()).status == 400
        assert (await client.read_answer()).status == 200
        await client.send(ask())
        assert (await client.read_answer()).status == 502


@pytest.mark.parametrize(
    ("body", "operation", "adds"),
    [
        (b'{"model":"m","stream":true}', "chat/completions", True),
        (b'{"model":"m","stream":true}', "completions", True),
        (b'{"model":"m","stream":true}', "embeddings", False),
        (b'{"model":"m","stream":false}', "chat/completions", False),
        (b'{"model":"m","stream":null}', "chat/completions", False),
        (b'{"model":"m"}', "chat/completions", False),
        (b'{"model":"m","stream":true,"messages":[{"stream_options":{}}]}', "chat/completions", True),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', "chat/completions", False),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":false}}', "chat/completions", False),
        (b'{"model":"m","stream":true,"stream_options":{}}', "chat/completions", False),
        (b'{"model":"m","stream":true,"stream_options":null}', "chat/completions", False),
        (b'{"model":"m","stream":true,"stream_options":1}', "completions", False),
        (rb'{"model":"m","stream":true,"stream\u005foptions":{}}', "chat/completions", False),
    ],
)
def test_usage_is_added_where_a_stream_does_not_speak_of_it(body: bytes, operation: Operation, *, adds: bool) -> None:
    assert peek_body(body).adds_usage(operation) == adds


def test_a_request_shows_neither_its_key_nor_what_it_says() -> None:
    """It showed both in its repr, and so in any log that ever names one."""
    fields = CIMultiDictProxy(CIMultiDict({"Authorization": "Bearer sk-secret"}))
    shown = repr(Asked("embeddings", "r-1", fields, EMPTY_PAYLOAD, body=b"private"))
    assert "r-1" in shown
    assert "sk-secret" not in shown
    assert "private" not in shown


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        (b"", 1),
        (b', "n": null', 1),
        (b', "n": 1', 1),
        (b', "n": 4', 4),
        (b', "n": 0', 0),
        (b', "n": 1e3', 0),
        (b', "n": "2"', 0),
        (b', "n": 99999999999999999999', 0),
        (b', "prompt": "[a"', 1),
        (b', "prompt": ["a", "b"], "n": 2', 4),
        (b', "prompt": ["a"]', 1),
        (b', "prompt": [1, 2, 3]', 1),
        (b', "prompt": [[1], [2, 3]]', 2),
        (b', "prompt": []', 0),
    ],
)
def test_how_many_choices_a_stream_will_have_is_read(fields: bytes, choices: int) -> None:
    assert peek_body(b'{"model": "m"%b}' % fields).choices == choices
