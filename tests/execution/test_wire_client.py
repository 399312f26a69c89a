"""The client's side on its connection: the bytes that it writes (RFC 9112)."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import product

import pytest
from aiohttp import web

from gateway.execution.client import ClientLeftError, WireClient
from gateway.execution.fields import NONE, Fields
from gateway.execution.outbox import CROWD, Outbox

JSON = Fields([("Content-Type", "application/json")])
EVENTS = Fields([("Content-Type", "text/event-stream; charset=utf-8")])


class Recorded(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False
        self.when_written: Callable[[], None] = lambda: None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        self.when_written()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


class Line:
    """A connection whose client reads, until it is `full`, or `gone` while it is."""

    def __init__(self) -> None:
        self.recorded = Recorded()
        self.transport: asyncio.Transport | None = self.recorded
        self.is_full = False
        self.closing = False
        self.gone = False
        self.waited = 0
        self.outbox = Outbox()
        self.outbox.requests = CROWD

    def is_last(self) -> bool:
        return self.closing

    async def room(self) -> None:
        self.waited += 1
        if self.gone:
            raise ConnectionResetError


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def client(line: Line) -> WireClient:
    client = WireClient(line, "req-1")
    client.generation = 7
    return client


def written(line: Line) -> tuple[dict[str, str], bytes, str]:
    """Take apart what was written: the fields by name, the body, and the start line."""
    line.outbox.flush()
    head, _, body = b"".join(line.recorded.writes).partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body, start


async def test_a_whole_answer_is_one_write(line: Line, client: WireClient) -> None:
    assert not client.begun
    await answer(client, 200, Fields([*JSON.pairs, ("x-ratelimit-limit", "9")]), b"{}")
    fields, body, start = written(line)
    assert (len(line.recorded.writes), start, body, client.begun) == (1, "HTTP/1.1 200 OK", b"{}", True)
    assert fields.pop("date").endswith(" GMT")
    assert fields == {
        "content-type": "application/json",
        "x-ratelimit-limit": "9",
        "content-length": "2",
        "server": "hybrid-inference-gateway",
        "x-request-id": "req-1",
        "x-gateway-generation": "7",
    }


@pytest.mark.parametrize(("which", "at_once"), [("small", 0), ("large", 1), ("the last", 1), ("of a full client", 1)])
async def test_a_whole_answer_may_wait_for_others_if_nobody_waits_for_it(
    line: Line, client: WireClient, which: str, at_once: int
) -> None:
    """Who closes would close before it is out, and who is full is waited for."""
    line.closing = which == "the last"
    line.is_full = which == "of a full client"
    body = bytes(100_000) if which == "large" else b"{}"
    await answer(client, 200, JSON, body)
    assert (len(line.recorded.writes), line.waited) == (at_once, which == "of a full client")
    assert (written(line)[1], len(line.recorded.writes)) == (body, 1)


async def test_a_stream_is_chunked_and_its_head_goes_with_the_first_bytes(line: Line, client: WireClient) -> None:
    await client.begin(200, EVENTS, None)
    assert line.recorded.writes == []
    client.write(b"data: 1\n\n")
    await client.send(b"data: 2\n\n")
    await client.finish()
    fields, body, _ = written(line)
    assert body == b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"
    assert (fields["transfer-encoding"], fields["cache-control"], fields["x-accel-buffering"]) == (
        "chunked",
        "no-cache",
        "no",
    )
    assert len(line.recorded.writes) == 3


@pytest.mark.parametrize(
    ("kind", "of_events"),
    [("Text/Event-Stream", True), ("text/event-stream ;charset=utf-8", True), ("text/event-streams", False)],
)
async def test_a_stream_is_known_however_its_kind_is_written(
    line: Line, client: WireClient, kind: str, *, of_events: bool
) -> None:
    await client.begin(200, Fields([("Content-Type", kind)]), None)
    await client.finish()
    assert [name in written(line)[0] for name in ("cache-control", "x-accel-buffering")] == [of_events] * 2


@pytest.mark.parametrize("length", [None, 9])
async def test_chunks_go_their_way_when_the_head_of_a_chunked_body_is_out(
    line: Line, client: WireClient, length: int | None
) -> None:
    await client.begin(200, EVENTS, length)
    assert client.raw is None
    client.flush()
    assert client.raw is (line.transport if length is None else None)


async def test_a_head_that_waits_goes_out_once(line: Line, client: WireClient) -> None:
    await client.begin(200, Fields([("content-type", "application/zip")]), None)
    client.flush()
    client.flush()
    fields, body, _ = written(line)
    assert (fields["transfer-encoding"], body, len(line.recorded.writes)) == ("chunked", b"", 1)


async def test_a_trailer_ends_a_chunked_body(line: Line, client: WireClient) -> None:
    await client.begin(200, EVENTS, None)
    await client.finish(Fields([("x-gateway-rescue", "replay"), ("x-gateway-deployment", "bö")]))
    _, body, _ = written(line)
    assert body == "0\r\nx-gateway-rescue: replay\r\nx-gateway-deployment: bö\r\n\r\n".encode()


async def test_a_status_that_nobody_knows(line: Line, client: WireClient) -> None:
    await client.begin(299, NONE, 1)
    await client.send(b"x")
    await client.finish()
    fields, body, told = written(line)
    assert (told, body, fields["content-length"]) == ("HTTP/1.1 299 ", b"x", "1")


@pytest.mark.parametrize("smuggled", [("x", "a\r\nb: c"), ("x\nb", "a"), ("x", "a\rb"), ("x", "a\n")])
async def test_a_field_cannot_smuggle_another(line: Line, client: WireClient, smuggled: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="line break"):
        await client.begin(200, Fields([*JSON.pairs, smuggled]), 2)
    assert line.recorded.writes == []


@pytest.mark.parametrize("how", ["the line's", "the answer's", "neither's"])
async def test_the_last_answer_says_that_it_is(line: Line, client: WireClient, how: str) -> None:
    line.closing = how == "the line's"
    response = web.Response(status=400, body=b"{}", content_type="application/json")
    if how == "the answer's":
        response.force_close()
    await client.respond(response, 7)
    fields, body, start = written(line)
    assert (start, body, fields.get("connection")) == (
        "HTTP/1.1 400 Bad Request",
        b"{}",
        None if how == "neither's" else "close",
    )
    assert client.closes == (how != "neither's")


async def answer(client: WireClient, status: int, headers: Fields, body: bytes) -> None:
    """Send a whole answer, and wait where that has to be waited for."""
    sent = client.answer(status, headers, body)
    if sent is not None:
        await sent


STEPS: dict[str, Callable[[WireClient], Awaitable[None]]] = {
    "begin": lambda client: client.begin(200, JSON, 2),
    "answer": lambda client: answer(client, 200, JSON, b"{}"),
    "send": lambda client: client.send(b"{}"),
    "finish": lambda client: client.finish(),
}


@pytest.mark.parametrize(
    ("step", "how"),
    [
        *product(STEPS, ["closing", "gone"]),
        *((step, "gone while it is full") for step in STEPS if step != "begin"),  # which sends nothing yet
    ],
)
async def test_a_client_that_has_left_is_noticed_at_each_step(
    line: Line, client: WireClient, step: str, how: str
) -> None:
    if step in {"send", "finish"}:
        await client.begin(200, EVENTS, None)
    if how == "closing":
        line.recorded.closing = True
    elif how == "gone":
        line.transport = None
    else:
        line.is_full = line.gone = True
    with pytest.raises(ClientLeftError):
        await STEPS[step](client)


async def test_who_is_full_is_waited_for(line: Line, client: WireClient) -> None:
    line.is_full = True
    assert client.full
    await answer(client, 200, JSON, b"{}")
    await client.send(b"{}")
    await client.finish()
    assert line.waited == 3


@pytest.mark.parametrize("begun", [True, False])
async def test_breaking_off_leaves_the_body_without_its_end(line: Line, client: WireClient, begun: bool) -> None:  # noqa: FBT001 - pytest's
    await client.begin(200, EVENTS, None)
    if begun:
        await client.send(b"a")
    await client.break_off(b"last")
    _, body, _ = written(line)
    assert body == (b"1\r\na\r\n" if begun else b"") + b"4\r\nlast\r\n"
    assert (line.recorded.closing, client.closes) == (True, True)


async def test_nothing_is_said_behind_the_end(line: Line, client: WireClient) -> None:
    await client.begin(200, EVENTS, None)
    await client.finish()
    await client.break_off(b"last")
    assert (written(line)[1], line.recorded.closing) == (b"0\r\n\r\n", True)


async def test_breaking_off_from_who_is_gone_is_nothing(line: Line, client: WireClient) -> None:
    await client.begin(200, EVENTS, None)
    line.transport = None
    await client.break_off(b"last")
    await client.break_off(b"")
    assert line.recorded.writes == []
