"""Second tries, tiers, fallback models and what the client is told in the end, at the wire."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.execution.support import CONTENT, DONE, ask, chain, running
from tests.fakes.upstream import (
    Hang,
    ScriptedUpstream,
    Send,
    chunk,
    json_answer,
    last_chunk,
    refused_url,
    sse_head,
    status,
)
from tests.running import Config, entries, until

OK = {"choices": [{"message": {"content": "hi"}}]}
GOOD = [Send(json_answer(OK))]
LIMITED = {"error": {"message": "slow down"}}
TOO_LONG = {"error": {"message": "maximum context length is 100 tokens", "code": "context_length_exceeded"}}


def limited(*headers: tuple[str, str]) -> Send:
    return Send(json_answer(LIMITED, 429, headers))


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


async def test_a_rate_limit_is_waited_for(config: Config) -> None:
    async with (
        ScriptedUpstream(lambda index, _: GOOD if index else [limited(("retry-after", "2"))]) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json(), answer.head.get("x-gateway-attempts")) == (200, OK, "2")
        assert (gate.delays, len(a.requests), await gate.failures()) == ([2.0], 2, ["rate_limited", None])
        assert (answer.head.get("x-gateway-deployment"), b.requests) == ("a", [])


DAY = "Wed, 21 Oct 2015 07:28:00"


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ([("retry-after", "3")], 3, 3),
        ([("retry-after", "0.5")], 0.5, 0.5),
        ([("retry-after", "2"), ("retry-after-ms", "1500")], 1.5, 1.5),
        ([("retry-after-ms", "soon"), ("retry-after", "1")], 1, 1),
        *(
            ([("retry-after", given)], 0.25, 0.25)
            for given in ("4", "86400", "soon", "", "-1", "inf", "nan", "Wed, 99 Foo 2015", f"{DAY} +{'9' * 20}")
        ),
        ([], 0.25, 0.25),
    ],
)
async def test_a_short_retry_after_is_waited_for_and_no_long_one(
    config: Config, headers: list[tuple[str, str]], least: float, most: float
) -> None:
    async with (
        ScriptedUpstream(lambda index, _: GOOD if index else [limited(*headers)]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        gate.gateway.executor._dice = lambda: 0.5
        assert (await gate.post("m")).status == 200
        (delay,) = gate.delays
        assert least <= delay <= most


@pytest.mark.parametrize(
    ("given", "delays"), [("0", []), (f"{DAY} GMT", []), (f"{DAY} +0200", []), (f"{DAY} -0000", [0.25])]
)
async def test_a_time_that_has_passed_is_not_waited_for(config: Config, given: str, delays: list[float]) -> None:
    """A date in a zone that nobody knows is none."""
    script = limited(("retry-after", given))
    async with (
        ScriptedUpstream(lambda index, _: GOOD if index else [script]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        gate.gateway.executor._dice = lambda: 0.5
        assert (await gate.post("m")).status == 200
        assert gate.delays == delays


async def test_a_date_that_is_near_is_waited_for(config: Config) -> None:
    async with (
        ScriptedUpstream(lambda index, _: GOOD if index else [limited(("retry-after", http_date(2.5)))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        gate.gateway.executor._dice = lambda: 100.0
        assert (await gate.post("m")).status == 200
        (delay,) = gate.delays
        assert 0 <= delay <= 2.5


async def test_a_rate_limit_for_ever_is_bounded(config: Config) -> None:
    async with (
        ScriptedUpstream([limited(("retry-after", "2"))]) as a,
        ScriptedUpstream(GOOD) as b,
        running(config, {"m": chain(a.url, b.url), "alone": chain(a.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.json(), answer.head.get("x-gateway-deployment")) == (OK, "b")
        assert (gate.delays, len(a.requests), len(b.requests)) == ([2.0], 2, 1)
        alone = await gate.post("alone")
        assert (alone.status, alone.json(), alone.head.get("retry-after")) == (429, LIMITED, "2")
        assert (gate.delays, len(a.requests)) == ([2.0, 2.0], 4)


async def test_an_error_that_passes_is_absorbed_where_it_was(config: Config) -> None:
    async with (
        ScriptedUpstream(lambda index, _: GOOD if index else [Send(status(500, "No"))]) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        gate.gateway.executor._dice = lambda: 0.0
        answer = await gate.post("m")
        assert (answer.json(), answer.head.get("x-gateway-deployment")) == (OK, "a")
        assert (gate.delays, len(a.requests), b.requests) == ([0.125], 2, [])
        outcome = await gate.outcome()
        assert (outcome.fallback, await gate.failures()) == (False, ["server_error", None])


async def test_siblings_come_before_a_second_try_and_that_before_the_next_tier(config: Config) -> None:
    bad = [Send(status(500, "No"))]
    async with (
        ScriptedUpstream(lambda _, request: GOOD if request.target[1] == "c" else bad) as box,
        running(
            config,
            {"m": {name: {"base_url": f"{box.url}/{name}", "weight": int(name != "c")} for name in "abc"}},
        ) as gate,
    ):
        assert (await gate.post("m")).json() == OK
        first, second, again, last = (request.target[1] for request in box.requests)
        assert ({first, second}, again, last) == ({"a", "b"}, first, "c")
        assert len(gate.delays) == 1


@pytest.mark.parametrize(("retries", "tries"), [({"attempts": 1}, 1), ({"attempts": 3}, 3), ({"ratio": 0}, 4), ({}, 6)])
async def test_attempts_are_bounded(config: Config, retries: dict[str, object], tries: int) -> None:
    async with (
        ScriptedUpstream([Send(status(500, "No"))]) as box,
        running(config, {"m": chain(*[f"{box.url}/{place}" for place in range(4)])}, retries=retries) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.head.get("x-gateway-attempts")) == (502, str(tries))
        assert (len(box.requests), len(await gate.failures())) == (tries, tries)


async def test_an_outage_is_not_multiplied(config: Config) -> None:
    bad = [Send(status(500, "No"))]
    async with (
        ScriptedUpstream(lambda _, request: bad if "bad" in request.json() else GOOD) as a,
        running(config, {"m": chain(a.url)}, retries={"ratio": 0.1}) as gate,
    ):
        gate.gateway.executor._clock = lambda: 100.0
        for _ in range(20):
            statuses = [(await gate.post({"model": "m", **fields})).status for fields in ({}, {}, {"bad": 1})]
            assert statuses == [200, 200, 502]
        assert len(a.requests) == 60 + 10


@pytest.mark.parametrize("first", [status(500, "No"), json_answer({"error": "no"}), b"SSH-2.0\r\n\r\n"])
async def test_a_rate_limit_tells_more_than_other_failures(config: Config, first: bytes) -> None:
    async with (
        ScriptedUpstream([Send(first), Hang()] if first.startswith(b"SSH") else [Send(first)]) as a,
        ScriptedUpstream([limited(("retry-after", "9"))]) as b,
        running(config, {"m": chain(a.url, b.url, refused_url())}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json(), answer.head.get("retry-after")) == (429, LIMITED, "9")
        assert answer.head.get("x-gateway-deployment") == "b"
        assert (await gate.outcome()).failure == "rate_limited"


@pytest.mark.parametrize("order", [1, -1])
async def test_the_clients_own_error_tells_most(config: Config, order: int) -> None:
    async with (
        ScriptedUpstream([limited()]) as a,
        ScriptedUpstream([Send(json_answer(TOO_LONG, 400))]) as b,
        running(config, {"m": chain(*[a.url, b.url][::order])}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json(), answer.head.get("x-gateway-deployment")) == (
            400,
            TOO_LONG,
            {1: "b", -1: "a"}[order],
        )
        assert (await gate.outcome()).failure == "context_length"


def sized(config: Config, *models: tuple[str, int | None, dict[str, object], list[str]]) -> None:
    """Write models.yaml: of each model the id, the context length, the route, the fallbacks."""
    written = [
        {
            "id": name,
            "route": entries(route),
            "fallbacks": fallbacks,
            **({} if length is None else {"context_length": length}),
        }
        for name, length, route, fallbacks in models
    ]
    config.save("models.yaml", json.dumps({"models": written}))


@pytest.mark.parametrize("answer", [json_answer(TOO_LONG, 400), json_answer(TOO_LONG), json_answer(TOO_LONG, 413)])
async def test_a_prompt_that_is_too_long_goes_only_where_more_fits(config: Config, answer: bytes) -> None:
    async with (
        ScriptedUpstream([Send(answer)]) as a,
        ScriptedUpstream() as other,
        ScriptedUpstream(GOOD) as big,
    ):
        sized(
            config,
            ("m", 100, chain(a.url, other.url), ["same", "unknown", "big"]),
            ("same", 100, chain(other.url), []),
            ("unknown", None, chain(other.url), []),
            ("big", 1000, chain(big.url), []),
        )
        async with running(config) as gate:
            got = await gate.post("m")
            assert (got.status, got.json(), got.head.get("x-gateway-attempts")) == (200, OK, "2")
            outcome = await gate.outcome()
            assert (outcome.served_model, outcome.fallback) == ("big", True)
            assert (big.requests[0].json()["model"], len(a.requests), other.requests) == ("big", 1, [])


async def test_a_prompt_that_fits_nowhere_is_the_clients_error(config: Config) -> None:
    async with ScriptedUpstream([Send(json_answer(TOO_LONG, 400))]) as a, ScriptedUpstream() as b:
        sized(config, ("m", 100, chain(a.url, b.url), ["small"]), ("small", 50, chain(b.url), []))
        async with running(config) as gate:
            answer = await gate.post("m")
            assert (answer.status, answer.json()) == (400, TOO_LONG)
            assert (answer.head.get("x-gateway-deployment"), answer.head.get("x-gateway-attempts")) == ("a", "1")
            assert (len(a.requests), b.requests, gate.delays) == (1, [], [])


async def test_a_policys_refusal_reaches_the_client_at_once(config: Config) -> None:
    refusal = {"error": {"message": "m requires moderation, your input was flagged", "code": 403}}
    async with (
        ScriptedUpstream([Send(json_answer(refusal, 403))]) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json()) == (403, refusal)
        assert (len(a.requests), b.requests, await gate.failures()) == (1, [], [None])


async def test_a_fallback_model_serves_when_all_else_failed(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(status(503, "No"))]) as a,
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT + DONE) + last_chunk())]) as b,
    ):
        sized(config, ("m", None, chain(a.url, refused_url()), ["n"]), ("n", None, chain(b.url), []))
        async with running(config) as gate:
            answer = await gate.say(ask(stream=True))
            assert (answer.body, answer.head.get("x-gateway-attempts")) == (CONTENT + DONE, "4")
            assert b.requests[0].json()["model"] == "n"
            assert await gate.failures() == ["server_error", "server_error", "connect_refused", None]
            assert [attempt.model for attempt in gate.outcomes[0].attempts] == ["m", "m", "m", "n"]
            assert (gate.outcomes[0].model, gate.outcomes[0].served_model) == ("m", "n")


async def test_a_model_that_waits_for_a_variable_is_served_by_its_fallback(config: Config) -> None:
    async with ScriptedUpstream(GOOD) as a, ScriptedUpstream() as b:
        sized(config, ("m", None, chain("${NOWHERE}"), ["n"]), ("n", None, chain(a.url, b.url), []))
        async with running(config) as gate:
            answer = await gate.post("m")
            assert (answer.json(), answer.head.get("x-gateway-attempts")) == (OK, "1")
            assert (a.requests[0].json()["model"], b.requests) == ("n", [])


async def test_a_client_that_leaves_in_a_back_off_is_noticed(config: Config) -> None:
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with (
        ScriptedUpstream([Send(status(500, "No"))]) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        gate.gateway.executor._sleep = sleep
        async with gate.client() as client:
            await client.send(ask())
            await waiting.wait()
            await client.abort()
            outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, await gate.failures()) == (
            499,
            "client_left",
            ["server_error", "client_left"],
        )
        await until(lambda: gate.gateway.active == 0)
        assert (len(a.requests), b.requests, gate.gateway.executor.in_flight["m", "a"]) == (1, [], 0)
