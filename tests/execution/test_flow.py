"""A body that is asked for, and one that pours."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.execution.flow import Flow, Straight
from tests.running import until


class Recorded(asyncio.Transport):
    """A transport that notes whether it was told to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.told.append("rest")

    def resume_reading(self) -> None:
        self.told.append("go on")


class Source:
    """A connection that notes who receives what comes."""

    def __init__(self) -> None:
        self.receive: Callable[[bytes], object] | None = None

    def data_received(self, data: bytes) -> None:
        raise AssertionError(data)

    def divert(self, receive: Callable[[bytes], object] | None) -> None:
        self.receive = receive


def none_straight(otherwise: Callable[[bytes], None]) -> Straight:
    """Take nothing of what is received."""
    while True:
        otherwise((yield))


class Body:
    """A flow, its transport, and what it poured."""

    def __init__(self, *parts: bytes, over: bool = False) -> None:
        self.transport = Recorded()
        self.source = Source()
        self.flow = Flow(self.transport, self.source, list(parts), over=over)
        self.poured: list[bytes] = []

    def comes(self, *parts: bytes, ends: bool = False, breaks: Exception | None = None) -> None:
        """Let parts come in one read, and the end with them."""
        self.flow.parts += parts
        if ends:
            self.flow.over = True
        if breaks:
            self.flow.broke(breaks)
        self.flow.give()

    def pours(self, enough: Callable[[bytes], bool] = lambda _: False) -> "asyncio.Task[None]":
        def take(data: bytes) -> bool:
            self.poured.append(data)
            return enough(data)

        return asyncio.create_task(self.flow.pour(take, none_straight))


async def test_what_has_come_is_given_at_once_and_the_rest_when_it_comes() -> None:
    body = Body(b"a", b"b")
    assert await body.flow.readany() == b"ab"
    waiting = asyncio.create_task(body.flow.readany())
    await asyncio.sleep(0)
    body.comes(b"c")
    assert await waiting == b"c"
    body.comes(b"d", ends=True)
    assert (body.flow.at_eof(), body.flow.is_eof()) == (False, True)
    assert await body.flow.readany() == b"d"
    assert (await body.flow.readany(), body.flow.at_eof()) == (b"", True)


@pytest.mark.parametrize("parts", [(), (b"a",), (b"a", b"b")])
async def test_a_whole_body_is_given_without_waiting(parts: tuple[bytes, ...]) -> None:
    flow = Body(*parts, over=True).flow
    assert (flow.read_nowait(), flow.read_nowait(), flow.at_eof()) == (b"".join(parts), b"", True)


async def test_a_break_is_told_after_what_came_before_it() -> None:
    body = Body(b"a")
    waiting = asyncio.create_task(body.flow.readany())
    body.comes(breaks=OSError("gone"))
    assert await waiting == b"a"
    with pytest.raises(OSError, match="gone"):
        await body.flow.readany()
    with pytest.raises(OSError, match="gone"):
        await body.pours()


async def test_who_waits_hears_of_the_break() -> None:
    body = Body()
    waiting = asyncio.create_task(body.flow.readany())
    await asyncio.sleep(0)
    body.comes(breaks=OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await waiting


async def test_the_parts_of_one_read_are_poured_as_one() -> None:
    body = Body(b"a", b"b")
    pouring = body.pours()
    await asyncio.sleep(0)
    body.comes(b"c", b"d")
    body.comes(b"e", ends=True)
    await pouring
    assert body.poured == [b"ab", b"cd", b"e"]


async def test_nothing_is_poured_twice_or_after_the_end() -> None:
    body = Body(over=True)
    await body.pours()
    assert body.poured == []
    whole = Body(b"a", over=True)
    await whole.pours()
    assert whole.poured == [b"a"]


@pytest.mark.parametrize("before", [True, False])
async def test_who_has_enough_gets_no_more(before: bool) -> None:  # noqa: FBT001 - pytest's
    body = Body(*([b"a"] if before else []))
    pouring = body.pours(lambda _: True)
    await asyncio.sleep(0)
    if not before:
        body.comes(b"a")
    body.comes(b"b")
    await pouring
    assert body.poured == [b"a"]
    assert await body.flow.readany() == b"b"


async def test_what_the_taker_raises_is_raised_where_the_pouring_is_waited_for() -> None:
    def refuses(_: bytes) -> bool:
        raise KeyError("no")

    body = Body()
    pouring = body.pours(refuses)
    await asyncio.sleep(0)
    body.comes(b"a")
    with pytest.raises(KeyError):
        await pouring


async def test_pouring_breaks_with_the_body() -> None:
    body = Body()
    pouring = body.pours()
    await asyncio.sleep(0)
    body.comes(b"a", breaks=OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await pouring
    assert body.poured == [b"a"]


async def test_a_break_after_the_end_is_none() -> None:
    body = Body(b"a", over=True)
    body.comes(breaks=OSError("gone"))
    assert (await body.flow.readany(), await body.flow.readany()) == (b"a", b"")


async def test_too_much_that_nobody_asks_for_lets_the_transport_rest() -> None:
    body = Body()
    for _ in range(3):
        body.comes(b"x" * (1 << 17))
    assert body.transport.told == ["rest"]
    assert len(await body.flow.readany()) == 3 << 17
    assert body.transport.told == ["rest", "go on"]


async def test_a_transport_that_is_closing_is_left_alone() -> None:
    body = Body()
    body.flow.pause()
    body.transport.closing = True
    body.flow.resume()
    body.flow.pause()
    assert body.transport.told == ["rest"]


async def test_pouring_that_is_cancelled_pours_no_more() -> None:
    body = Body()
    pouring = body.pours()
    await asyncio.sleep(0)
    pouring.cancel()
    await until(pouring.done)
    body.comes(b"a")
    assert (body.poured, await body.flow.readany()) == ([], b"a")


async def test_what_is_received_goes_straight_until_it_is_enough() -> None:
    body = Body()
    received: list[bytes] = []

    def straight(_: Callable[[bytes], None]) -> Straight:
        while True:
            received.append((yield))

    pouring = asyncio.create_task(body.flow.pour(lambda _: True, straight))
    await asyncio.sleep(0)
    body.flow.between = True
    assert body.source.receive is not None
    body.source.receive(b"1\r\na\r\n")
    assert (received, body.flow.at_chunk) == ([b"1\r\na\r\n"], True)
    body.comes(b"a")
    assert not body.flow.at_chunk
    await pouring
    assert body.source.receive is None


def test_what_waits_is_not_shown() -> None:
    assert repr(Body(b"can", b"ary").flow) == "<6 bytes wait>"
