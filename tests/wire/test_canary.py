"""Everything goes wrong that can, with keys at hand; nobody is told one."""

import json
import logging
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.api.body import Limits
from gateway.cli import main
from gateway.config.sources import read
from gateway.execution.answer import AttemptFailedError
from gateway.execution.fields import Fields
from gateway.execution.outcome import Outcome
from gateway.execution.record import Ask, Unanswered
from gateway.execution.refusal import Refusal
from gateway.execution.upstream import Call
from gateway.lifecycle import Listen
from gateway.server import Options
from tests.execution.support import CHAT, Running
from tests.fakes.client import get, post
from tests.fakes.connection import PATIENCE, Cut
from tests.fakes.upstream import ScriptedUpstream, refused_url
from tests.running import Config, open_door, until
from tests.wire.keyed import (
    CLIENTS,
    ENVIRON,
    FIELDS,
    GUEST,
    KEYS,
    LATER,
    OTHER,
    PROMPT,
    TOKEN,
    WORD,
    boxes,
    configure,
)


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Running]:
    """Serve as `gateway serve` does: the log begins on stderr."""
    door = await open_door(Options(config.path, environ=ENVIRON, limits=Limits(stall=5)), Listen(port=0))
    outcomes: list[Outcome] = []
    door.gateway.executor._observers += (outcomes.append,)
    try:
        yield Running(door, config, outcomes, [])
    finally:
        await door.close(PATIENCE)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a strategy of the user's own where it can be imported."""
    (tmp_path / "wire_guest.py").write_text(GUEST)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wire_guest", raising=False)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(boxes) as upstream:
        yield upstream


@pytest.fixture
async def gate(config: Config, upstream: ScriptedUpstream, guest: None) -> AsyncIterator[Running]:  # noqa: ARG001 - imported
    """A gateway that has every key; `split` is drawn from two boxes."""
    configure(config, upstream.url, refused_url())
    async with serving(config) as gate:
        yield gate


@pytest.fixture
async def told(gate: Running, capfd: pytest.CaptureFixture[str]) -> AsyncIterator[list[str]]:
    """Look for keys in what the test was told (it appends that), and wherever else somebody could read one."""
    told: list[str] = []
    yield told
    targets = ("/routing", "/routing/plan", "/metrics", "/health", "/health/ready", "/v1/models", "/v1/models/written")
    told += [(await say(gate, get(target, FIELDS)))[1] for target in targets]
    await gate.log()
    told += [gate.config.log.read_text(), *capfd.readouterr()]
    assert [found for text in told if (found := around(text))] == []


def around(text: str) -> str | None:
    place = text.find(WORD)
    return None if place < 0 else text[max(0, place - 200) : place + 40]


async def say(gate: Running, data: bytes) -> tuple[int, str]:
    """Send bytes; give the answer's status, and every byte of what came."""
    async with gate.client() as client:
        await client.send(data)
        head = await client.read_head()
        with suppress(Cut):
            await client.read_body(head)
        return head.status, client.raw.decode()


def chat(model: str, user: object = None) -> bytes:
    return post(CHAT, {"model": model, "user": user, "messages": [{"content": PROMPT}]}, FIELDS)


ENDS: dict[Any, int] = {None: 200, 404: 404, 302: 502, 400: 400, 422: 422, 429: 429, 500: 502, 401: 502, 403: 502}
ENDS |= {503: 502, "coded": 400, "large": 400, "typed": 400, "garbage": 502, "field": 502, "cut": 502, "reset": 502}
ENDS |= {"unframed": 502}
# 503 once a breaker is open; a 404 is the deployment's, and the one drawn first may have failed otherwise
ALLOWED = {502: {502, 503}, 404: {404, 502}}


@pytest.mark.parametrize("model", KEYS)
async def test_no_answer_tells_a_key(gate: Running, upstream: ScriptedUpstream, told: list[str], model: str) -> None:
    for user, expected in ENDS.items():
        code, raw = await say(gate, chat(model, user))
        assert code in ALLOWED.get(expected, {expected}), user
        told.append(raw)
    assert {tuple(request.values("authorization")) for request in upstream.requests} == {(f"Bearer {KEYS[model]}",)}


@pytest.mark.parametrize("user", ["stream", "broken"])
async def test_no_stream_tells_a_key(gate: Running, told: list[str], user: str) -> None:
    code, raw = await say(gate, chat("written", user))
    assert (code, "stream_broken" in raw) == (200, user != "stream")
    told.append(raw)


async def test_the_client_gets_the_upstreams_error_with_the_key_masked(gate: Running, told: list[str]) -> None:
    _, raw = await say(gate, chat("written", 400))
    assert raw.endswith('\r\n\r\n{"error": "***"} *** *** ***')
    told.append(raw)


def raises(outcome: Outcome) -> None:
    error = ValueError(f"{outcome} {KEYS['environment']}")
    raise error from KeyError(KEYS["written"])


async def test_no_error_of_our_own_tells_a_key(gate: Running, told: list[str]) -> None:
    def dice() -> float:
        raise ValueError("{written} {environment} {dotenv} {split}".format(**KEYS))

    gate.gateway.executor._observers += (raises,)
    gate.gateway.selector._dice = dice
    code, raw = await say(gate, chat("split"))
    assert (code, "internal_error" in raw) == (500, True)
    told.append(raw)
    logging.getLogger("a.library").error("the key is %s", KEYS["written"], exc_info=KeyError(KEYS["dotenv"]))
    errors = [record["error"] for record in await gate.log() if record["event"] == "exception"]
    assert errors == ["ValueError", "ValueError", "KeyError"]


async def test_no_strategy_tells_a_key_at_a_change_of_health(gate: Running, told: list[str]) -> None:
    text = (gate.config.path / "routing.yaml").read_text()
    gate.config.save("routing.yaml", text.replace('"timeout"', '"health_check": 0.05, "timeout"'))
    await until(lambda: any("problem" in record for record in gate.config.records("health.changed")))
    [problem] = [record["problem"] for record in gate.config.records("health.changed") if "problem" in record]
    assert "wire_guest:Guest.assign for split raised ValueError: " in problem
    told.append(problem)


async def test_no_strategy_tells_a_key_at_a_reload(gate: Running, told: list[str]) -> None:
    """It used to, on `/routing`, and in the log when the key was new."""
    routing = json.loads((gate.config.path / "routing.yaml").read_text())
    routing["local_deployment"] = [{**routing["local_deployment"][0], "api_key": LATER}]
    gate.config.save("routing.yaml", json.dumps(routing))
    await until(lambda: gate.config.records("config.rejected"))
    [fault] = gate.gateway.state.faults
    assert fault.message.startswith("wire_guest:Guest.assign for split raised ValueError: ")
    told.append(fault.message)


BAD_FILES = {
    "a key in a list": ("models.yaml", '"api_key": ', f'"api_key": ["{OTHER}"], "x": '),
    "a key by a wrong name": ("models.yaml", '"api_key": ', f'"api_kee": "{OTHER}", "x": '),
    "a key without quotes": ("models.yaml", '"api_key": ', f'"api_key": {OTHER}: '),
    "a key for a name": ("models.yaml", '"api_key": ', f'"{OTHER}": '),
    "an open reference": ("models.yaml", "{KEY}", "{KEY"),
    "a key in a URL": ("models.yaml", '"base_url": "http://', f'"base_url": "http://me:{OTHER}@'),
    "a key with a space": ("routing.yaml", '"api_key": ', f'"api_key": "a {OTHER}", "y": '),
    "a key with a bad escape": ("routing.yaml", TOKEN, f"{OTHER}\\q"),
    "an unknown parameter": ("routing.yaml", '"token": ', f'"tokens": "{OTHER}", "y": '),
    "a parameter of the wrong type": ("routing.yaml", '"token": ', '"token": 1, "y": '),
    "a variable for a model": ("routing.yaml", '"split"', '"${OTHER}"'),
    "a variable in an output": ("routing.yaml", '"output": "', '"output": "/dev/null/${OTHER}/'),
    "a variable for a strategy": ("routing.yaml", "wire_guest:Guest", "${OTHER}"),
    "a variable for a number": ("routing.yaml", '"timeout": ', '"timeout": "${OTHER}", "y": '),
}


@pytest.mark.parametrize("case", BAD_FILES)
async def test_no_bad_file_tells_a_key(gate: Running, told: list[str], case: str) -> None:
    name, written, instead = BAD_FILES[case]
    text = (gate.config.path / name).read_text()
    assert written in text
    gate.config.save(name, text.replace(written, instead, 1))
    await until(lambda: gate.config.records("config.rejected"))
    told.append(repr(gate.gateway.state))


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize(("written", "code"), [("", 0), ('"base_url": "', 1), ('"api_key": "', 1)])
def test_no_check_tells_a_key(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    written: str,
    code: int,
) -> None:
    for variable, value in ENVIRON.items():
        monkeypatch.setenv(variable, value)
    configure(config, "http://127.0.0.1:9", "http://127.0.0.1:19")
    text = (config.path / "models.yaml").read_text()
    config.save("models.yaml", text.replace(written, f"{written}${{OTHER}} {OTHER}") if written else text)
    for arguments in ([], ["--json"]):
        assert main(["check", "--config-dir", str(config.path), *arguments]) == code
    assert [found for text in capfd.readouterr() if (found := around(text))] == []


ASKED = {"model": "written"}
REFUSED = {
    "NUL": post(CHAT, ASKED, [("authorization", f"{CLIENTS}\0")]),
    "no colon": post(CHAT, ASKED).replace(b"host:", f"authorization {CLIENTS}\r\nhost:".encode()),
    "a long field": post(CHAT, ASKED, [("x-a", CLIENTS * 4000)]),
    "an expectation": post(CHAT, ASKED, [("expect", CLIENTS)]),
    "an encoding": post(CHAT, ASKED, [("content-encoding", CLIENTS)]),
    "a place": post(f"{CHAT}/{CLIENTS}", ASKED),
    "a user": post(f"http://{CLIENTS}@\0{CHAT}", ASKED),
    "a model": post(CHAT, {"model": [PROMPT]}),
    "a flag": post(CHAT, ASKED | {"stream": PROMPT}),
    "no object": post(CHAT, PROMPT),
    "no JSON": post(CHAT, ASKED | {"messages": PROMPT})[:-1] + b"X",
    "no UTF-8": post(CHAT, ASKED | {"messages": PROMPT})[:-2] + b"\xff}",
    "a Host": f"GET /v1/models HTTP/1.1\r\nhost: {CLIENTS}/\r\n\r\n".encode(),
    "a query": get(f"/nowhere?key={CLIENTS}", FIELDS),
    "a method": f"{CLIENTS} / HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
    "a version": f"GET / HTTP/{CLIENTS}\r\nhost: a\r\n\r\n".encode(),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", REFUSED)
async def test_no_refusal_tells_a_key(gate: Running, told: list[str], case: str) -> None:
    code, raw = await say(gate, REFUSED[case])
    assert code in {400, 404, 415, 417, 431}
    told.append(raw)


async def test_a_request_id_that_is_none_is_not_taken_up(gate: Running, told: list[str]) -> None:
    code, raw = await say(gate, post(CHAT, ASKED, [("x-request-id", f"Bearer {CLIENTS}")]))
    assert code == 200
    told.append(raw)


async def test_nothing_that_can_be_shown_shows_a_key(gate: Running, told: list[str]) -> None:
    gateway = gate.gateway
    snapshot, plan = gateway.manager.snapshot, gateway.manager._plan
    assert snapshot is not None
    call = Call("chat/completions", KEYS["written"].encode(), Fields([("authorization", CLIENTS)]), "id")
    told += map(repr, [gate.door, gateway.options, snapshot, snapshot.deployments, snapshot.settings, plan, call])
    told += map(repr, [Ask("1", "m", stream=False, call=call), Refusal("a", 400, [], KEYS["written"].encode())])
    told.append(repr(Unanswered(502, 1, said=CLIENTS)))
    told += [repr(vars(each)) for each in (gateway, gateway.manager, gateway.reloader)]
    told += [repr(gateway.state), repr(read(gateway.files)), repr(dict(snapshot.routes))]


@pytest.mark.parametrize("user", ["garbage", "field", "cut", "unframed", "reset", "broken"])
async def test_no_traceback_of_a_failure_shows_a_key(gate: Running, told: list[str], user: str) -> None:
    snapshot = gate.gateway.manager.snapshot
    assert snapshot is not None
    call = Call("chat/completions", json.dumps({"user": user}).encode(), Fields(()), "id")

    async def read() -> None:
        deployment = snapshot.routes["written"].chain[0]
        with closing(await gate.gateway.upstream.open(deployment, call, connect_timeout=5)) as answer:
            while await answer.chunk():
                pass

    with pytest.raises(AttemptFailedError) as failed:
        await read()
    told += traceback.format_exception(failed.value)
