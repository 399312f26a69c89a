"""A clock that is set anew at every chunk."""

import asyncio
from math import inf

import pytest

from gateway.execution.deadline import Deadline, ExpiredError, Watch
from tests.fakes.connection import PATIENCE

FOREVER = 3600.0


async def wait(deadline: Deadline, *seconds: float) -> None:
    """Wait for ever, the deadline being set to each of these from now."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    with deadline:
        for each in seconds:
            deadline.at(now + each)
        await loop.create_future()


async def test_the_block_ends_at_the_deadline() -> None:
    deadline = Watch(asyncio.get_running_loop()).deadline()
    with pytest.raises(ExpiredError):
        await wait(deadline, 0)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_deadline_set_before_counts_inside() -> None:
    loop = asyncio.get_running_loop()
    deadline = Watch(loop).deadline()
    deadline.at(loop.time() - 1)
    with pytest.raises(ExpiredError):
        await wait(deadline)


async def test_a_nearer_deadline_counts() -> None:
    with pytest.raises(ExpiredError):
        await wait(Watch(asyncio.get_running_loop()).deadline(), FOREVER, 0.01)


async def test_a_later_deadline_counts() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ExpiredError):
        await wait(Watch(loop).deadline(), 0.01, 0.05)
    assert loop.time() >= began + 0.05


@pytest.mark.parametrize("again", [False, True])
async def test_without_a_deadline_nothing_ends(again: bool) -> None:  # noqa: FBT001 - pytest's
    loop = asyncio.get_running_loop()
    deadline = Watch(loop).deadline()
    with deadline:
        deadline.at(loop.time() + 0.01)
        deadline.at(inf)
        await asyncio.wait([loop.create_future()], timeout=0.05)
        assert not deadline.expired
        if again:
            deadline.at(loop.time() + FOREVER)
    assert not deadline.expired


async def test_who_cancels_the_task_meanwhile_is_heard() -> None:
    loop = asyncio.get_running_loop()
    inside = asyncio.Event()

    async def block() -> None:
        with Watch(loop).deadline() as deadline:
            try:
                inside.set()
                await loop.create_future()
            finally:
                deadline.at(loop.time())
                await asyncio.sleep(FOREVER)

    task = asyncio.create_task(block())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_once_expired_it_cannot_be_set_again() -> None:
    loop = asyncio.get_running_loop()
    deadline = Watch(loop).deadline()

    async def goes_on() -> None:
        with deadline:
            deadline.at(loop.time())
            try:
                await loop.create_future()
            finally:
                deadline.at(loop.time())
                await asyncio.sleep(0)

    with pytest.raises(ExpiredError):
        await goes_on()


async def test_once_expired_its_next_block_is_bounded_again_when_it_is_set() -> None:
    async def twice() -> None:
        deadline = Watch(asyncio.get_running_loop()).deadline()
        for _ in range(2):
            with pytest.raises(ExpiredError):
                await wait(deadline, 0)
            with deadline:
                for _ in range(3):
                    await asyncio.sleep(0)

    task = asyncio.create_task(twice())
    done, _ = await asyncio.wait({task}, timeout=PATIENCE)
    assert done, "it waits for ever"
    await task


async def test_what_ends_the_block_at_the_deadline_of_its_own_is_raised() -> None:
    loop = asyncio.get_running_loop()

    async def fails() -> None:
        with Watch(loop).deadline() as deadline:
            deadline.at(loop.time())
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                raise LookupError from None

    with pytest.raises(LookupError):
        await fails()
