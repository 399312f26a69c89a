"""What the executor leaves behind when we err ourselves."""

import asyncio
import functools
import gc
from typing import NoReturn

import pytest

from gateway.execution import upstream
from gateway.execution.answer import Answer
from gateway.execution.completions import CompletionStream
from gateway.execution.outcome import Outcome
from gateway.execution.record import Record
from gateway.routing.itinerary import Itinerary
from tests.execution.support import CONTENT, ask, chain, error_of, running
from tests.fakes.connection import Cut
from tests.fakes.upstream import (
    Close,
    Hang,
    Pause,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    refused_url,
    sse_head,
)
from tests.running import Config, until


async def test_an_observer_that_fails_costs_nobody_an_answer(config: Config) -> None:
    def observer(_: Outcome) -> None:
        raise ValueError("the disk is gone")

    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        gate.gateway.executor._observers = (observer, *gate.gateway.executor._observers)
        assert (await gate.post("m")).status == 200
        assert (await gate.outcome()).status == 200
        failures = [record for record in await gate.log() if record["event"] == "exception"]
        assert [(record["error"], record["message"]) for record in failures] == [("ValueError", "an observer failed")]


async def test_an_error_of_ours_before_the_answer_is_a_500(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> NoReturn:
        raise ValueError("the session is closed")

    monkeypatch.setattr(upstream, "_session", failing)
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post("m", headers=[("x-request-id", "req-1")])
        error = error_of(answer)
        assert (answer.status, error["type"], error["code"]) == (500, "internal_error", "internal_error")
        assert (answer.head.get("x-request-id"), answer.head.get("server")) == ("req-1", "hybrid-inference-gateway")
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.served_model) == (500, "internal_error", None)
        assert await gate.failures() == ["internal_error"]
        assert gate.gateway.executor.in_flight["m", "a"] == 0
        (record,) = [record for record in await gate.log() if record["event"] == "exception"]
        assert "the session is closed" in record["traceback"]
        assert "closed" not in answer.body.decode()


async def test_an_error_of_ours_in_mid_answer_cuts_it(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    repeats, more = CompletionStream.repeats, asyncio.Event()

    def failing(self: CompletionStream, data: bytes) -> bool:
        if self.first_content is not None:
            raise ValueError("the relayed is closed")
        return repeats(self, data)

    monkeypatch.setattr(CompletionStream, "repeats", failing)
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Pause(more), Send(chunk(CONTENT)), Hang()]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await client.read_head()
        assert await client.read_chunk() == CONTENT
        more.set()
        with pytest.raises(Cut):
            await client.read_chunk()
        assert client.ended == "fin"
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure) == (200, "internal_error")
        await a.closed_by_peer()


LOST: list[Step] = [Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"), Close()]


@pytest.mark.parametrize("steps", [None, [Close()], [Send(b"no HTTP"), Close()], LOST, [Send(json_answer({}, 500))]])
async def test_requests_that_fail_over_go_without_the_collector(config: Config, steps: list[Step] | None) -> None:
    """With each save, what was not gone used to be hidden from the collector, and held the configuration for good."""
    kinds = (Record, Itinerary, Answer)
    async with (
        ScriptedUpstream(steps or ()) as a,
        ScriptedUpstream([Send(json_answer({}))]) as b,
        running(config, {"m": chain(a.url if steps else refused_url(), b.url)}, transport="direct") as gate,
    ):
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                assert (await gate.post("m")).head.get("x-gateway-deployment") == "b"
            young = functools.partial(gc.get_objects, generation=0)
            await until(lambda: not any(isinstance(each, kinds) for each in young()))
        finally:
            gc.enable()


@pytest.mark.parametrize("steps", [[Send(sse_head() + chunk(CONTENT)), Hang()], [Close()], [Send(b"no HTTP"), Close()]])
async def test_requests_that_fail_or_are_left_go_without_the_collector(config: Config, steps: list[Step]) -> None:
    async with (
        ScriptedUpstream(steps) as a,
        running(config, {"m": chain(a.url)}, transport="direct") as gate,  # aiohttp's session leaves cycles
    ):
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 4):
                async with gate.client() as client:
                    await client.send(ask(stream=True))
                    await client.read_until(b"hi" if steps[-1] == Hang() else b"}}")
                    await client.abort()
                await gate.outcome(number)
            young = functools.partial(gc.get_objects, generation=0)  # all since the collector rests
            await until(lambda: not any(isinstance(each, Record) for each in young()))
        finally:
            gc.enable()
