"""Each request of `cases` is refused or neutralised: the upstream sees nothing extra, and nobody repeats CANARY."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

import gateway
from gateway.api.body import Limits
from gateway.execution.upstream import USER_AGENT
from tests.execution.support import Running, error_of, running
from tests.fakes.client import RawClient, get, post
from tests.fakes.connection import Cut
from tests.fakes.upstream import Pause, ScriptedUpstream, Send, json_answer
from tests.running import Config, until
from tests.wire.cases import (
    BODY,
    CLOSED,
    KEPT,
    LAST,
    LINE,
    MALFORMED,
    NEUTRAL,
    SMUGGLED,
    chunked,
    request,
)

OK = {"ok": True}
KEY = "sk-ours-0123456789"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream([Send(json_answer(OK))]) as a:
        yield a


@pytest.fixture
async def gate(config: Config, upstream: ScriptedUpstream) -> AsyncIterator[Running]:
    """A gateway that still serves after the test, and has repeated nothing."""
    route = {"a": {"base_url": upstream.url, "api_key": KEY}}
    async with running(config, {"m": route}, limits=Limits(body=1000)) as gate:
        yield gate
        assert (await gate.say(request())).json() == OK
        assert {record["level"] for record in await gate.log()} == {"info"}
        passed = b"".join(upstream.received(number + 1) for number in range(upstream.connections))
        told = passed + config.log.read_bytes()
        assert [word for word in (b"CANARY", b"evil") if word in told] == []
        assert upstream.leftover == []


@pytest.fixture
async def client(gate: Running) -> AsyncIterator[RawClient]:
    """A client that hears none of what it may not."""
    async with gate.client() as client:
        yield client
    assert [word for word in (b"CANARY", b"evil") if word in client.raw] == []


@pytest.mark.parametrize(("size", "code"), [(30_000, 200), (40_000, 431)])
async def test_a_field_may_be_as_long_as_the_cookies_of_a_browser(client: RawClient, size: int, code: int) -> None:
    """One of more than 8,190 bytes was called malformed."""
    await client.send(request(b"Cookie: " + b"x" * size))
    answer = await client.read_answer()
    assert answer.status == code
    if code != 200:
        assert (error_of(answer)["code"], await client.read_to_end()) == ("head_too_large", b"")


@pytest.mark.parametrize(("parts", "code"), [(4_000, 404), (4_100, 431)])
async def test_a_path_has_an_end(client: RawClient, parts: int, code: int) -> None:
    """To find nothing at one of 32 KiB, each beginning of which is looked for, held up the loop for 80 ms."""
    await client.send(b"GET " + b"/a" * parts + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.read_answer()).status == code


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_not_http_is_refused(client: RawClient, upstream: ScriptedUpstream, name: str) -> None:
    await client.send(MALFORMED[name] + request())
    answer = await client.read_answer()
    code = (431, "head_too_large") if "100 KB" in name else (400, "malformed_request")
    assert (answer.status, error_of(answer)["code"]) == code
    assert answer.head.values("server") == ["hybrid-inference-gateway"]
    assert len(answer.head.get("x-request-id") or "") == 32
    assert await client.read_to_end() == b""
    assert upstream.connections == 0


@pytest.mark.parametrize("name", CLOSED)
async def test_what_is_not_our_http_is_refused(client: RawClient, upstream: ScriptedUpstream, name: str) -> None:
    """Answers used to be in the version of the request, and some connections to be kept."""
    status, data = CLOSED[name]
    await client.send(data)
    answer = await client.read_answer()
    assert (answer.status, error_of(answer)["type"]) == (status, "invalid_request_error")
    assert answer.head.version == ("HTTP/1.0" if b"HTTP/1.0" in data else "HTTP/1.1")
    assert await client.read_to_end() == b""
    assert upstream.connections == 0


@pytest.mark.parametrize("name", KEPT)
async def test_what_is_not_for_us_is_refused(client: RawClient, upstream: ScriptedUpstream, name: str) -> None:
    status, data = KEPT[name]
    await client.send(data + request())
    answer = await client.read_answer()
    assert (answer.status, error_of(answer)["type"]) == (status, "invalid_request_error")
    assert (await client.read_answer()).json() == OK
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("name", NEUTRAL)
async def test_what_is_odd_is_neutralised(client: RawClient, upstream: ScriptedUpstream, name: str) -> None:
    await client.send(NEUTRAL[name] + request())
    assert [(await client.read_answer()).json() for _ in range(2)] == [OK, OK]
    assert len(upstream.requests) == 2
    check_passed(upstream)


@pytest.mark.parametrize("name", LAST)
async def test_what_ends_a_connection_is_answered_once(
    client: RawClient, upstream: ScriptedUpstream, name: str
) -> None:
    """What follows an upgrade used to be lost, so that a part of it could be taken for a request."""
    await client.send(LAST[name])
    answer = await client.read_answer()
    assert (answer.json(), answer.head.version) == (OK, "HTTP/1.0" if b"/1.0\r\n" in LAST[name] else "HTTP/1.1")
    assert await client.read_to_end() == b""
    check_passed(upstream)


def check_passed(upstream: ScriptedUpstream) -> None:
    """Check the first request, to the last field."""
    passed = upstream.requests[0]
    assert passed.head.startswith(LINE)
    assert passed.body == BODY
    fields = {name.lower(): value for name, value in passed.headers}
    assert len(fields) == len(passed.headers)
    assert len(fields.pop("x-request-id")) == 32
    assert re.fullmatch(r"1\.1 hybrid-inference-gateway-[0-9a-f]{8}", fields.pop("via"))
    assert fields == {
        "host": upstream.url.removeprefix("http://"),
        "user-agent": USER_AGENT,
        "accept": "*/*",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("pieces", [1, 50])
@pytest.mark.parametrize("name", SMUGGLED)
async def test_no_request_is_found_inside_another(
    client: RawClient, upstream: ScriptedUpstream, name: str, pieces: int
) -> None:
    """The body of CONNECT used to be, and what followed a coding that is refused."""
    data = SMUGGLED[name]
    size = -(-len(data) // pieces)
    last = get("/health", [("x-request-id", "last"), ("connection", "close")])
    with suppress(ConnectionResetError):
        for start in range(0, len(data), size):
            await client.send(data[start : start + size])
            await asyncio.sleep(0)
        await client.send(last)
    statuses = []
    with suppress(Cut):
        while (answer := await client.read_answer()).head.get("x-request-id") != "last":
            statuses.append(answer.status)
    assert len(statuses) == 1
    assert upstream.connections == 0


BROKEN = {name: data[len(chunked(b"")) :] for name, data in MALFORMED.items() if data.startswith(chunked(b""))}


@pytest.mark.parametrize("chunks", BROKEN.values(), ids=BROKEN)
async def test_a_body_that_breaks_later_is_refused_once(
    gate: Running, client: RawClient, upstream: ScriptedUpstream, chunks: bytes
) -> None:
    """A reader that was woken by the bytes before the break used to wait for the next ones."""
    await client.send(chunked(b"1\r\n" + BODY[:1]))
    await until(lambda: gate.gateway.active)
    await client.send(b"\r\n" + chunks)
    answer = await client.read_answer()
    assert (answer.status, error_of(answer)["code"]) == (400, "invalid_body")
    assert await client.read_to_end() == b""
    assert (await gate.outcome()).failure == "invalid_body"
    assert upstream.connections == 0


async def test_a_chunk_larger_than_any_memory_is_not_waited_for(client: RawClient, upstream: ScriptedUpstream) -> None:
    await client.send(chunked(b"f" * 16 + b"\r\n" + b" " * 1001))
    answer = await client.read_answer()
    assert (answer.status, error_of(answer)["code"]) == (413, "request_too_large")
    assert upstream.connections == 0


@pytest.mark.parametrize(
    ("fields", "status"), [([b"Expect: CANARY"], 417), ([b"Expect: 100-continue", b"Content-Encoding: gzip"], 415)]
)
async def test_a_body_that_is_refused_unseen_is_not_waited_for(
    client: RawClient, upstream: ScriptedUpstream, fields: list[bytes], status: int
) -> None:
    """After 417 the connection used to be kept: what came next was taken for the body."""
    await client.send(request(*fields, body=b""))
    answer = await client.read_answer()
    assert (answer.status, answer.head.get("connection")) == (status, "close")
    with suppress(ConnectionResetError):
        await client.send(request())
    assert await client.read_to_end() == b""
    assert upstream.connections == 0


async def test_requests_may_come_all_at_once(client: RawClient, upstream: ScriptedUpstream) -> None:
    await client.send((request() + get("/health") + chunked()) * 30)
    for _ in range(30):
        assert (await client.read_answer()).json() == OK
        assert (await client.read_answer()).json()["status"] == "ok"
        assert (await client.read_answer()).json() == OK
    assert [passed.body for passed in upstream.requests] == [BODY] * 60


@pytest.mark.parametrize("data", [request(), chunked()])
async def test_requests_may_come_byte_by_byte(client: RawClient, upstream: ScriptedUpstream, data: bytes) -> None:
    for byte in data + data:
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert [(await client.read_answer()).json() for _ in range(2)] == [OK, OK]
    assert [passed.body for passed in upstream.requests] == [BODY] * 2


async def test_a_line_that_is_never_followed_up_disturbs_nobody(client: RawClient, upstream: ScriptedUpstream) -> None:
    await client.send(b"GET /CANARY\r\n")
    client.half_close()
    assert (await client.read_to_end(), client.ended) == (b"", "fin")
    assert upstream.connections == 0


async def test_nothing_is_read_after_a_malformed_request(client: RawClient, upstream: ScriptedUpstream) -> None:
    await client.send(request())
    assert (await client.read_answer()).status == 200
    await client.send(b"CANARY\r\n\r\n" + request())
    assert (await client.read_answer()).status == 400
    assert await client.read_to_end() == b""
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("behind", [request(), b"CANARY\r\n\r\n"])
async def test_nothing_is_read_after_the_last_request(config: Config, behind: bytes) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Pause(go_on), Send(json_answer(OK))]) as a,
        running(config, {"m": {"a": a.url}}) as gate,
        gate.client() as client,
    ):
        await client.send(request(b"Connection: close"))
        await a.arrived()
        await client.send(behind)
        go_on.set()
        answer = await client.read_answer()
        assert (answer.json(), answer.head.get("connection")) == (OK, "close")
        await client.read_to_end()
        assert (len(a.requests), b"HTTP/1.1 200" in client.raw) == (1, True)
        assert b"CANARY" not in client.raw + (config.log.read_bytes() if await gate.log() else b"")


RETURNED = {
    "content-encoding": "content-encoding",
    "openai-processing-ms": "-processing-ms",
    "openai-version": "openai-version",
    "ratelimit-policy": "ratelimit",
    "retry-after": "retry-after",
    "retry-after-ms": "retry-after-ms",
    "x-ratelimit-limit": "x-ratelimit-",
    "x-should-retry": "x-should-retry",
}
"""Header fields of an answer that come back, and how docs/configuration.md names them."""


async def test_only_those_header_fields_pass_that_are_told(config: Config) -> None:
    page = (Path(gateway.__file__).parents[1] / "docs" / "configuration.md").read_text()
    section = page.partition("### What is sent, and what comes back\n")[2].partition("\n## ")[0]
    sent, _, returned = section.partition("The client gets")
    fields = {name for row in re.findall(r"^\| (`.+?) \|", sent, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)}
    evil = ("authorization", "cookie", "x-api-key", "x-forwarded-for", "user-agent", "openai-organization")
    asked = [*((name, "evil") for name in evil), ("traceparent", "00-1-2-01"), ("tracestate", "a=1")]
    kept_back = ("set-cookie", "server", "x-other", "content-language", "location")
    said = [*((name, "identity") for name in RETURNED), *((name, "evil") for name in kept_back)]
    async with (
        ScriptedUpstream([Send(json_answer(OK, headers=said))]) as a,
        running(config, {"m": {"a": {"base_url": a.url, "api_key": KEY}}}) as gate,
    ):
        answer = await gate.say(post("/v1/chat/completions", {"model": "m"}, asked))
        assert {name.lower() for name, _ in a.requests[0].headers} == fields
        assert (b"evil" in a.received(1), b"evil" in answer.head.raw) == (False, False)
    names = set(re.findall(r"`([a-z-]+)`", returned))
    added = {name for name in names if name.startswith("x-gateway-")} | {"x-request-id"}
    assert names == {"content-type", *RETURNED.values(), *added}
    got = {name.lower() for name, _ in answer.head.headers}
    assert got == {"content-type", *RETURNED, *added, "content-length", "date", "server"}
