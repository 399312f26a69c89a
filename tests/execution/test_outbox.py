"""What a turn of the loop has to write goes out together, at the beginning of the next one."""

import asyncio
from typing import Any

from gateway.execution.outbox import CROWD, Outbox
from gateway.execution.protocol import AnswerProtocol, LastHeads
from tests.execution.test_wire_client import Recorded


class Failing(Recorded):
    """A transport that cannot write."""

    def abort(self) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError(f"cannot write {len(data)} byte")


def crowded() -> Outbox:
    outbox = Outbox()
    outbox.requests = CROWD
    return outbox


async def test_among_few_requests_all_is_written_at_once_and_in_order() -> None:
    outbox, transport = crowded(), Recorded()
    outbox.post(transport, b"1")
    outbox.requests -= 1
    outbox.post(transport, b"2")
    assert transport.writes == [b"1", b"2"]


async def test_what_is_posted_is_written_in_order_before_what_is_scheduled_after_it() -> None:
    outbox, one, other = crowded(), Recorded(), Recorded()
    order: list[str] = []
    one.when_written = lambda: order.append("one")
    other.when_written = lambda: order.append("other")
    loop = asyncio.get_running_loop()
    loop.call_soon(order.append, "before")
    outbox.post(one, b"1")
    loop.call_soon(order.append, "after")
    outbox.post(other, b"2")
    outbox.post(one, b"3")
    assert order == []
    await asyncio.sleep(0)
    assert order == ["before", "one", "other", "one", "after"]
    assert (one.writes, other.writes) == ([b"1", b"3"], [b"2"])


async def test_each_turn_has_its_own() -> None:
    outbox, transport = crowded(), Recorded()
    for number in range(3):
        outbox.post(transport, b"%d" % number)
        await asyncio.sleep(0)
        assert transport.writes[-1] == b"%d" % number


async def test_what_is_flushed_early_is_written_once() -> None:
    outbox, transport = crowded(), Recorded()
    outbox.post(transport, b"1")
    outbox.flush()
    assert transport.writes == [b"1"]
    outbox.post(transport, b"2")
    await asyncio.sleep(0)
    assert transport.writes == [b"1", b"2"]


async def test_what_is_posted_by_a_write_is_written_too() -> None:
    outbox, one, other = crowded(), Recorded(), Recorded()
    one.when_written = lambda: outbox.post(other, b"2")
    outbox.post(one, b"1")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert other.writes == [b"2"]


async def test_what_is_closing_gets_nothing() -> None:
    outbox, closing, other = crowded(), Recorded(), Recorded()
    outbox.post(closing, b"1")
    outbox.post(other, b"2")
    closing.close()
    await asyncio.sleep(0)
    assert (closing.writes, other.writes) == ([], [b"2"])


async def test_one_that_cannot_be_written_holds_up_nobody() -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    outbox, other = crowded(), Recorded()
    failing = Failing()
    outbox.post(failing, b"1")
    outbox.post(other, b"2")
    outbox.flush()
    assert (other.writes, [str(context["exception"]) for context in told]) == ([b"2"], ["cannot write 1 byte"])
    assert failing.is_closing()  # who waits for an answer learns of it


async def test_requests_to_upstreams_are_posted() -> None:
    outbox, upstream = crowded(), Recorded()
    protocol = AnswerProtocol(outbox, asyncio.get_running_loop())
    protocol.connection_made(upstream)
    awaited = protocol.ask(b"POST", LastHeads())
    assert upstream.writes == []
    await asyncio.sleep(0)
    assert upstream.writes == [b"POST"]
    awaited.cancel()
