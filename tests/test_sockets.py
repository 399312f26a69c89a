"""Machines that are gone, told from processes that think. The kernel's clocks are real here, and set to a second."""

import asyncio
import sys

import pytest

from gateway import listener
from gateway.execution import protocol, upstream
from gateway.execution.answer import AttemptFailedError
from gateway.execution.fields import Fields
from gateway.execution.upstream import TRANSPORTS, Call, Transport, Upstream
from gateway.routing.failures import Cause
from tests.execution.support import CONTENT, ask, chain, deployment, running
from tests.fakes.upstream import Hang, Pause, ScriptedUpstream, Send, Vanish, chunk, json_answer, sse_head
from tests.running import Config

OK = {"choices": [{"message": {"content": "hi"}}]}
CALL = Call("chat/completions", b'{"model": "m"}', Fields(()), "id")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's clocks and filters of sockets")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (upstream, protocol):
        monkeypatch.setattr(module, "GONE", 1)
    monkeypatch.setattr(listener, "CLIENT_GONE", 1)


async def test_a_box_that_is_gone_is_told_from_one_that_thinks(config: Config) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Pause(go_on), Send(json_answer(OK))]) as thinks,
        ScriptedUpstream([Vanish()]) as gone,
        ScriptedUpstream([Send(json_answer(OK))]) as good,
        running(
            config, {"slow": chain(thinks.url), "m": chain(gone.url, good.url)}, timeouts={"first_token": 0}
        ) as gate,
        gate.client() as client,
    ):
        await client.send(ask("slow"))
        await thinks.arrived()
        answer = await gate.post("m")
        assert (answer.status, answer.head.get("x-gateway-deployment")) == (200, "b")
        assert await gate.failures() == ["unreachable", None]
        assert gate.outcomes[-1].attempts[0].detail == "ETIMEDOUT"
        assert len(gone.requests) == 1
        go_on.set()
        answer = await client.read_answer()
        assert (answer.status, answer.head.get("x-gateway-attempts")) == (200, "1")


async def test_a_box_that_went_while_its_connection_waited_is_asked_once() -> None:
    async with ScriptedUpstream([Send(json_answer({})), Vanish()]) as box:
        asking = Upstream()
        answer = await asking.open(deployment(box.url), CALL, connect_timeout=5)
        assert await answer.read(99) == b"{}"
        with pytest.raises(AttemptFailedError) as failed:
            await asking.open(deployment(box.url), CALL, connect_timeout=5)
        failure = failed.value.failure
        assert (failure.cause, failure.detail, failure.stale) == (Cause.UNREACHABLE, "ETIMEDOUT", False)
        assert box.connections == 1
        await asking.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stream_whose_box_is_gone_breaks(transport: Transport) -> None:
    async with ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Vanish()]) as box:
        asking = Upstream(transport=transport)
        answer = await asking.open(deployment(box.url), CALL, connect_timeout=5)
        assert await answer.chunk() == CONTENT
        with pytest.raises(AttemptFailedError) as failed:
            await answer.chunk()
        failure = failed.value.failure
        assert (failure.cause, failure.detail) == (Cause.CUT_ANSWER, "the body was cut short (ETIMEDOUT)")
        answer.close()
        await asking.close()


async def test_a_client_that_is_gone_frees_its_box(config: Config) -> None:
    async with (
        ScriptedUpstream([Hang()]) as box,
        running(config, {"m": chain(box.url)}, timeouts={"first_token": 0}) as gate,
        gate.client() as client,
    ):
        await client.send(ask())
        await box.arrived()
        client.vanish()
        await box.closed_by_peer()
        assert (await gate.outcome()).failure == "client_left"
