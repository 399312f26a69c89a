"""What the gateway tells of itself."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway import __version__
from gateway.routing.snapshot import Snapshot
from tests.execution.support import CONTENT, Running, ask, chain, read_broken, running
from tests.fakes.client import get
from tests.fakes.upstream import (
    Close,
    Hang,
    Request,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    sse_head,
    status,
)
from tests.running import Config, split, until

KEY = "sk-secret-0123456789"


async def tell(gate: Running, target: str) -> Any:
    answer = await gate.say(get(target))
    assert answer.head.get("content-type") == "application/json"
    return answer.json()


def box(_: int, request: Request) -> list[Step]:
    """Fail the first attempts and the probes of a box."""
    return [Send(status(503, "No"))] if request.target == "/health" else [Send(json_answer({}))]


async def test_health_is_ok_until_something_is_down(config: Config) -> None:
    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream([Send(json_answer({}))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert await tell(gate, "/health") == {"status": "ok", "down": [], "version": __version__}
        assert await tell(gate, "/health/ready") == {"status": "ready"}
        config.routing(health_check=0.05)
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.down)
        assert await tell(gate, "/health") == {"status": "degraded", "down": [a.url], "version": __version__}
        assert (await gate.say(get("/health"))).status == 200
        assert await tell(gate, "/health/ready") == {"status": "ready"}


async def test_readiness_ends_with_draining(config: Config) -> None:
    async with running(config, {"m": chain("http://127.0.0.1:1")}) as gate, gate.client() as client:
        gate.gateway.draining = True
        await client.send(get("/health/ready"))
        answer = await client.read_answer()
        assert (answer.status, answer.json(), answer.head.get("connection")) == (503, {"status": "draining"}, "close")
        assert await client.read_to_end() == b""
        gate.gateway.draining = False


async def test_without_a_configuration_it_lives_but_is_not_ready(config: Config) -> None:
    config.save("models.yaml", f"models: [{{api_key: {KEY}}}]\n")
    async with running(config) as gate:
        assert await tell(gate, "/health") == {"status": "degraded", "down": [], "version": __version__}
        answer = await gate.say(get("/health/ready"))
        assert (answer.status, answer.json()) == (503, {"status": "no_configuration"})
        routing = await tell(gate, "/routing")
        assert (routing["generation"], routing["hash"], routing["strategy"], routing["models"]) == (0, None, None, [])
        assert routing["reload"]["accepted_at"] is None
        assert routing["reload"]["rejected_at"].endswith("Z")
        (fault,) = routing["reload"]["faults"]
        assert (fault["line"], fault["path"]) == (1, "models[0].id")
        assert KEY not in json.dumps(routing)


@pytest.mark.parametrize(("number", "boxes", "most"), [(120, 1, 50), (20, 8, 7)])
async def test_many_models_do_not_hold_the_event_loop(
    config: Config, monkeypatch: pytest.MonkeyPatch, number: int, boxes: int, most: int
) -> None:
    """They used to be described in one go, and then those of a thousand boxes fifty in one."""
    turn = 0

    async def turning() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    urls = [f"http://127.0.0.1:1/{box}" for box in range(boxes)]
    models = {f"m{each}": chain(*urls) for each in range(number)}
    async with running(config, models) as gate:
        describe, seen = gate.gateway.models.of, list[int]()

        def of(snapshot: Snapshot, model: str) -> dict[str, object]:
            seen.append(turn)
            return describe(snapshot, model)

        monkeypatch.setattr(gate.gateway.models, "of", of)
        loop = asyncio.create_task(turning())
        routing = await tell(gate, "/routing")
        loop.cancel()
        assert [model["id"] for model in routing["models"]] == [*models]
        assert max(Counter(seen).values()) <= most


async def test_a_reload_while_models_are_described_is_not_told_yet(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {f"m{number}": chain("http://127.0.0.1:1") for number in range(120)}
    async with running(config, models) as gate:
        describe, state = gate.gateway.models.of, gate.gateway.state

        def of(snapshot: Snapshot, model: str) -> dict[str, object]:
            if model == "m0":
                asyncio.get_running_loop().call_soon(state.accept, state.history[0].at, 2, "other", ())
            return describe(snapshot, model)

        monkeypatch.setattr(gate.gateway.models, "of", of)
        routing = await tell(gate, "/routing")
        assert (routing["generation"], len(routing["models"])) == (1, 120)
        assert [reading["generation"] for reading in routing["reload"]["history"]] == [1]
        assert len(state.history) == 2


async def test_what_waits_is_told_of_the_configuration_in_force(config: Config) -> None:
    async with running(config, {"m": {"a": {"base_url": "http://127.0.0.1:1"}}}) as gate:
        assert (await tell(gate, "/routing"))["models"][0]["inactive"] == []
        config.models(m={"a": {"base_url": "http://127.0.0.1:1"}, "later": {"base_url": "${LATER_URL}"}})
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.generation == 2)
        waits = {"name": "later", "group": "unlisted", "waits_for": "LATER_URL"}
        assert (await tell(gate, "/routing"))["models"][0]["inactive"] == [waits]


async def test_routing_tells_how_requests_are_routed(config: Config) -> None:
    async with ScriptedUpstream(box) as a, ScriptedUpstream(box) as b:
        route = {
            "near": {"base_url": a.url, "api_key": KEY, "provider_model_id": "big"},
            "far": {"base_url": b.url, "kind": "openai", "api_key": KEY},
            "later": {"base_url": "${LATER_URL}"},
        }
        async with running(
            config,
            {"m": route},
            local_deployment=split([a.url], "m"),
            remote_deployment=split([b.url], "m"),
            routing_parameter={"local_fraction": 0.6, "selection": "smooth"},
        ) as gate:
            for _ in range(5):
                assert (await gate.post("m")).status == 200
            told = await tell(gate, "/routing")
            (model,) = told.pop("models")
            reload = told.pop("reload")
            assert told == {
                "generation": 1,
                "revision": 0,
                "hash": told["hash"],
                "strategy": "fixed",
                "parameters": {"local_fraction": 0.6, "selection": "smooth"},
                "log": {"dropped": 0},
                "ledger": {
                    "url": None,
                    "retention_days": 30.0,
                    "problem": None,
                    "written": 0,
                    "waiting": 0,
                    "dropped": 0,
                },
            }
            assert (reload["faults"], reload["rejected_at"], len(reload["warnings"])) == ([], None, 1)
            assert (model["id"], model["selection"]) == ("m", "smooth")
            assert model["inactive"] == [{"name": "later", "group": "unlisted", "waits_for": "LATER_URL"}]
            near, far = model["deployments"]
            assert near == {
                "name": "near",
                "group": "local",
                "endpoint": a.url,
                "kind": "vllm",
                "provider_model_id": "big",
                "configured_weight": 0.6,
                "effective_weight": 0.6,
                "delivered_share": 0.6,
                "requests": 3,
                "failures": 0,
                "in_flight": 0,
                "health": {"state": "unknown", "since": None, "reason": None},
                "breaker": {"state": "closed", "since": None, "reason": None},
            }
            assert (far["name"], far["group"], far["kind"], far["requests"]) == ("far", "remote", "openai", 2)
            assert KEY not in json.dumps([told, reload, model])


async def test_routing_tells_of_health_failures_and_requests_under_way(config: Config) -> None:
    def script(_: int, request: Request) -> list[Step]:
        return [Send(sse_head() + chunk(CONTENT)), Hang()] if request.target != "/health" else [Hang()]

    async with (
        ScriptedUpstream(box) as a,
        ScriptedUpstream(script) as b,
        running(config, {"m": chain(a.url, b.url)}, health_check=3600) as gate,
        gate.client() as client,
    ):
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.down)
        await client.send(ask(stream=True))
        assert (await client.read_head()).get("x-gateway-deployment") == "b"
        told = await tell(gate, "/routing")
        assert (told["generation"], told["revision"]) == (1, 1)
        up, down = told["models"][0]["deployments"]
        assert (up["name"], up["in_flight"], up["requests"]) == ("b", 1, 0)
        assert (up["configured_weight"], up["effective_weight"], up["delivered_share"]) == (0, 1, None)
        assert (down["name"], down["in_flight"], down["effective_weight"]) == ("a", 0, 0)
        assert (down["health"]["state"], down["health"]["reason"]) == ("down", "status 503")
        assert down["health"]["since"].endswith("Z")


async def test_a_failed_attempt_counts_against_its_deployment(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Close()]) as a,
        running(config, {"m": chain("http://127.0.0.1:1", a.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await read_broken(client)
        await gate.outcome()
        first, second = (await tell(gate, "/routing"))["models"][0]["deployments"]
        assert (first["requests"], first["failures"]) == (0, 1)
        assert (second["requests"], second["failures"], second["in_flight"]) == (0, 1, 0)


async def test_every_field_is_told(config: Config) -> None:
    routes = {"m": {"a": "http://127.0.0.1:1", "b": "${NOWHERE}"}}
    async with running(config, routes) as gate:
        health, routing = [await tell(gate, target) for target in ("/health", "/routing")]
    [model] = routing["models"]
    [deployment], [inactive] = model["deployments"], model["inactive"]
    page = (Path(gateway.__file__).parents[1] / "docs" / "monitoring.md").read_text()
    told = set(re.findall(r"`(\w+)`", page.partition("## /health and /routing\n")[2].partition("\n## ")[0]))
    places = (health, routing, routing["reload"], routing["log"], model, deployment, deployment["health"], inactive)
    assert set().union(*places) <= told
