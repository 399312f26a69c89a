"""Requests and answers whose heads say what the last one said, between others, and however they are cut."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import pytest

from gateway.api.body import Limits
from gateway.execution.answer import AttemptFailedError
from gateway.execution.fields import Fields
from gateway.execution.heads import LastHead
from gateway.execution.upstream import TRANSPORTS, Call, Transport, Upstream
from gateway.routing.failures import Cause
from tests.execution.support import CHAT, Running, chain, deployment, error_of, running
from tests.fakes.client import Answer, RawClient, get, post
from tests.fakes.connection import Connection
from tests.fakes.upstream import (
    Close,
    Request,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
)
from tests.running import Config, until

BOTH = pytest.mark.parametrize("transport", TRANSPORTS)
CALL = Call("chat/completions", b'{"model": "m"}', Fields(()), "id")


@dataclass(frozen=True, slots=True)
class Pieces(Step):
    """Write bytes in parts, and let others run in between."""

    parts: Sequence[bytes]

    async def run(self, connection: Connection) -> None:
        for part in self.parts:
            await connection.write(part)
            await asyncio.sleep(0)


def cut(dice: Random, data: bytes) -> list[bytes]:
    """Cut at random places, or at none."""
    places = sorted(dice.randrange(len(data)) for _ in range(dice.choice((0, 0, 1, 2, 5))))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def said(text: str) -> bytes:
    return post(CHAT, {"model": "m", "user": text})


def chunked(text: str) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
    body = json.dumps({"model": "m", "user": text}).encode()
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunk(body) + last_chunk()


def requests(dice: Random, number: int) -> Iterator[tuple[bytes, str | None]]:
    """Give requests, each with what its answer says: nothing if it is not routed."""
    for each in range(number):
        text = f"n{each}" * dice.choice((1, 1, 1, 7, 300, 20_000))
        kinds = [
            (said(text), text),
            (said(text), text),
            (said(text), text),
            (post(CHAT, {"model": "m", "user": text}, [("x-other", "1")]), text),
            (post("/v1/completions", {"model": "m", "user": text}), text),
            (chunked(text), text),
            (post(CHAT, {"model": text[:9]}), None),
            (get("/v1/models"), None),
        ]
        yield dice.choice(kinds)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 6))])
@BOTH
async def test_each_request_has_its_answer_however_both_come(config: Config, transport: Transport, seed: int) -> None:
    dice = Random(seed)  # noqa: S311 - for bytes

    def echo(_: int, request: Request) -> list[Step]:
        answer = json_answer({"said": request.json()["user"], "tail": "x" * dice.choice((0, 9, 5000))})
        if dice.random() < 0.2:
            body = answer.partition(b"\r\n\r\n")[2]
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            answer = head + chunk(body) + last_chunk()
        return [Pieces(cut(dice, answer))]

    async with ScriptedUpstream(echo) as a, running(config, {"m": chain(a.url)}, transport=transport) as gate:
        for _ in range(20):
            async with gate.client() as client:
                batches: list[list[tuple[bytes, str | None]]] = [[(said(text), text)] for text in ("1", "22", "333")]
                batches += [list(requests(dice, dice.choice((1, 1, 1, 2, 4)))) for _ in range(5)]
                for batch in batches:
                    for part in cut(dice, b"".join(data for data, _ in batch)):
                        await client.send(part)
                        await asyncio.sleep(0)
                    for _, text in batch:
                        answer = await client.read_answer()
                        assert text is None or (answer.status, answer.json()["said"]) == (200, text)
        assert a.leftover == []


async def asked(client: RawClient, *data: bytes) -> list[Answer]:
    answers = []
    for each in data:
        await client.send(each)
        answers.append(await client.read_answer())
    return answers


@asynccontextmanager
async def repeating(
    config: Config, transport: Transport, limits: Limits | None = None
) -> AsyncIterator[tuple[Running, RawClient, ScriptedUpstream]]:
    """Serve a client who has said the same three times."""
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}, transport=transport, limits=limits) as gate,
        gate.client() as client,
    ):
        await asked(client, said("1"), said("2"), said("3"))
        yield gate, client, a


def carrying(text: bytes) -> tuple[bytes, bytes]:
    """Give the head and the body of a request whose body is no JSON."""
    head = post(CHAT, {}, [("x-other", "1")]).partition(b"\r\n\r\n")[0].replace(b"length: 2", b"length: %d" % len(text))
    return head + b"\r\n\r\n", text


@BOTH
async def test_a_body_that_looks_like_a_request_is_a_body(config: Config, transport: Transport) -> None:
    """It comes on its own, and begins with a head that was said before."""
    head, body = carrying(said("evil"))
    async with repeating(config, transport) as (gate, client, a):
        for _ in range(2):
            await client.send(head)
            await until(lambda: gate.gateway.active)
            await client.send(body)
            assert (await client.read_answer()).status == 400
        await asked(client, said("4"))
        assert [request.json()["user"] for request in a.requests] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("before", [b"", said("4"), get("/v1/models"), said("4")[:-1]])
@BOTH
async def test_a_head_that_was_begun_goes_on_in_what_looks_like_a_request(
    config: Config, transport: Transport, before: bytes
) -> None:
    async with repeating(config, transport) as (gate, client, a):
        if before == said("4")[:-1]:
            await client.send(before)
            await until(lambda: gate.gateway.active)
            before = b"}"
        await client.send(before + b"GET /v1/models HTTP/1.1\r\nx-field: ")
        if before:
            assert (await client.read_answer()).status == 200
        await asyncio.sleep(0.01)
        await client.send(said("evil"))
        assert b"list" in (await client.read_answer()).body
        assert "evil" not in [request.json()["user"] for request in a.requests]


@BOTH
async def test_the_end_of_a_head_is_no_head(config: Config, transport: Transport) -> None:
    whole = said("4")
    begins, ends = whole[:60], whole[60:]
    async with repeating(config, transport) as (_, client, a):
        await client.send(begins)
        await asyncio.sleep(0.01)
        assert [answer.status for answer in await asked(client, ends, ends)] == [200, 400]
        assert len(a.requests) == 4


@BOTH
async def test_the_end_of_a_body_behind_empty_lines_is_no_head(config: Config, transport: Transport) -> None:
    """The lines counted as a head of their own, so that so much of the body was taken for a part of the next head."""
    async with repeating(config, transport) as (gate, client, a):
        whole = b"\r\n\r\n" + said("4" + "x" * 400)
        head, end = whole[: whole.index(b"{")], b"x" * (whole.index(b"{") - 6) + b'"}'
        assert whole.endswith(end)
        await client.send(head)
        await until(lambda: gate.gateway.active)
        await client.send(whole[len(head) : -len(end)])
        await asyncio.sleep(0.01)
        await client.send(end + said("5"))
        assert [(await client.read_answer()).status for _ in range(2)] == [200, 200]
        [answer] = await asked(client, end + said("evil"))
        assert answer.status == 400
        assert len(a.requests) == 5


@pytest.mark.parametrize("lines", [b"\r\n", b"\r\n\r\n"])
async def test_what_repeats_is_not_parsed_where_empty_lines_came_before(
    config: Config, past_the_parser: list[bytes], lines: bytes
) -> None:
    async with repeating(config, "direct") as (_, client, _):
        past_the_parser.clear()
        assert [answer.status for answer in await asked(client, lines + said("4"), said("5"))] == [200, 200]
        assert [head for head in past_the_parser if head.startswith(b"POST")] == [said("5").partition(b"{")[0]]


@pytest.fixture
def past_the_parser(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was recognised as a repetition."""
    recognised: list[bytes] = []
    repeated = LastHead.repeated

    def noted(self: LastHead[object], data: bytes) -> tuple[int, int] | None:
        found = repeated(self, data)
        if found is not None:
            recognised.append(data[: found[0]])
        return found

    monkeypatch.setattr(LastHead, "repeated", noted)
    return recognised


async def test_what_repeats_is_not_parsed(config: Config, past_the_parser: list[bytes]) -> None:
    async with (
        ScriptedUpstream([Send(json_answer({"id": "1"}))]) as a,
        running(config, {"m": chain(a.url)}, transport="direct") as gate,
        gate.client() as client,
    ):
        for answer in await asked(client, *(said("x" * length) for length in range(6))):
            assert (answer.status, answer.json(), answer.head.get("content-type")) == (
                200,
                {"id": "1"},
                "application/json",
            )
        starts = [head.split(b" ")[0] for head in past_the_parser]
        assert (starts.count(b"POST"), starts.count(b"HTTP/1.1")) == (4, 5)
        assert [request.json()["user"] for request in a.requests] == ["x" * length for length in range(6)]


async def test_a_proxy_may_give_each_request_an_id(config: Config, past_the_parser: list[bytes]) -> None:
    ids = ["1", "22", "not sane", "", " spaced ", "4" * 64, "5"]

    def naming(name: str) -> bytes:
        return post(CHAT, {"model": "m"}, [("X-Request-Id", name)])

    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}, transport="direct") as gate,
        gate.client() as client,
    ):
        answers = await asked(client, *map(naming, ids))
        assert [answer.status for answer in answers] == [200] * len(ids)
        given = [answer.head.get("x-request-id") for answer in answers]
        assert given == [request.values("x-request-id")[0] for request in a.requests]
        assert [given[0], given[1], *given[4:]] == ["1", "22", "spaced", "4" * 64, "5"]
        assert len(set(given)) == len(ids)
        heads = [naming(name).partition(b"{")[0] for name in ids]
        assert [head for head in past_the_parser if head.startswith(b"POST")] == [*heads[2:5], heads[6]]


@BOTH
async def test_a_body_whose_head_repeats_may_be_too_large(config: Config, transport: Transport) -> None:
    async with repeating(config, transport, Limits(body=1000)) as (_, client, _):
        large = said("x" * 5000)
        await client.send(large[:300])
        answer = await client.read_answer()
        assert (answer.status, error_of(answer)["code"]) == (413, "request_too_large")
        assert answer.head.get("connection") == "close"
        await client.send(large[300:])
        assert await client.read_to_end() == b""
        assert client.ended == "fin"


@BOTH
async def test_a_body_whose_head_repeats_may_stall(config: Config, transport: Transport) -> None:
    async with repeating(config, transport, Limits(stall=0.2)) as (_, client, _):
        await client.send(said("4")[:-1])
        assert (await client.read_answer()).status == 408


@BOTH
async def test_a_client_that_leaves_inside_a_body_whose_head_repeats_is_told_of(
    config: Config, transport: Transport
) -> None:
    async with repeating(config, transport) as (gate, client, _):
        gate.outcomes.clear()
        await client.send(said("4")[:-1])
        await until(lambda: gate.gateway.active)
        await client.abort()
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure) == (499, "client_left")
        await until(lambda: not gate.gateway.active)


@BOTH
async def test_a_repeated_head_is_heeded_as_ever_while_the_gateway_drains(config: Config, transport: Transport) -> None:
    async with repeating(config, transport) as (gate, client, _):
        gate.gateway.drain()
        [answer] = await asked(client, said("4"))
        assert (answer.status, answer.head.get("connection")) == (200, "close")
        assert await client.read_to_end() == b""


async def opened(upstream: Upstream, url: str) -> bytes | None:
    answer = await upstream.open(deployment(url), CALL, connect_timeout=5)
    try:
        return await answer.read(1 << 20)
    finally:
        answer.close()


@BOTH
@pytest.mark.parametrize("end", [Close(), Reset()])
@pytest.mark.parametrize("part", [-1, -2, -12])
async def test_an_answer_whose_head_repeats_may_break_off(transport: Transport, part: int, end: Step) -> None:
    whole = json_answer({"number": 1})

    def script(number: int, _: Request) -> list[Step]:
        return [Send(whole[:part]), end] if number == 3 else [Send(whole)]

    async with ScriptedUpstream(script) as a:
        upstream = Upstream(transport=transport)
        assert [await opened(upstream, a.url) for _ in range(3)] == [b'{"number": 1}'] * 3
        with pytest.raises(AttemptFailedError) as error:
            await opened(upstream, a.url)
        assert error.value.failure.cause in (
            {Cause.CUT_ANSWER, Cause.DISCONNECTED} if end == Reset() else {Cause.CUT_ANSWER}
        )
        assert await opened(upstream, a.url) == b'{"number": 1}'
        assert a.connections == 2
        await upstream.close()


@pytest.mark.parametrize("unasked", [json_answer({"number": 2}), b"nonsense", b"\r\n"])
async def test_what_follows_on_an_answer_whose_head_repeats_is_not_trusted(unasked: bytes) -> None:
    def script(number: int, _: Request) -> list[Step]:
        return [Send(json_answer({"number": 1}) + (unasked if number == 3 else b""))]

    async with ScriptedUpstream(script) as a:
        upstream = Upstream()
        assert [await opened(upstream, a.url) for _ in range(5)] == [b'{"number": 1}'] * 5
        assert a.connections == 2
        await upstream.close()


async def test_an_answer_without_a_body_may_repeat() -> None:
    async with ScriptedUpstream([Send(json_answer({})[:-2].replace(b"length: 2", b"length: 0"))]) as a:
        upstream = Upstream()
        assert [await opened(upstream, a.url) for _ in range(3)] == [b""] * 3
        assert a.connections == 1
        await upstream.close()


async def test_an_answer_that_comes_as_its_request_is_given_up_is_no_fault() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream()
        for turns in range(20):
            assert [await opened(upstream, a.url) for _ in range(2)] == [b"{}"] * 2
            asking = asyncio.create_task(opened(upstream, a.url))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
        await upstream.close()
    assert faults == []


async def test_an_answer_that_ends_its_connection_ends_it_each_time() -> None:
    async with ScriptedUpstream([Send(json_answer({}, headers=[("connection", "close")]))]) as a:
        upstream = Upstream()
        assert [await opened(upstream, a.url) for _ in range(4)] == [b"{}"] * 4
        assert a.connections == 4
        await upstream.close()


@BOTH
async def test_empty_lines_before_an_answer_are_not_taken_for_its_head(config: Config, transport: Transport) -> None:
    """RFC 9112 2.2; what the heads behind them say differs."""

    def script(number: int, _: Request) -> list[Step]:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nretry-after: %d\r\n" % number
        return [Send(b"\r\n\r\n" + head + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"{}") + last_chunk())]

    async with (
        ScriptedUpstream(script) as a,
        running(config, {"m": chain(a.url)}, transport=transport) as gate,
        gate.client() as client,
    ):
        answers = await asked(client, *(said(text) for text in "1234"))
        assert [answer.head.get("retry-after") for answer in answers] == ["0", "1", "2", "3"]
