"""Boxes that are out: the breaker and what it leaves alone, and boxes that load, at the wire."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.execution.support import CONTENT, DONE, Running, ask, chain, error_of, running
from tests.fakes.client import get
from tests.fakes.upstream import (
    Hang,
    Pause,
    Request,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
    sse_head,
    status,
)
from tests.running import Config, until

OK = {"choices": [{"message": {"content": "hi"}}]}
GOOD = [Send(json_answer(OK))]
DOWN = [Send(status(503, "No"))]


class Clock:
    """The executor's time, which stands still."""

    def __init__(self, gate: Running) -> None:
        self.now = float(int(time.monotonic()))  # whole, so that sums of tenths come out even
        gate.gateway.executor._clock = lambda: self.now


class Box:
    """A script that can be changed: what the box does now."""

    def __init__(self, steps: Sequence[Step] = DOWN) -> None:
        self.steps = steps

    def __call__(self, _: int, __: Request) -> Sequence[Step]:
        return self.steps


async def breaker(gate: Running, name: str = "a") -> dict[str, Any]:
    """Give what /routing says of a deployment's breaker."""
    (model,) = (await gate.say(get("/routing"))).json()["models"]
    (found,) = [each["breaker"] for each in model["deployments"] if each["name"] == name]
    return dict(found)


async def changes(gate: Running, event: str = "breaker.changed") -> list[tuple[object, ...]]:
    """Give the log's changes: level, was, now."""
    return [(record["level"], record["was"], record["now"]) for record in await gate.log() if record["event"] == event]


async def test_a_box_that_fails_is_left_alone_until_it_is_back(config: Config) -> None:
    box = Box()
    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        clock = Clock(gate)

        async def asked() -> tuple[int, str | None]:
            before = len(a.requests)
            answer = await gate.post("m")
            assert (answer.status, answer.json()) == (200, OK)
            return len(a.requests) - before, answer.head.get("x-gateway-deployment")

        assert [await asked() for _ in range(4)] == [(2, "b")] * 4
        assert (await breaker(gate))["state"] == "closed"
        assert await asked() == (1, "b")
        told = await breaker(gate)
        assert (told["state"], told["reason"]) == ("open", "server_error (status 503)")
        assert told["since"].endswith("Z")
        assert await asked() == (0, "b")
        clock.now += 14.9
        assert await asked() == (0, "b")
        clock.now += 0.1
        assert await asked() == (1, "b")
        clock.now += 29.9
        assert await asked() == (0, "b")
        clock.now += 0.1
        box.steps = GOOD
        assert await asked() == (1, "a")
        assert (await breaker(gate))["state"] == "closed"
        assert await asked() == (1, "a")
        assert await changes(gate) == [("warning", "closed", "open"), ("info", "half_open", "closed")]
        (opened, _) = gate.config.records("breaker.changed")
        assert (opened["model"], opened["deployment"], opened["reason"]) == ("m", "a", "server_error (status 503)")
        snapshot = gate.gateway.manager.snapshot
        assert snapshot is not None
        assert snapshot.out == frozenset()


async def test_what_ended_before_a_change_is_logged_before_it(config: Config) -> None:
    """Requests wait for the log for a moment; a change does not."""
    async with (
        ScriptedUpstream(DOWN) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}, breaker={"failures": 3}) as gate,
    ):
        for _ in range(3):
            await gate.post("m")
        events = [record["event"] for record in await gate.log()]
        assert [event for event in events if event in {"request", "breaker.changed"}] == [
            "request",
            "request",
            "breaker.changed",
            "request",
        ]


async def test_one_request_alone_shows_whether_a_box_is_back(config: Config) -> None:
    box, go_on = Box(), asyncio.Event()
    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}, breaker={"failures": 1}) as gate,
        gate.client() as client,
    ):
        clock = Clock(gate)
        await gate.post("m")
        clock.now += 15
        box.steps = [Send(sse_head()), Pause(go_on), Send(chunk(CONTENT + DONE) + last_chunk())]
        await client.send(ask(stream=True))
        await a.arrived(2)
        assert (await breaker(gate))["state"] == "half_open"
        assert (await gate.post("m")).head.get("x-gateway-deployment") == "b"
        assert len(a.requests) == 2
        go_on.set()
        assert (await client.read_answer()).body == CONTENT + DONE
        assert (await breaker(gate))["state"] == "closed"


async def test_a_box_that_is_let_in_on_the_way_gives_the_next_one_its_turn(config: Config) -> None:
    """It is asked after the one that was drawn, and let in at a time of its own."""
    box, other = Box(), Box()
    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream(other) as b,
        running(config, {"m": chain(a.url, b.url)}, breaker={"failures": 1}) as gate,
        gate.client() as first,
        gate.client() as second,
    ):
        clock = Clock(gate)
        assert (await gate.post("m")).status == 502
        clock.now += 15
        box.steps = other.steps = [Hang()]
        await first.send(ask())
        await a.arrived(2)
        gate.gateway.executor._clock = itertools.count(clock.now, 0.125).__next__
        await second.send(ask())
        await b.arrived(2)
        assert [(await breaker(gate, name))["state"] for name in ("a", "b")] == ["half_open", "half_open"]
        await second.abort()
        await gate.outcome(2)
        assert [(await breaker(gate, name))["state"] for name in ("a", "b")] == ["half_open", "open"]


async def test_a_client_that_leaves_the_probe_gives_the_next_one_its_turn(config: Config) -> None:
    box = Box()
    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}, breaker={"failures": 1}) as gate,
    ):
        clock = Clock(gate)
        await gate.post("m")
        clock.now += 15
        box.steps = [Hang()]
        async with gate.client() as client:
            await client.send(ask())
            await a.arrived(2)
            await client.abort()
            await gate.outcome(2)
        assert (await breaker(gate))["state"] == "open"
        box.steps = GOOD
        assert (await gate.post("m")).head.get("x-gateway-deployment") == "a"


async def test_a_body_that_cannot_be_renamed_gives_the_next_one_its_turn(config: Config) -> None:
    box = Box()
    async with ScriptedUpstream(box) as a:
        route = {"a": {"base_url": a.url, "provider_model_id": "other"}}
        async with running(config, {"m": route}, breaker={"failures": 1}) as gate:
            clock = Clock(gate)
            await gate.post("m")
            clock.now += 15
            doubled = ask().replace(b"content-length: 14", b"content-length: 27").replace(b"{", b'{"model": "m",')
            assert (await gate.say(doubled)).status == 400
            box.steps = GOOD
            assert (await gate.post("m")).status == 200
            assert (await breaker(gate))["state"] == "closed"


async def test_when_everything_is_out_it_is_tried_anyway(config: Config) -> None:
    box = Box()
    async with (
        ScriptedUpstream(box) as a,
        running(config, {"m": chain(a.url)}, breaker={"failures": 1}) as gate,
    ):
        clock = Clock(gate)
        assert (await gate.post("m")).status == 502
        clock.now += 5
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"]) == (503, "all_deployments_failed")
        assert (answer.head.get("retry-after"), answer.head.get("x-gateway-attempts")) == ("10", "1")
        box.steps = GOOD
        assert (await gate.post("m")).status == 200
        assert (await breaker(gate))["state"] == "closed"


async def test_five_streams_in_a_row_that_break_open_the_breaker_of_a_box_that_was_good(config: Config) -> None:
    """The first content of each used to count as a success."""
    box = Box([Send(sse_head() + chunk(CONTENT + DONE) + last_chunk())])
    async with ScriptedUpstream(box) as a, running(config, {"m": chain(a.url)}) as gate:
        Clock(gate)
        for _ in range(20):
            await gate.post({"model": "m", "stream": True})
        box.steps = [Send(sse_head() + chunk(CONTENT) + last_chunk())]
        for _ in range(4):
            await gate.broken(ask(stream=True))
        assert (await breaker(gate))["state"] == "closed"
        await gate.broken(ask(stream=True))
        assert ((await breaker(gate))["state"], (await breaker(gate))["reason"]) == ("open", "cut_answer")


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (401, {"message": "incorrect API key"}, "key_refused (status 401)"),
        (402, {"message": "insufficient credits"}, "key_refused (status 402)"),
        (404, {"message": "the model `m` does not exist", "code": "model_not_found"}, "model_missing (status 404)"),
    ],
)
async def test_a_failure_that_lasts_is_an_error_in_the_log(
    config: Config, code: int, error: dict[str, object], reason: str
) -> None:
    async with (
        ScriptedUpstream([Send(json_answer({"error": error}, code))]) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        clock = Clock(gate)
        for _ in range(2):
            assert (await gate.post("m")).head.get("x-gateway-deployment") == "b"
        assert len(a.requests) == 1
        assert ((await breaker(gate))["state"], (await breaker(gate))["reason"]) == ("open", reason)
        assert await changes(gate) == [("error", "closed", "open")]
        clock.now += 59
        await gate.post("m")
        assert len(a.requests) == 1


@pytest.mark.parametrize(
    "answer", [json_answer({"error": "bad"}, 400), json_answer({"error": "bad"}, 422), status(501, "No")]
)
async def test_what_the_client_did_wrong_is_held_against_nobody(config: Config, answer: bytes) -> None:
    async with (
        ScriptedUpstream([Send(answer)]) as a,
        running(config, {"m": chain(a.url)}, breaker={"failures": 1}) as gate,
    ):
        for _ in range(3):
            await gate.post("m")
        assert (len(a.requests), (await breaker(gate))["state"]) == (3, "closed")
        assert await changes(gate) == []


LOADING = [Send(json_answer({"error": {"message": "Loading model", "code": 503}}, 503))]


async def test_a_box_that_loads_is_passed_over_and_asked_again(config: Config) -> None:
    box = Box(LOADING)
    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        manager = gate.gateway.manager
        assert (await gate.post("m")).head.get("x-gateway-deployment") == "b"
        assert (await gate.failures(), len(a.requests)) == (["loading", None], 1)
        assert manager.health(a.url).state == "loading"
        assert await changes(gate, "health.changed") == [("warning", "unknown", "loading")]
        assert await changes(gate) == []
        (model,) = (await gate.say(get("/routing"))).json()["models"]
        told = {each["name"]: each["health"]["state"] for each in model["deployments"]}
        assert told == {"a": "loading", "b": "unknown"}
        assert (await gate.post("m")).head.get("x-gateway-deployment") == "b"
        assert len(a.requests) == 1
        box.steps = GOOD
        await until(lambda: manager.health(a.url).state == "unknown")
        assert (await gate.post("m")).head.get("x-gateway-deployment") == "a"


async def test_a_box_that_loads_is_probed_soon(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.execution.probe.LOADING_INTERVAL", 0.01)
    probed: list[str] = []

    def script(_: int, request: Request) -> Sequence[Step]:
        if request.target != "/health":
            return LOADING
        probed.append(request.target)
        return LOADING if len(probed) in {2, 3} else [Send(status(200, "OK"))]

    async with (
        ScriptedUpstream(script) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}, health_check=3600) as gate,
    ):
        manager = gate.gateway.manager
        await until(lambda: manager.health(a.url).state == "up" and manager.health(b.url).state == "up")
        assert (await gate.post("m")).status == 200
        await until(lambda: len(probed) == 4 and manager.health(a.url).state == "up")
        assert [now for _, _, now in await changes(gate, "health.changed")] == ["up", "up", "loading", "up"]


async def test_a_single_box_that_loads_is_a_503(config: Config) -> None:
    async with ScriptedUpstream(LOADING) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"]) == (503, "all_deployments_failed")
        assert (answer.head.get("retry-after"), await gate.failures()) == ("1", ["loading"])
