"""Base URLs that lead back to the gateway: a request used to be asked of it again until no connection was left."""

import re

import pytest

from tests.execution.support import CHAT, chain, error_of, running
from tests.fakes.client import post
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer
from tests.running import Config

ANSWER = Send(json_answer({"choices": []}))
OWN = re.compile(r"1\.1 hybrid-inference-gateway-[0-9a-f]{8}")
OTHER = "1.1 hybrid-inference-gateway-0123456z"
LOOP = "no deployment of 'm' answered, {} attempts made; one said: "
BACK = "the request has been here before: a base URL leads back to this gateway"


@pytest.fixture
def there(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(tmp_path_factory.mktemp("there"))


async def test_a_gateway_that_is_its_own_box_says_so(config: Config) -> None:
    async with running(config, {"m": chain("http://127.0.0.1:1")}) as gate:
        config.models(m=chain(gate.url))
        gate.gateway.reloader.request()
        await gate.until_generation(2)
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["message"]) == (502, LOOP.format(2) + BACK)
        inner = [outcome for outcome in gate.outcomes if outcome.failure == "loop_detected"]
        assert [(outcome.status, outcome.attempts) for outcome in inner] == [(508, ())] * 2


async def test_a_loop_over_two_gateways_is_found(config: Config, there: Config) -> None:
    async with running(config, {"m": chain("http://127.0.0.1:1")}) as here:
        async with running(there, {"m": chain(here.url)}) as other:
            config.models(m=chain(other.url))
            here.gateway.reloader.request()
            await here.until_generation(2)
            answer = await here.post("m")
        assert answer.status == 502
        assert BACK in error_of(answer)["message"]
        assert {outcome.failure for outcome in here.outcomes} == {"loop_detected", "server_error"}


@pytest.mark.parametrize("fields", [(), ("1.1 Caddy", "HTTP/2 cdn (secret), " + OTHER)])
async def test_an_upstream_learns_of_no_proxy_before_the_first_gateway(config: Config, fields: tuple[str, ...]) -> None:
    known = "1.1 hybrid-inference-gateway-01234567"
    came = [("via", field) for field in (*fields, f"1.0 fred, {known}")]
    async with (
        ScriptedUpstream([ANSWER]) as box,
        running(config, {"m": chain(box.url)}) as gate,
        gate.client() as client,
    ):
        for _ in range(4):
            await client.send(post(CHAT, {"model": "m"}, came))
            assert (await client.read_answer()).status == 200
        passed = {value for request in box.requests for value in request.values("via")}
        (via,) = passed
        first, own = via.split(", ")
        assert first == known
        assert OWN.fullmatch(own)
        await client.send(post(CHAT, {"model": "m"}, [*came, ("via", own)]))
        assert (await client.read_answer()).status == 508
