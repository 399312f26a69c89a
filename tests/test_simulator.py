import asyncio
import base64
import json
import logging
import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from aiohttp.typedefs import Handler
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import ResponseInputParam
from pytest_aiohttp.plugin import AiohttpClient, AiohttpServer

from gateway.simulator import STATE, Box, State, create_simulator
from gateway.simulator.box import Prefill
from tests.fakes.client import RawClient, post
from tests.fakes.connection import PATIENCE

BOX = Box("local-a", models=("qwen", "bge"), tokens=6)
SLOW = replace(BOX, first_token=1)
TEXT = "I am local-a. This text is"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "what is this"}]
PARTS: ResponseInputParam = [
    {"role": "user", "content": [{"type": "input_text", "text": "what"}, {"type": "input_text", "text": "is this"}]},
    {"type": "function_call_output", "call_id": "c", "output": "3"},
]
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "clock")
]


@asynccontextmanager
async def sdk(aiohttp_server: AiohttpServer, box: Box = BOX, key: str = "any") -> AsyncIterator[AsyncOpenAI]:
    server = await aiohttp_server(create_simulator(box))
    async with AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key=key, max_retries=0) as client:
        yield client


async def events(client: TestClient[Any, Any], target: str, **body: Any) -> list[Any]:
    async with client.post(target, json={"model": "qwen", "stream": True, **body}) as answer:
        assert answer.content_type == "text/event-stream"
        *told, end, rest = (await answer.text()).split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in told]


async def test_a_response_is_told_whole_and_in_events(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        answer = await client.responses.create(model="qwen", input="what is this")
        assert answer.usage is not None
        assert (answer.output_text, answer.status, answer.usage.total_tokens) == (TEXT, "completed", 9)
        async with client.responses.stream(model="qwen", input=PARTS, instructions="be brief") as stream:
            types = [event.type async for event in stream]
            answer = await stream.get_final_response()
        assert answer.usage is not None
        assert (answer.output_text, answer.usage.input_tokens) == (TEXT, 5)
        assert types.count("response.output_text.delta") == 6
        cut = await client.responses.create(model="qwen", input="", max_output_tokens=2)
        assert (cut.output_text, cut.status, cut.incomplete_details is not None) == ("I am", "incomplete", True)


async def test_a_completion_says_which_box_answers(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        raw = await client.chat.completions.with_raw_response.create(model="qwen", messages=ASK)
        answer = raw.parse()
    assert raw.headers["x-simulator"] == answer.system_fingerprint == "local-a"
    assert (answer.model, answer.object, answer.choices[0].finish_reason) == ("qwen", "chat.completion", "stop")
    assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (TEXT, None)
    assert answer.usage is not None
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert usage == (3, 6, 9)


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream_is_the_same_text(aiohttp_server: AiohttpServer, *, include_usage: bool) -> None:
    async with sdk(aiohttp_server) as client:
        stream = await client.chat.completions.create(
            model="qwen", messages=ASK, stream=True, stream_options={"include_usage": include_usage}
        )
        chunks = [chunk async for chunk in stream]
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == 9
    assert [chunk.usage for chunk in chunks] == [None] * 8
    role, *content, finish = [chunk.choices[0] for chunk in chunks]
    assert (role.delta.role, role.delta.content) == ("assistant", "")
    assert [choice.delta.content for choice in content] == ["I", " am", " local-a.", " This", " text", " is"]
    assert (finish.delta.content, finish.finish_reason) == (None, "stop")
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_ends_with_done(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    told = await events(client, "/v1/chat/completions", messages=ASK)
    assert [event["choices"][0]["finish_reason"] for event in told] == [None] * 7 + ["stop"]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_bounds_the_tokens(aiohttp_client: AiohttpClient, limit: str) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    async with client.post("/v1/chat/completions", json={"model": "qwen", "messages": ASK, limit: 2}) as answer:
        whole = await answer.json()
    assert whole["choices"][0]["message"]["content"] == "I am"
    assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 2)
    told = await events(client, "/v1/chat/completions", messages=ASK, **{limit: 6})
    assert told[-1]["choices"][0]["finish_reason"] == "stop"


async def test_the_first_tool_is_called_with_what_the_user_said(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        answer = await client.chat.completions.create(model="qwen", messages=ASK, tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"echo": "what is this"})


async def test_a_tool_call_is_streamed_in_deltas(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        stream = await client.chat.completions.create(model="qwen", messages=ASK, tools=TOOLS, stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    functions = [call.function for call in calls if call.function is not None]
    assert {call.index for call in calls} == {0}
    assert ([function.name for function in functions if function.name], calls[0].type) == (["weather"], "function")
    assert len(functions) > 2
    assert json.loads("".join(function.arguments or "" for function in functions)) == {"echo": "what is this"}
    assert (choices[0].delta.role, choices[-1].finish_reason) == ("assistant", "tool_calls")


@pytest.mark.parametrize(
    "body",
    [
        {"tool_choice": "none", "messages": ASK},
        {"messages": [*ASK, {"role": "assistant"}, {"role": "tool", "tool_call_id": "1", "content": "22 C"}]},
    ],
)
async def test_a_tool_is_not_called_when_off_or_just_answered(aiohttp_client: AiohttpClient, body: Any) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    async with client.post("/v1/chat/completions", json={"model": "qwen", "tools": TOOLS, **body}) as answer:
        assert (await answer.json())["choices"][0]["message"] == {"role": "assistant", "content": TEXT}


async def test_the_text_parts_of_a_message_are_echoed(aiohttp_client: AiohttpClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    body = {"model": "qwen", "tools": TOOLS, "messages": [{"role": "user", "content": parts}]}
    client = await aiohttp_client(create_simulator(BOX))
    async with client.post("/v1/chat/completions", json=body) as answer:
        call = (await answer.json())["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"echo": "a b"}


async def test_a_text_completion(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        whole = await client.completions.create(model="qwen", prompt="one two", max_tokens=3)
        stream = await client.completions.create(
            model="qwen", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in stream]
    assert (whole.object, whole.choices[0].text) == ("text_completion", "I am local-a.")
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 5
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert (chunks[-1].choices[0].finish_reason, last.choices) == ("stop", [])
    assert last.usage is not None
    assert last.usage.total_tokens == 8


CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


def said(begun: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "who?"}, {"role": "assistant", "content": begun}]


async def content(client: TestClient[Any, Any], **body: Any) -> tuple[str, str]:
    async with client.post("/v1/chat/completions", json={"model": "qwen", **body}) as answer:
        assert answer.status == 200, await answer.text()
        [choice] = (await answer.json())["choices"]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("text", ["I am local-a. This text is", "I am remote-7. This text is"])
async def test_a_text_is_continued_where_it_stops(aiohttp_client: AiohttpClient, text: str) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    opening = len(text) - len(" This text is")
    for end in range(opening, len(text) + 1):
        assert await content(client, messages=said(text[:end]), **CONTINUE) == (text[end:], "stop")


async def test_a_box_knows_its_own_beginnings(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    for end in range(len(TEXT)):
        assert await content(client, messages=said(TEXT[:end]), **CONTINUE) == (TEXT[end:], "stop")


async def test_a_strange_text_is_continued_somehow(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    for strange in ("Once", "I am local-a. Really"):
        assert await content(client, messages=said(strange), **CONTINUE) == (
            " This text is simulated, one word",
            "stop",
        )


async def test_a_continued_text_is_bounded_and_calls_no_tool(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    body = {"messages": said("I am local-a. Th"), "tools": TOOLS, "max_tokens": 2, **CONTINUE}
    assert await content(client, **body) == ("is text", "length")
    told = await events(client, "/v1/chat/completions", **body, stream_options={"include_usage": True})
    deltas = [event["choices"][0]["delta"] for event in told[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "is"}, {"content": " text"}, {}]
    assert told[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("prefill", "body", "text"),
    [
        ("asked", {}, TEXT),
        ("ignored", CONTINUE, TEXT),
        ("ignored", {}, TEXT),
        ("always", {}, " is"),
        ("always", CONTINUE, " is"),
    ],
)
async def test_who_does_not_ask_gets_what_the_box_does(
    aiohttp_client: AiohttpClient, prefill: Prefill, body: Any, text: str
) -> None:
    client = await aiohttp_client(create_simulator(replace(BOX, prefill=prefill)))
    assert await content(client, messages=said("I am local-a. This text"), **body) == (text, "stop")


@pytest.mark.parametrize(
    ("prefill", "body", "told"),
    [
        ("refused", CONTINUE, "does not support assistant message prefill"),
        ("refused", {}, "does not support assistant message prefill"),
        ("asked", {"continue_final_message": True}, "are not compatible"),
    ],
)
async def test_a_prefill_is_refused(aiohttp_client: AiohttpClient, prefill: str, body: Any, told: str) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    async with client.post("/simulator", json={"prefill": prefill}) as answer:
        assert answer.status == 200
    json = {"model": "qwen", "messages": said("I am"), **body}
    async with client.post("/v1/chat/completions", json=json) as answer:
        assert (answer.status, told in (await answer.json())["error"]["message"]) == (400, True)
    assert (await content(client, messages=ASK, **body))[0] == TEXT


async def test_deterministic_boxes_say_the_same(aiohttp_client: AiohttpClient) -> None:
    boxes = [await aiohttp_client(create_simulator(Box(name, deterministic=True))) for name in ("a", "b")]
    texts = [await content(client, messages=ASK) for client in boxes]
    assert texts[0] == texts[1]
    assert texts[0] != await content(boxes[0], messages=said("anything else"))
    whole, _ = texts[0]
    continued = [*ASK, {"role": "assistant", "content": whole[:30]}]
    assert [(await content(client, messages=continued, **CONTINUE))[0] for client in boxes] == [whole[30:]] * 2
    async with boxes[0].post("/simulator", json={"deterministic": False}):
        assert (await content(boxes[0], messages=ASK))[0].startswith("I am a.")


async def test_embeddings_depend_on_the_text_alone(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        many = await client.embeddings.create(model="bge", input=["one", "two words"])
        single = await client.embeddings.create(model="bge", input="one", encoding_format="float")
        packed = await client.embeddings.create(model="bge", input="one", encoding_format="base64")
        tokens = await client.embeddings.create(model="bge", input=[1, 2, 3], dimensions=5)
    assert [item.index for item in many.data] == [0, 1]
    assert many.data[0].embedding == pytest.approx(single.data[0].embedding, abs=1e-6)
    assert many.data[0].embedding != many.data[1].embedding
    encoded = str(packed.data[0].embedding)
    assert struct.unpack("<32f", base64.b64decode(encoded)) == pytest.approx(single.data[0].embedding, abs=1e-6)
    assert math.hypot(*single.data[0].embedding) == pytest.approx(1)
    assert (len(tokens.data), len(tokens.data[0].embedding), many.usage.total_tokens) == (1, 5, 3)


@pytest.mark.parametrize(("box", "ids"), [(BOX, ["qwen", "bge"]), (Box("any"), ["any"])])
async def test_models_are_listed(aiohttp_server: AiohttpServer, box: Box, ids: list[str]) -> None:
    async with sdk(aiohttp_server, box) as client:
        assert [model.id async for model in client.models.list()] == ids


async def test_an_unknown_model_is_not_found(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        with pytest.raises(NotFoundError, match="The model `gpt` does not exist") as error:
            await client.chat.completions.create(model="gpt", messages=ASK)
    assert (error.value.code, error.value.type) == ("model_not_found", "invalid_request_error")
    assert error.value.response.headers["x-simulator"] == "local-a"


async def test_a_box_without_models_answers_to_any(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server, Box("any")) as client:
        assert (await client.chat.completions.create(model="whatever", messages=ASK)).model == "whatever"


async def test_a_key_is_asked_for(aiohttp_server: AiohttpServer) -> None:
    box = Box("keyed", api_key="sk-canary")
    assert "canary" not in repr(box)
    async with sdk(aiohttp_server, box, key="sk-canary") as client:
        await client.models.list()
    async with sdk(aiohttp_server, box, key="sk-wrong") as client:
        with pytest.raises(AuthenticationError) as error:
            await client.models.list()
    assert error.value.code == "invalid_api_key"
    assert "canary" not in str(error.value)


async def test_health_needs_no_key(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(Box("keyed", api_key="sk-canary")))
    async with client.get("/health") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("target", "body", "told"),
    [
        ("/v1/chat/completions", b"{", "truncated"),
        ("/v1/chat/completions", b"{}", "missing required field `model`"),
        ("/v1/chat/completions", b'{"model": "qwen", "max_tokens": 0}', ">= 1"),
        ("/v1/completions", b'{"model": 1}', "Expected `str`"),
        ("/v1/embeddings", b'{"model": "qwen", "encoding_format": "hex"}', "Invalid enum value"),
        ("/simulator", b'{"first_token": -1}', ">= 0"),
        ("/simulator", b'{"speed": 1}', "unknown field `speed`"),
        ("/simulator", b'{"prefill": "maybe"}', "Invalid enum value"),
    ],
)
async def test_a_bad_body_is_refused(aiohttp_client: AiohttpClient, target: str, body: bytes, told: str) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    async with client.post(target, data=body) as answer:
        assert (answer.status, answer.content_type) == (400, "application/json")
        assert told in (await answer.json())["error"]["message"]


async def test_the_sdk_knows_a_refusal(aiohttp_server: AiohttpServer) -> None:
    async with sdk(aiohttp_server) as client:
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(model="qwen", messages=ASK, max_tokens=0)


async def test_a_control_request_changes_a_running_box(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    async with client.post("/simulator", json={"healthy": False, "first_token": 0.5}) as answer:
        changed = await answer.json()
    async with client.get("/health") as answer:
        assert (answer.status, await answer.json()) == (503, {"status": "unavailable"})
    async with client.post("/simulator", json={"healthy": True, "first_token": 0, "token_rate": 5}) as answer:
        assert (changed, await answer.json()) == (
            {**await state(client), "healthy": False, "first_token": 0.5, "token_rate": 0},
            {**await state(client), "healthy": True, "first_token": 0, "token_rate": 5},
        )
    async with client.get("/health") as answer:
        assert answer.status == 200


async def state(client: TestClient[Any, Any]) -> Any:
    async with client.get("/simulator") as answer:
        return await answer.json()


async def test_requests_are_counted_by_model(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_simulator(BOX))
    for model in ("qwen", "qwen", "bge", "unknown"):
        async with client.post("/v1/completions", json={"model": model, "prompt": "p"}):
            pass
    assert await state(client) == {
        "name": "local-a",
        "healthy": True,
        "first_token": 0,
        "token_rate": 0,
        "requests": 3,
        "streams": 0,
        "requests_by_model": {"qwen": 2, "bge": 1},
        "deterministic": False,
        "prefill": "asked",
        "faults": [],
        "faults_by_kind": {},
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_paced(aiohttp_client: AiohttpClient, *, stream: bool) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            app[STATE].token_rate = 0

    app = create_simulator(Box("slow", first_token=1.5, token_rate=4), sleep=sleep)
    client = await aiohttp_client(app)
    async with client.post("/v1/chat/completions", json={"model": "m", "stream": stream}) as answer:
        assert "slow." in await answer.text()
    assert slept == [1.5, 0.25, 0.25]


async def test_a_client_that_leaves_ends_its_stream(aiohttp_server: AiohttpServer) -> None:
    left = asyncio.Event()
    box: State

    async def sleep(_: float) -> None:
        assert box.streams == 1
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    app = create_simulator(SLOW, sleep=sleep)
    box = app[STATE]
    server = await aiohttp_server(app)
    async with RawClient(server.make_url("/")) as client:
        await client.send(post("/v1/chat/completions", {"model": "qwen", "stream": True}))
        await client.read_until(b'"role"')
    async with asyncio.timeout(PATIENCE):
        await left.wait()
    assert box.streams == 0


@pytest.mark.parametrize(("model", "mark"), [("qwen", b'"role"'), ("qwen+comments?count=1", b": ping")])
async def test_a_client_that_leaves_unnoticed_is_no_error(
    caplog: pytest.LogCaptureFixture, model: str, mark: bytes
) -> None:
    over = asyncio.Event()
    asked: list[web.Request] = []

    async def sleep(_: float) -> None:
        while asked[0].transport is not None:  # noqa: ASYNC110 - aiohttp tells nobody else that the client is gone
            await asyncio.sleep(0)

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked.append(request)
        try:
            return await handler(request)
        finally:
            over.set()

    app = create_simulator(SLOW, sleep=sleep)
    app.middlewares.append(watch)
    runner = web.AppRunner(app, handler_cancellation=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with RawClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
        await client.send(post("/v1/chat/completions", {"model": model, "stream": True}))
        await client.read_until(mark)
    async with asyncio.timeout(PATIENCE):
        await over.wait()
    await runner.cleanup()
    assert app[STATE].streams == 0
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
