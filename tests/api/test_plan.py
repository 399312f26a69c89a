"""What the gateway tells of the plan in force."""

import json
import re

import msgspec

from gateway.api.plan import InForce
from tests.execution.support import chain, running
from tests.fakes.client import get
from tests.fakes.connection import PATIENCE
from tests.running import Config, until

KEY = "sk-secret-0123456789"


async def test_the_plan_in_force_is_told_without_its_keys(config: Config) -> None:
    route = {"a": {"base_url": "http://127.0.0.1:1", "api_key": KEY}, "b": {"base_url": "${B_URL}"}}
    async with running(config, {"m": route}) as gate:
        answer = await gate.say(get("/routing/plan"))
        assert KEY not in answer.body.decode()
        told = msgspec.json.decode(answer.body, type=InForce)
        assert (told.generation, told.plan) == (1, gate.gateway.manager.outline)
        assert answer.head.get("x-gateway-generation") == "1"
        assert told.hash == json.loads((await gate.say(get("/routing"))).body)["hash"]
        assert told.plan is not None
        (model,) = told.plan.models
        assert [(each.name, each.has_key, each.weight) for each in model.deployments] == [("a", True, 1.0)]
        assert [(each.name, each.variable) for each in model.inactive] == [("b", "B_URL")]


async def test_without_a_configuration_there_is_no_plan(config: Config) -> None:
    async with running(config) as gate:
        assert (await gate.say(get("/routing/plan"))).json() == {"generation": 0, "hash": None, "plan": None}


async def test_the_history_of_two_good_saves_and_a_bad_one(config: Config) -> None:
    async with running(config, {"m": chain("http://127.0.0.1:1", "http://127.0.0.1:2")}) as gate:
        config.routing(timeout=6)
        await until(lambda: gate.gateway.state.history[-1].generation == 2)
        config.routing(timeuot=7)
        await until(lambda: gate.gateway.state.faults)
        config.models(m=chain("http://127.0.0.1:1"))
        config.routing(timeout=6)
        await until(lambda: gate.gateway.state.history[-1].generation == 3)
        reload = (await gate.say(get("/routing"))).json()["reload"]
        newest, *between, bad, good, first = reload["history"]
        assert all(reading["result"] == "rejected" for reading in between)  # each content that was read is one
        assert (newest["result"], newest["changes"]) == ("accepted", {"deployments_removed": ["m/b"]})
        assert (bad["result"], bad["generation"]) == ("rejected", 2)
        assert [fault["path"] for fault in bad["faults"]] == ["timeuot"]
        assert (good["generation"], good["changes"]) == (2, {"settings": [f"timeout: {PATIENCE:g} -> 6"]})
        assert sorted(first) == ["at", "generation", "hash", "result"]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["at"]) for each in reload["history"])
        logged = [record for record in await gate.log() if record["event"] == "config.reloaded"]
        told = [
            {"time": 0, "level": 0, "event": 0, "generation": each["generation"], "hash": each["hash"]}
            | each["changes"]
            for each in (good, newest)
        ]
        assert [record | {"time": 0, "level": 0, "event": 0} for record in logged] == told
