"""Each fault, as it looks on the wire. The box's sleep is not waited for: what it would have waited is in `slept`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, get_args

import pytest
from pytest_aiohttp.plugin import AiohttpServer

from gateway.simulator import STATE, Box, State, create_simulator
from gateway.simulator.errors import Dialect
from tests.fakes.client import Answer, RawClient, get, post
from tests.fakes.connection import Cut

BOX = Box("local-a", models=("qwen", "bge"), tokens=6)
DIALECTS = get_args(Dialect)
TEXT = "I am local-a. This text is"
CHAT = "/v1/chat/completions"


class Told(RawClient):
    """A client of a box, which knows how the box waits, and may move its clock."""

    def __init__(self, url: object, state: State) -> None:
        super().__init__(url)
        self.state = state
        self.slept: list[float] = []
        self.now = 1000.0

    async def ask(self, model: str = "qwen", target: str = CHAT, **body: Any) -> None:
        await self.send(post(target, {"model": model, "messages": [{"role": "user", "content": "hi"}], **body}))

    async def answer(self, model: str = "qwen", target: str = CHAT, **body: Any) -> Answer:
        await self.ask(model, target, **body)
        return await self.read_answer()

    async def control(self, **change: Any) -> Any:
        await self.send(post("/simulator", change))
        answer = await self.read_answer()
        assert answer.status == 200, answer.body
        return answer.json()

    async def rest(self) -> bytes:
        """Read the rest of a chunked body, however it ends."""
        body = b""
        try:
            while piece := await self.read_chunk():
                body += piece
        except Cut:
            pass
        return body


@asynccontextmanager
async def box(aiohttp_server: AiohttpServer, *faults: Any) -> AsyncIterator[Told]:
    async def sleep(seconds: float) -> None:
        client.slept.append(seconds)

    client: Told
    app = create_simulator(BOX, sleep=sleep, clock=lambda: client.now)
    server = await aiohttp_server(app)
    async with Told(server.make_url("/"), app[STATE]) as client:
        if faults:
            await client.control(fault=list(faults) if len(faults) > 1 else faults[0])
        yield client


@dataclass(frozen=True, slots=True)
class Story:
    """What a stream told."""

    text: str = ""
    finish: str | None = None
    done: bool = False
    errors: int = 0
    malformed: int = 0
    comments: int = 0


def story(body: bytes) -> Story:
    text, finish, errors, malformed = "", None, 0, 0
    lines = [line for line in body.decode().split("\n") if line]
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    for event in [event for event in events if event != "[DONE]"]:
        try:
            told = json.loads(event)
        except ValueError:
            malformed += 1
            continue
        errors += "error" in told
        for choice in told.get("choices", []):
            text += choice["delta"].get("content", "")
            finish = choice["finish_reason"] or finish
    comments = len([line for line in lines if line.startswith(":")])
    return Story(text, finish, events[-1:] == ["[DONE]"], errors, malformed, comments)


WHOLE = Story(TEXT, "stop", done=True)


@pytest.mark.parametrize(
    ("fault", "told", "ended", "slept"),
    [
        ({"kind": "cut", "tokens": 3}, Story("I am local-a."), "reset", []),
        ({"kind": "cut", "tokens": 0}, Story(), "reset", []),
        ({"kind": "cut", "tokens": 99}, Story(TEXT), "reset", []),
        ({"kind": "cut", "end": "close"}, Story("I am local-a. This text"), "fin", []),
        ({"kind": "cut", "end": "clean"}, Story("I am local-a. This text"), None, []),
        ({"kind": "stall", "tokens": 2}, Story("I am"), "fin", [inf]),
        ({"kind": "stall", "seconds": 3}, Story("I am local-a. This text"), "fin", [3]),
        ({"kind": "late", "seconds": 12.5}, WHOLE, None, [12.5]),
        ({"kind": "head_only"}, Story(), "fin", [inf]),
        ({"kind": "comments", "count": 3}, Story(comments=3), "fin", [1, 1, 1, inf]),
        ({"kind": "comments", "count": 1, "every": 4, "seconds": 9}, Story(comments=1), "fin", [4, 9]),
        ({"kind": "malformed", "tokens": 2}, Story(TEXT, "stop", done=True, malformed=1), None, []),
        ({"kind": "malformed", "tokens": 0}, Story(TEXT, "stop", done=True, malformed=1), None, []),
        ({"kind": "malformed", "tokens": 99}, Story(TEXT, "stop", done=True, malformed=1), None, []),
        ({"kind": "no_done"}, Story(TEXT, "stop"), None, []),
        ({"kind": "held_open"}, Story(TEXT, "stop"), "fin", [inf]),
        ({"kind": "error_event"}, Story(errors=1), None, []),
        ({"kind": "error_event", "tokens": 2}, Story("I am", errors=1), None, []),
    ],
    ids=str,
)
async def test_a_stream_goes_wrong(
    aiohttp_server: AiohttpServer, fault: Any, told: Story, ended: str | None, slept: list[float]
) -> None:
    async with box(aiohttp_server, fault) as client:
        await client.ask(stream=True)
        head = await client.read_head()
        assert (head.status, head.get("content-type")) == (200, "text/event-stream")
        body = await client.rest()
        assert (story(body), client.ended, client.slept) == (told, ended, slept)
        assert client.state.faults_by_kind == {fault["kind"]: 1}


async def test_a_malformed_event_stands_where_it_was_asked_for(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "malformed", "tokens": 2}) as client:
        body = (await client.answer(stream=True)).body
        assert story(body.partition(b'{"conten\n\n')[0]).text == "I am"


async def test_a_finish_reason_may_stand_in_each_event(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "early_finish"}) as client:
        body = (await client.answer(stream=True)).body
        events = [event for event in body.split(b"\n\n") if b'"content":"' in event and b'"role"' not in event]
        assert len(events) == len(TEXT.split())
        assert all(b'"finish_reason":"stop"' in event for event in events)
        assert story(body) == WHOLE


async def test_an_error_in_the_first_event_has_nothing_before_it(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "error_event"}) as client:
        body = (await client.answer(stream=True)).body
        assert body.startswith(b'data: {"error":')


@pytest.mark.parametrize(
    ("fault", "ended", "slept"),
    [
        ({"kind": "reset"}, "reset", []),
        ({"kind": "close"}, "fin", []),
        ({"kind": "silence"}, "fin", [inf]),
        ({"kind": "silence", "seconds": 120}, "fin", [120]),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [CHAT, "/v1/completions", "/v1/embeddings"])
async def test_no_byte_of_an_answer_comes(
    aiohttp_server: AiohttpServer, target: str, fault: Any, ended: str, slept: list[float]
) -> None:
    async with box(aiohttp_server, fault) as client:
        await client.ask(target=target)
        assert (await client.read_to_end(), client.ended, client.slept) == (b"", ended, slept)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_head_trickles(aiohttp_server: AiohttpServer, *, stream: bool) -> None:
    async with box(aiohttp_server, {"kind": "trickle", "seconds": 2}) as client:
        answer = await client.answer(stream=stream)
        assert client.slept == [2] * len(answer.head.raw)
        if stream:
            assert story(answer.body) == WHOLE
        else:
            assert answer.json()["choices"][0]["message"]["content"] == TEXT
        assert (await client.read_to_end(), client.ended) == (b"", "fin")


@pytest.mark.parametrize(
    ("fault", "ended", "slept"),
    [
        ({"kind": "cut", "tokens": 3}, "reset", []),
        ({"kind": "cut", "tokens": 99, "end": "close"}, "fin", []),
        ({"kind": "stall", "tokens": 3}, "fin", [inf]),
        ({"kind": "head_only"}, "fin", [inf]),
    ],
    ids=str,
)
async def test_a_json_answer_is_cut_short(
    aiohttp_server: AiohttpServer, fault: Any, ended: str, slept: list[float]
) -> None:
    async with box(aiohttp_server, fault) as client:
        await client.ask()
        head = await client.read_head()
        body = await client.read_to_end()
        assert (len(body) < int(head.get("content-length") or 0), client.ended, client.slept) == (True, ended, slept)
        assert bool(body) == ("tokens" in fault)


async def test_half_a_json_answer_ends_well(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "cut", "end": "clean"}) as client:
        answer = await client.answer()
        assert (answer.status, answer.head.get("content-type")) == (200, "application/json")
        assert answer.body
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            answer.json()


async def test_a_late_json_answer(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "late"}) as client:
        assert (await client.answer()).json()["choices"][0]["message"]["content"] == TEXT
        assert client.slept == [20]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "status"}, (500, "application/json", '"server_error"')),
        ({"kind": "status", "status": 429}, (429, "application/json", '"rate_limit_exceeded"')),
        ({"kind": "status", "status": 529}, (529, "application/json", '"overloaded_error"')),
        ({"kind": "status", "status": 401}, (401, "application/json", '"invalid_api_key"')),
        ({"kind": "status", "status": 402}, (402, "application/json", '"insufficient_quota"')),
        ({"kind": "status", "status": 403}, (403, "application/json", '"permission_error"')),
        ({"kind": "status", "status": 404}, (404, "application/json", '"model_not_found"')),
        ({"kind": "content_filter"}, (400, "application/json", '"content_policy_violation"')),
        ({"kind": "content_filter", "says": "azure"}, (400, "application/json", '"content_filter"')),
        ({"kind": "error_body"}, (200, "application/json", '{"error":')),
        ({"kind": "wrong_type"}, (200, "text/html", "<!doctype html>")),
        ({"kind": "loading"}, (503, "application/json", "Loading model")),
    ],
    ids=str,
)
@pytest.mark.parametrize("body", [{}, {"stream": True}], ids=str)
async def test_another_answer_comes(
    aiohttp_server: AiohttpServer, body: Any, fault: Any, expected: tuple[int, str, str]
) -> None:
    status, kind, told = expected
    async with box(aiohttp_server, fault) as client:
        answer = await client.answer(**body)
        assert (answer.status, answer.head.get("content-type")) == (status, kind)
        assert told in answer.body.decode()
        assert answer.head.get("retry-after") is None
        assert (await client.answer(**body)).status == 200


async def test_a_limit_says_when_to_come_back(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "status", "status": 429, "retry_after": 2}) as client:
        answer = await client.answer()
        assert (answer.status, answer.head.get("retry-after")) == (429, "2")


@pytest.mark.parametrize(("body", "kind"), [({}, "application/json"), ({"stream": True}, "text/event-stream")])
async def test_an_answer_is_empty(aiohttp_server: AiohttpServer, body: Any, kind: str) -> None:
    async with box(aiohttp_server, {"kind": "empty_body"}) as client:
        answer = await client.answer(**body)
        assert (answer.status, answer.head.get("content-type"), answer.body) == (200, kind, b"")


async def test_each_server_has_its_words_for_a_prompt_too_long(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, *({"kind": "context_length", "says": says} for says in DIALECTS)) as client:
        answers = [await client.answer() for _ in DIALECTS]
        assert {answer.status for answer in answers} == {400}
        told = dict(zip(DIALECTS, [answer.json() for answer in answers], strict=True))
    assert told["openai"]["error"]["code"] == "context_length_exceeded"
    assert told["llamacpp"]["error"]["type"] == "exceed_context_size_error"
    assert told["sglang"]["object"] == told["anthropic"]["type"] == "error"
    assert told["gemini"][0]["error"]["status"] == "INVALID_ARGUMENT"
    assert {type(told[says]["error"]["message"]) for says in ("vllm", "ollama", "openrouter")} == {str}


@pytest.mark.parametrize(("says", "body"), [("llamacpp", "Loading model"), ("vllm", "")])
async def test_a_box_is_loading_for_a_while(aiohttp_server: AiohttpServer, says: str, body: str) -> None:
    async with box(aiohttp_server, {"kind": "loading", "says": says, "lasts": 30}) as client:
        for request in (get("/health"), post(CHAT, {"model": "qwen"}), post(CHAT, {"model": "bge"}), get("/health")):
            await client.send(request)
            answer = await client.read_answer()
            assert (answer.status, body in answer.body.decode(), bool(answer.body)) == (503, True, bool(body))
        client.now += 30
        for request in (get("/health"), post(CHAT, {"model": "qwen"})):
            await client.send(request)
            assert (await client.read_answer()).status == 200


async def test_one_models_loading_is_not_the_boxs(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "loading", "model": "qwen"}, {"kind": "reset"}) as client:
        await client.send(get("/health"))
        assert (await client.read_answer()).status == 200


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ({}, [500, 200, 200, 200]),
        ({"times": 3}, [500, 500, 500, 200]),
        ({"times": "forever"}, [500, 500, 500, 500]),
        ({"times": 2, "lasts": 3}, [500, 500, 200, 200]),
        ({"lasts": 2}, [500, 500, 200, 200]),
        ({"model": "qwen"}, [500, 200, 200, 200]),
        ({"model": "bge"}, [200, 200, 200, 200]),
    ],
    ids=str,
)
async def test_a_fault_lasts_as_long_as_it_was_told(
    aiohttp_server: AiohttpServer, fault: Any, statuses: list[int]
) -> None:
    seen = []
    async with box(aiohttp_server, {"kind": "status", **fault}) as client:
        for _ in statuses:
            seen.append((await client.answer()).status)
            client.now += 1
    assert seen == statuses


async def test_faults_come_one_after_the_other_to_those_they_fit(aiohttp_server: AiohttpServer) -> None:
    faults = [{"kind": "no_done"}, {"kind": "late"}, {"kind": "status", "status": 503}]
    async with box(aiohttp_server, *faults) as client:
        assert (await client.answer(target="/v1/embeddings")).status == 503
        assert (await client.answer(), client.slept)[1] == [20]
        assert story((await client.answer(stream=True)).body) == Story(TEXT, "stop")
        assert story((await client.answer(stream=True)).body) == WHOLE
        assert client.state.faults_by_kind == {"status": 1, "late": 1, "no_done": 1}


async def test_a_box_shows_what_is_left_and_is_healed(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server, {"kind": "status", "times": 2}, {"kind": "silence", "lasts": 9}) as client:
        await client.answer()
        client.now += 4
        shown = (await client.control())["faults"]
        assert [(fault["kind"], fault["left"], fault["lasts"]) for fault in shown] == [
            ("status", 1, None),
            ("silence", None, 5),
        ]
        assert (await client.control(fault=[]))["faults"] == []
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("qwen+status", [500, 500, 500]),
        ("qwen+status?status=429&times=2", [429, 429, 200]),
        ("qwen+status?status=503&times=forever", [503, 503, 503]),
        ("qwen+no_done", [200, 200, 200]),
    ],
)
async def test_a_models_name_asks_for_a_fault(aiohttp_server: AiohttpServer, name: str, statuses: list[int]) -> None:
    async with box(aiohttp_server, {"kind": "status", "status": 501}) as client:
        assert [(await client.answer(name)).status for _ in statuses] == statuses
        assert client.state.requests_by_model == {name: 3}
        await client.control(fault=[])
        assert (await client.answer(name)).status == statuses[0]
        assert (await client.answer()).status == 200


async def test_a_faulty_models_answer_has_its_name(aiohttp_server: AiohttpServer) -> None:
    async with box(aiohttp_server) as client:
        assert (await client.answer("qwen+late?seconds=3")).json()["model"] == "qwen+late?seconds=3"
        assert client.slept == [3]


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("qwen+flood", 400, "Invalid value 'flood'"),
        ("qwen+cut?token=3", 400, "unknown field `token`"),
        ("qwen+cut?tokens=few", 400, "Expected `int`"),
        ("gpt+reset", 404, "The model `gpt` does not exist"),
    ],
)
async def test_a_name_that_means_no_fault_is_refused(
    aiohttp_server: AiohttpServer, name: str, status: int, told: str
) -> None:
    async with box(aiohttp_server) as client:
        answer = await client.answer(name)
        assert (answer.status, told in answer.json()["error"]["message"]) == (status, True), answer.body


async def test_a_model_may_have_a_plus_in_its_name(aiohttp_server: AiohttpServer) -> None:
    server = await aiohttp_server(create_simulator(Box("plus", models=("command-r+",))))
    async with RawClient(server.make_url("/")) as client:
        await client.send(post(CHAT, {"model": "command-r+"}))
        assert (await client.read_answer()).status == 200


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "flood"},
        {"tokens": 3},
        {"kind": "reset", "tokens": 3},
        {"kind": "status", "status": 200},
        {"kind": "cut", "times": 0},
        {"kind": "cut", "times": "always"},
        {"kind": "late", "lasts": -1},
    ],
    ids=str,
)
async def test_a_fault_that_there_is_not_is_refused(aiohttp_server: AiohttpServer, fault: Any) -> None:
    async with box(aiohttp_server) as client:
        await client.send(post("/simulator", {"fault": fault}))
        answer = await client.read_answer()
        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (await client.answer()).status == 200
