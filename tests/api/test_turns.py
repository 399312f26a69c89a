"""Who may begin in a turn of the event loop."""

import asyncio

import pytest

from gateway.api.turns import MOST, Turns
from tests.execution.support import CHAT, CONTENT, DONE, FINISH, ask, chain, running
from tests.fakes.client import RawClient, post
from tests.fakes.connection import PATIENCE
from tests.fakes.upstream import Request, ScriptedUpstream, Send, Step, chunk, json_answer, last_chunk, sse_head
from tests.running import Config, until


async def test_so_many_begin_in_a_turn_in_the_order_they_came() -> None:
    turns, begun = Turns(), [0]
    order: list[int] = []

    async def begin(number: int) -> None:
        turn = turns.take()
        if turn is not None:
            await turn
        begun[-1] += 1
        order.append(number)

    async def count() -> None:
        while len(order) < 3 * MOST + 5:
            begun.append(0)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.gather(*(begin(number) for number in range(3 * MOST + 5)))
    await counting
    assert order == list(range(3 * MOST + 5))
    assert max(begun) == MOST


async def test_who_has_left_takes_nobodys_turn() -> None:
    turns = Turns()
    waited = [turns.take() for _ in range(2 * MOST + 1)]
    assert waited[:MOST] == [None] * MOST
    waiting = [turn for turn in waited if turn is not None]
    for turn in waiting[:-1]:
        turn.cancel()
    await asyncio.wait_for(waiting[-1], PATIENCE)


async def test_who_comes_later_waits_behind_those_who_wait() -> None:
    turns = Turns()
    first = [turns.take() for _ in range(2 * MOST)]
    assert first[-1] is not None
    await first[-1]
    later = turns.take()
    assert later is not None
    await later
    assert turns.take() is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_crowd_is_answered_whole(config: Config, stream: bool) -> None:  # noqa: FBT001 - pytest's
    def script(_: int, request: Request) -> list[Step]:
        if stream:
            return [Send(sse_head() + chunk(CONTENT) + chunk(FINISH) + chunk(DONE) + last_chunk())]
        return [Send(json_answer({"said": request.json()["user"]}))]

    async def one(client: RawClient, number: int) -> None:
        async with client:
            await client.send(ask(stream=True) if stream else post(CHAT, {"model": "m", "user": str(number)}))
            answer = await client.read_answer()
            assert answer.body == CONTENT + FINISH + DONE if stream else answer.json() == {"said": str(number)}

    async with ScriptedUpstream(script) as a, running(config, {"m": chain(a.url)}) as gate:
        await asyncio.gather(*(one(gate.client(), number) for number in range(5 * MOST)))
        await gate.outcome(5 * MOST)


async def test_a_client_that_leaves_before_its_turn_is_told_of(config: Config) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        gate.gateway.openai._turns._begun = MOST  # a turn that does not end
        async with gate.client() as client:
            await client.send(post(CHAT, {"model": "m"}, [("x-request-id", "gone")]))
            await until(lambda: gate.gateway.openai._turns._waiting)
            await client.abort()
            outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.request_id) == (499, "client_left", "gone")
        assert a.requests == []
