"""What the gateway tells of breakers, of boxes that load, and of fallbacks."""

from datetime import datetime
from typing import Any

from gateway import __version__
from tests.execution.support import Running, ask, chain, running
from tests.fakes.client import get
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer, status
from tests.running import Config

NOWHERE = "http://127.0.0.1:1"
CLOSED = {"state": "closed", "since": None, "reason": None}
LOADING = status(503, "No", b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}')


async def tell(gate: Running, target: str) -> Any:
    return (await gate.say(get(target))).json()


async def deployments(gate: Running) -> dict[str, Any]:
    [model] = (await tell(gate, "/routing"))["models"]
    return {deployment["name"]: deployment for deployment in model["deployments"]}


async def test_a_breaker_is_told_of_with_its_reason_and_since_when(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as b,
        running(config, {"m": chain(NOWHERE, b.url)}) as gate,
    ):
        assert [each["breaker"] for each in (await deployments(gate)).values()] == [CLOSED, CLOSED]
        for _ in range(5):
            assert (await gate.say(ask())).status == 200
        told = await deployments(gate)
        assert (told["a"]["breaker"]["state"], told["a"]["breaker"]["reason"]) == ("open", "connect_refused")
        since = datetime.fromisoformat(told["a"]["breaker"]["since"])
        assert abs((since - datetime.now(since.tzinfo)).total_seconds()) < 60
        assert (told["a"]["effective_weight"], told["b"]["effective_weight"]) == (0, 1)
        assert told["b"]["breaker"] == CLOSED
        assert await tell(gate, "/health") == {"status": "degraded", "down": [], "out": ["m/a"], "version": __version__}


async def test_a_box_that_loads_is_told_of_as_such(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(LOADING)]) as a,
        ScriptedUpstream([Send(json_answer({}))]) as b,
        running(config, {"m": chain(a.url, b.url)}, health_check=3600) as gate,
    ):
        assert (await gate.say(ask())).status == 200
        told = (await deployments(gate))["a"]
        assert (told["health"]["state"], told["health"]["reason"]) == ("loading", "loading")
        assert told["breaker"] == CLOSED
        health = await tell(gate, "/health")
        assert (health["status"], health["down"], health["loading"]) == ("degraded", [], [a.url])
