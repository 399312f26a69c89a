"""Who may ask for models: whoever has a key that routing.yaml names, or everybody."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from tests.execution.support import CHAT, Running, chain, error_of, running
from tests.fakes.client import RawClient, get, post
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer
from tests.running import Config, until

ALICE, CI = "canary-alice", "canary-ci"
CLIENTS = [{"name": "alice", "api_key": ALICE}, {"name": "ci", "api_key": CI}]
ANSWER = Send(json_answer({"choices": []}))
NEEDED = "no API key was sent, expected Authorization: Bearer KEY"
UNKNOWN = "the API key is not known here"


def keyed(key: str, scheme: str = "Bearer") -> list[tuple[str, str]]:
    return [("authorization", f"{scheme} {key}")]


def refused(message: str) -> Mapping[str, object]:
    return {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}


@asynccontextmanager
async def guarded(config: Config, box: str = "http://127.0.0.1:1") -> AsyncIterator[Running]:
    async with running(config, {"m": chain(box)}, clients=CLIENTS) as gate:
        yield gate


async def ask(client: RawClient, *headers: tuple[str, str]) -> int:
    await client.send(post(CHAT, {"model": "m"}, headers))
    return (await client.read_answer()).status


async def test_who_has_a_key_is_answered_and_named_in_the_log(config: Config) -> None:
    async with ScriptedUpstream([ANSWER]) as box, guarded(config, box.url) as gate:
        for key, scheme in ((ALICE, "Bearer"), (CI, "bearer"), (CI, "BEARER  ")):
            assert (await gate.post("m", headers=keyed(key, scheme))).status == 200
        assert [record["client"] for record in await gate.log() if record["event"] == "request"] == [
            "alice",
            "ci",
            "ci",
        ]
        assert not any("authorization" in dict(request.headers) for request in box.requests)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], NEEDED),
        (keyed(""), UNKNOWN),
        (keyed("canary"), UNKNOWN),
        (keyed(ALICE, "Basic"), UNKNOWN),
        ([("authorization", ALICE)], UNKNOWN),
        ([("x-api-key", ALICE)], NEEDED),
    ],
)
@pytest.mark.parametrize("target", [CHAT, f"{CHAT}?no=short+way"])
async def test_who_has_none_is_refused(
    config: Config, headers: list[tuple[str, str]], target: str, message: str
) -> None:
    async with ScriptedUpstream() as box, guarded(config, box.url) as gate:
        answer = await gate.post("m", target, headers)
        assert (answer.status, error_of(answer)) == (401, refused(message))
        assert answer.head.get("www-authenticate") == "Bearer"
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.attempts) == (401, "invalid_api_key", ())
        assert "canary" not in config.log.read_text(encoding="utf-8")


async def test_models_are_listed_to_those_who_may_ask_for_them(config: Config) -> None:
    async with guarded(config) as gate:
        for target in ("/v1/models", "/v1/models/m"):
            assert (await gate.say(get(target, keyed(ALICE)))).status == 200
            answer = await gate.say(get(target))
            assert (answer.status, error_of(answer)) == (401, refused(NEEDED))


async def test_what_tells_of_the_gateway_is_told_to_everybody(config: Config) -> None:
    async with guarded(config) as gate:
        for target in ("/health", "/routing", "/routing/plan", "/metrics", "/"):
            answer = await gate.say(get(target))
            assert (answer.status, b"canary" in answer.body) == (200, False)


async def test_a_body_is_not_invited_from_who_has_no_key(config: Config) -> None:
    async with guarded(config) as gate, gate.client() as client:
        head, _, _ = post(CHAT, {"model": "m"}, [("expect", "100-continue")]).partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.read_answer()).status == 401


async def test_what_a_save_says_holds_for_connections_that_are_there(config: Config) -> None:
    """From a connection's third request on nothing of a head is read that says what the last one said."""
    async with (
        ScriptedUpstream([ANSWER]) as box,
        guarded(config, box.url) as gate,
        gate.client() as alice,
        gate.client() as bob,
    ):
        assert [await ask(alice, *keyed(ALICE)) for _ in range(4)] == [200] * 4
        assert [await ask(bob, *keyed("other")) for _ in range(4)] == [401] * 4
        await saved(gate, clients=[{"name": "bob", "api_key": "other"}])
        assert (await ask(alice, *keyed(ALICE)), await ask(bob, *keyed("other"))) == (401, 200)
        await saved(gate)
        assert (await ask(alice, *keyed(ALICE)), await ask(alice)) == (200, 200)
        told = [record["message"] for record in await gate.log() if record["event"] == "config.warning"]
        assert told == ["removed: anyone who reaches the port can use the models now"]


async def test_a_file_that_is_gone_lets_nobody_in(config: Config) -> None:
    """It used to: the file may be gone by mistake."""
    async with guarded(config) as gate:
        (config.path / "routing.yaml").unlink()
        await until(lambda: gate.gateway.state.rejected is not None)
        assert (await gate.post("m")).status == 401
        (fault,) = (await gate.say(get("/routing"))).json()["reload"]["faults"]
        assert fault["message"].startswith("not found, and it said who may ask")
        config.routing()
        await gate.until_generation(2)
        assert (await gate.post("m")).status == 502


async def saved(gate: Running, **fields: object) -> None:
    generation = gate.gateway.manager.generation
    gate.config.routing(**fields)
    await gate.until_generation(generation + 1)
