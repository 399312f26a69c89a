"""What passes of the header fields, both ways, and of the request's body and place."""

import json

import pytest

from tests.execution.support import CHAT, chain, running
from tests.fakes.client import post
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer
from tests.running import Config

HEADERS = [
    ("Authorization", "Bearer client-key"),
    ("Cookie", "session=client"),
    ("X-Api-Key", "client-key"),
    ("X-Forwarded-For", "10.0.0.1"),
    ("Forwarded", "for=10.0.0.1"),
    ("Via", "1.1 somewhere"),
    ("Connection", "keep-alive, x-private"),
    ("X-Private", "1"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Proxy-Authorization", "Basic eA=="),
    ("OpenAI-Organization", "org-client"),
    ("User-Agent", "client/1"),
    ("Accept", "text/event-stream"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=b"),
    ("x-request-id", "req-1"),
]


async def test_only_named_fields_pass_to_the_upstream(config: Config) -> None:
    route = {"a": {"base_url": "", "api_key": "sk-ours-123456"}}
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        route["a"]["base_url"] = a.url
        async with running(config, {"m": route}) as gate:
            assert (await gate.post("m", headers=HEADERS)).status == 200
        (request,) = a.requests
        assert {name.lower(): value for name, value in request.headers} == {
            "host": a.url.removeprefix("http://"),
            "content-type": "application/json",
            "content-length": str(len(request.body)),
            "authorization": "Bearer sk-ours-123456",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "a=b",
            "x-request-id": "req-1",
            "via": request.values("via")[0],
            "user-agent": request.values("user-agent")[0],
        }
        assert request.values("user-agent")[0].startswith("hybrid-inference-gateway/")
        assert (request.target, request.values("x-request-id")) == (CHAT, ["req-1"])


async def test_a_field_that_is_not_plain_text_does_not_pass(config: Config) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.post("m", headers=[("tracestate", "a=\xe9"), ("accept", "*/*")])).status == 200
        assert a.requests[0].values("tracestate") == []


RETURNED = {
    "content-type": "application/json; charset=utf-8",
    "retry-after": "3",
    "retry-after-ms": "3000",
    "x-should-retry": "false",
    "x-ratelimit-remaining-tokens": "9",
    "ratelimit-policy": "1;w=1",
    "openai-processing-ms": "42",
    "openai-version": "2020-10-01",
}
KEPT_BACK = {
    "server": "uvicorn",
    "set-cookie": "session=upstream",
    "via": "1.1 upstream",
    "connection": "keep-alive, x-hop",
    "x-hop": "1",
    "keep-alive": "timeout=5",
    "alt-svc": "h3",
    "openai-organization": "ours",
    "x-request-id": "upstreams-own",
    "x-gateway-deployment": "liar",
    "access-control-allow-origin": "*",
    "x-ratelimit-bell": "a\x07b",
}


async def test_only_named_fields_pass_to_the_client(config: Config) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name, value in {**RETURNED, **KEPT_BACK}.items())
    async with (
        ScriptedUpstream([Send(f"HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\n{{}}".encode())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        head = (await gate.post("m", headers=[("x-request-id", "req-1")])).head
        assert {name.lower(): value for name, value in head.headers} == RETURNED | {
            "content-length": "2",
            "date": head.get("date"),
            "server": "hybrid-inference-gateway",
            "x-request-id": "req-1",
            "x-gateway-generation": "1",
            "x-gateway-deployment": "a",
            "x-gateway-attempts": "1",
        }
        assert len(head.headers) == len(RETURNED) + 7


async def test_a_renamed_model_leaves_every_other_byte(config: Config) -> None:
    body = b'{ "messages" : [ ],\t"model":\n"m" , "temperature":1.50,"x":"\\u00e4\xc3\xa4" }\r\n'
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        route = {"a": {"base_url": a.url, "provider_model_id": 'big "model"/ä'}}
        async with running(config, {"m": route}) as gate:
            request = post(CHAT, {}).replace(
                b"content-length: 2\r\n\r\n{}", b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert (await gate.say(request)).status == 200
        name = json.dumps('big "model"/ä', ensure_ascii=False).encode()
        assert a.requests[0].body == body.replace(b'"m"', name)


@pytest.mark.parametrize("operation", ["chat/completions", "completions", "embeddings"])
async def test_each_operation_has_its_place_upstream(config: Config, operation: str) -> None:
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(f"{a.url}/compat/v1/")}) as gate,
    ):
        assert (await gate.post("m", f"/v1/{operation}?api-version=1")).status == 200
        assert [request.target for request in a.requests] == [f"/compat/v1/{operation}"]
        assert (await gate.outcome()).operation == operation
