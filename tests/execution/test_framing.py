"""Chunks of HTTP's that are passed on as they come, and those that are not."""

import asyncio
import itertools
import math
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.execution.answer import Answer, AttemptFailedError, Facts
from gateway.execution.chunks import Piece
from gateway.execution.client import ClientLeftError, WireClient
from gateway.execution.completions import CompletionStream
from gateway.execution.deadline import Watch
from gateway.execution.fields import Fields
from gateway.execution.flow import Flow
from gateway.execution.framing import BEGINNINGS, framed
from gateway.execution.outbox import Outbox
from gateway.execution.protocol import AnswerProtocol, LastHeads
from gateway.execution.relay import relay
from tests.execution.test_template import CHAT, chat, cut, event, known, stream_of, streams
from tests.execution.test_wire_client import Line

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = Fields([("Content-Type", "text/event-stream")])
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
LAST = b"0\r\n\r\n"
ODD = [b"%X\r\n%b\r\n", b"0%x\r\n%b\r\n", b"%x;a=b\r\n%b\r\n", b"%x \r\n%b\r\n"]


class Head:
    """An answer whose head was read; it lets go of nothing."""

    length = None
    lost_by = None

    def __init__(self, facts: Facts, body: Flow) -> None:
        self.facts = facts
        self.body = body

    def close(self) -> None:
        pass

    def release(self) -> None:
        pass


class Upstream(asyncio.Transport):
    """The transport of a connection to an upstream, on which nothing goes."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass


class Run:
    """A stream's way from the connection to a box to the client's."""

    def __init__(self, relayed: CompletionStream) -> None:
        self.relayed = relayed
        self.line = Line()
        self.client = WireClient(self.line, "id")
        self.protocol = AnswerProtocol(Outbox(), asyncio.get_running_loop())
        self.protocol.connection_made(Upstream())

    async def begin(self) -> "asyncio.Task[None]":
        awaited = self.protocol.ask(b"", LastHeads())
        self.protocol.data_received(HEAD)
        facts, _, flow = await awaited
        await self.client.begin(200, EVENTS, None)
        self.client.flush()
        self.line.recorded.writes.clear()
        relaying = asyncio.create_task(self._relay(Answer(Head(facts, flow), facts, 200, flow, lambda: None)))
        await asyncio.sleep(0)
        return relaying

    async def _relay(self, answer: Answer) -> None:
        self.clock = Watch(asyncio.get_running_loop()).deadline()
        await relay(answer, b"", self.client, self.relayed, 9, self.clock, is_fed=False)
        await self.client.finish()

    @property
    def writes(self) -> list[bytes]:
        self.line.outbox.flush()
        return self.line.recorded.writes

    def comes(self, *reads: bytes) -> None:
        for read in reads:
            self.protocol.data_received(read)


def body_of(raw: bytes) -> bytes:
    """Read a body in chunks of the usual form; nothing may follow it."""
    body = b""
    while True:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        assert size == b"%x" % length
        part, end, raw = raw[:length], raw[length : length + 2], raw[length + 2 :]
        assert end == b"\r\n"
        if not length:
            assert not raw
            return body
        body += part


@settings(max_examples=200)
@given(st.integers(1, 1 << 17))
def test_the_length_of_a_chunk_tells_how_it_begins(size: int) -> None:
    chunk = framed(bytes(size))
    assert BEGINNINGS[len(chunk)] == chunk[: chunk.index(b"\n") + 1]


def test_no_chunk_is_of_other_lengths() -> None:
    lengths = {len(framed(bytes(size))) for size in range(1, 5000)}
    assert [length for length in range(5000) if (BEGINNINGS[length] != b"") != (length in lengths)] == []


@st.composite
def reads(draw: st.DrawFn, parts: list[bytes]) -> list[bytes]:
    """Draw the chunks of these parts, and what is read of them at once: each, or whatever."""
    chunks: list[bytes] = []
    for part in parts:
        usual = draw(st.integers(0, 4))
        chunks.append(framed(part) if usual else draw(st.sampled_from(ODD)) % (len(part), part))
    if draw(st.booleans()):
        return [*chunks, LAST]
    raw = b"".join(chunks)
    ends = {sum(map(len, chunks[:place])) for place in range(1, len(chunks)) if draw(st.booleans())}
    places = sorted(ends ^ set(draw(st.lists(st.integers(1, len(raw)), max_size=6))))
    return [raw[start:end] for start, end in itertools.pairwise([0, *places, len(raw)]) if end > start] + [LAST]


@pytest.mark.exhaustive
@settings(max_examples=200)
@given(st.data(), st.booleans(), st.booleans())
def test_framing_makes_no_difference(data: st.DataObject, hides_usage: bool, keeps: bool) -> None:  # noqa: FBT001
    stream = re.sub(rb"[\r\n]{2,}", b"\n\n", data.draw(streams()).strip(b"\r\n") + b"\n\n") + FINISH
    parts = [part for part in data.draw(cut(stream[:-2])) if part.strip(b"\n")]  # blank lines may be cut
    given_reads = data.draw(reads(parts))
    decoding = stream_of(learns=False, hides_usage=hides_usage, keeps=keeps)
    passed = decoding.feed(b"".join(parts))[0] + decoding.end()

    async def run() -> tuple[bytes, CompletionStream]:
        way = Run(stream_of(learns=True, hides_usage=hides_usage, keeps=keeps))
        relaying = await way.begin()
        way.comes(*given_reads)
        try:
            await relaying
        except AttemptFailedError:
            assert way.relayed.failed
            await way.client.finish()
        return b"".join(way.writes), way.relayed

    raw, relayed = asyncio.run(run())
    assert body_of(raw) == passed
    assert seen(known(relayed)) == seen(known(decoding))


def seen(known: Iterable[object]) -> list[object]:
    """Leave out the time of the first content."""
    return [each for each in known if not isinstance(each, float)]


class Ended(Run):
    """One that says something when it is cancelled."""

    async def _relay(self, answer: Answer) -> None:
        try:
            await super()._relay(answer)
        except asyncio.CancelledError:
            self.client.write(b"last words")


async def learnt(kind: type[Run] = Run) -> tuple[Run, "asyncio.Task[None]"]:
    """Begin with a stream whose events are known, and which is between two chunks."""
    way = kind(stream_of(learns=True))
    relaying = await way.begin()
    way.comes(framed(chat("a")), framed(chat("b")))
    way.writes.clear()
    return way, relaying


async def test_a_whole_chunk_passes_as_it_came() -> None:
    way, relaying = await learnt()
    chunk = framed(chat(" you"))
    way.comes(chunk)
    assert way.writes == [chunk]
    assert way.writes[0] is chunk
    way.comes(framed(FINISH), LAST)
    await relaying
    assert body_of(b"".join(way.writes)) == chat(" you") + FINISH + b"data: [DONE]\n\n"
    assert way.client.pourer is None  # who is full from here on is none of this upstream's business


COMMENT = framed(b": no\n\n")
TWO = framed(chat("e") + chat("f"))


@pytest.mark.parametrize(
    ("rest", "passed"),
    [
        (b"", []),
        (framed(chat("e"))[:-4], []),
        (b"1\r\n", []),
        (COMMENT, [COMMENT]),
        (framed(FINISH), [framed(FINISH)]),
        (TWO, [TWO]),
        (COMMENT + framed(chat("e")), [framed(b": no\n\n" + chat("e"))]),
    ],
)
async def test_of_several_chunks_the_first_that_are_known_pass_as_they_came(rest: bytes, passed: list[bytes]) -> None:
    way, relaying = await learnt()
    known = framed(chat("c")) + framed(chat("d"))
    way.comes(known + rest)
    assert way.writes == [known, *passed]
    relaying.cancel()


async def test_after_several_chunks_in_a_read_the_next_one_passes_as_it_came() -> None:
    way, relaying = await learnt()
    way.clock.when = 0.0
    way.comes(framed(chat("c")) + framed(chat("d")))
    assert 0 < way.clock.when < math.inf
    chunk = framed(chat("e"))
    way.comes(chunk)
    assert way.writes[1] is chunk
    relaying.cancel()


@pytest.mark.parametrize("text", [b"", b'"', rb"\n", rb"\"", b"\n", b"\x00", b"\xff", "\u200d".encode(), b'a","b":"c'])
async def test_a_chunk_whose_text_is_not_plain_is_decoded(text: bytes) -> None:
    way, relaying = await learnt()
    decoding = stream_of(learns=False)
    for each in (b"a", b"b", text, b"c"):
        decoding.feed(event(CHAT, each))
    odd, plain = framed(event(CHAT, text)), framed(chat("c"))
    way.comes(odd, plain)
    assert all(each is not odd for each in way.writes)
    assert way.writes[-1] == plain
    await asyncio.sleep(0)
    relaying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relaying
    assert seen(known(way.relayed)) == seen(known(decoding))


@pytest.mark.parametrize(
    "begun",
    [b"4", b"5;a=", b"5;a=\r", b"1\r\n", b"%x\r\n" % (len(framed(chat("c"))) + 3), framed(chat("d"))[:-1]],
)
async def test_what_looks_like_a_chunk_inside_another_is_none(begun: bytes) -> None:
    way, relaying = await learnt()
    way.comes(begun)
    within = framed(chat("c"))
    way.comes(within)
    assert all(each is not within for each in way.writes)
    relaying.cancel()


ENDS = framed(chat("c")).partition(b'"c"')[2]
BEGINS = framed(chat("c" * 9)).partition(b"ccc")[0]


@pytest.mark.parametrize(
    "read",
    [
        chat("c" * (260 - len(chat("")))) + b"\r\n",  # 262 bytes: no chunk is so long
        BEGINS + b"c" * 16,
        b"c" * 100 + b'"' + ENDS,
        framed(b": " + chat("c")),
    ],
)
async def test_what_only_begins_or_ends_as_a_known_chunk_is_none(read: bytes) -> None:
    way, relaying = await learnt()
    way.comes(read)
    assert all(each is not read for each in way.writes)
    relaying.cancel()


async def test_a_known_event_inside_another_is_a_part_of_that() -> None:
    way, relaying = await learnt()
    way.comes(framed(b"data: {"), framed(chat("c")))
    assert (way.writes, way.relayed.malformed) == ([], 1)
    relaying.cancel()


async def test_what_comes_while_the_client_is_full_starts_no_clock() -> None:
    way, relaying = await learnt()
    pourer = way.client.pourer
    assert pourer is not None
    pourer.pause()
    way.comes(framed(chat("c")))
    assert (len(way.writes), way.clock.when) == (1, math.inf)
    pourer.resume()
    chunk = framed(chat("d"))
    way.comes(chunk)
    assert way.writes[1] is chunk
    relaying.cancel()


async def test_a_chunk_that_fills_the_client_stops_the_clock() -> None:
    way, relaying = await learnt()
    pourer = way.client.pourer
    assert pourer is not None
    way.line.recorded.when_written = pourer.pause
    way.comes(framed(chat("c")))
    assert (len(way.writes), way.clock.when) == (1, math.inf)
    relaying.cancel()


async def test_a_comment_does_not_put_the_clock_back() -> None:
    way, relaying = await learnt()
    way.comes(framed(chat("c")))
    until = way.clock.when
    way.comes(framed(b": not yet\n\n"))
    assert way.clock.when == until
    relaying.cancel()


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_long_text_is_kept_up_to_a_limit(*, keeps: bool) -> None:
    way = Run(stream_of(learns=True, keeps=keeps))
    relaying = await way.begin()
    decoding = stream_of(learns=False, keeps=keeps)
    for text in ["a"] + ["ä" * (1 << 13)] * 80:
        way.comes(framed(chat(text)))
        decoding.feed(chat(text))
    way.comes(framed(FINISH), LAST)
    decoding.feed(FINISH)
    await relaying
    decoding.end()
    assert seen(known(way.relayed)) == seen(known(decoding))
    assert (way.relayed.opaque, way.relayed._decoded, decoding._decoded) == (True, 1, 81)


async def test_what_is_known_of_events_that_passed_is_noted_when_the_stream_breaks() -> None:
    way, relaying = await learnt()
    way.comes(framed(chat("c")), framed(chat("d")))
    way.protocol.connection_lost(None)
    with pytest.raises(AttemptFailedError):
        await relaying
    assert (way.relayed.tokens, way.relayed.size) == (4, 4 * len(chat("a")))
    assert way.relayed.said == (Piece("content", "abcd"),)


async def test_a_client_that_is_gone_is_noticed() -> None:
    way, relaying = await learnt()
    way.line.recorded.closing = True
    way.comes(framed(chat("c")))
    with pytest.raises(ClientLeftError):
        await relaying
    assert way.writes == []


async def test_what_came_before_the_end_goes_before_what_is_said_of_it() -> None:
    way, relaying = await learnt(Ended)
    await asyncio.sleep(0)
    relaying.cancel()
    chunk = framed(chat("c"))
    way.comes(chunk)
    await relaying
    assert way.line.recorded.writes == [chunk, framed(b"last words")]


async def test_known_chunks_wait_for_those_of_other_streams() -> None:
    way, relaying = await learnt()
    await asyncio.sleep(0)
    chunks = [framed(chat("c")), framed(chat("d"))]
    way.comes(*chunks)
    assert way.line.recorded.writes == []
    await asyncio.sleep(0)
    assert way.line.recorded.writes == chunks
    relaying.cancel()


@pytest.mark.parametrize("how", ["an error", "cancelled"])
async def test_nothing_passes_when_it_is_over(how: str) -> None:
    way, relaying = await learnt()
    if how == "cancelled":
        relaying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await relaying
    else:
        way.comes(framed(b'data: {"error": {}}\n\n'))
    way.comes(framed(chat("c")))
    assert way.writes == []
    relaying.cancel()
