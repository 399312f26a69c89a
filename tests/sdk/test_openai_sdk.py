"""OpenAI's own client, synchronous and asynchronous, against a gateway in front of simulated boxes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam

from gateway.lifecycle import Door
from gateway.server import Options
from gateway.simulator import Box
from tests.conftest import MakeBox, OpenDoor
from tests.fakes.upstream import Hang, Reset, ScriptedUpstream, Send, Step, chunk, sse, sse_head
from tests.running import Config, until

ASKED = [{"role": "user", "content": "who are you?"}]
SAID = "I am local. This text is simulated,"
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
OPENING = [Send(sse_head() + chunk(sse('{"choices": [{"index": 0, "delta": {"content": "one"}}]}')))]


class Sdk(Protocol):
    """The client of one kind; what it is asked is written once, for both."""

    async def get(self, call: Callable[[Any], Any]) -> Any:
        """Make a call."""
        ...

    async def stream(self, call: Callable[[Any], Any]) -> list[Any]:
        """Make a call whose answer is a stream, and read it to its end."""
        ...


class SyncSdk:
    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    async def get(self, call: Callable[[Any], Any]) -> Any:
        return await asyncio.to_thread(call, self._client)

    async def stream(self, call: Callable[[Any], Any]) -> list[Any]:
        return await asyncio.to_thread(lambda: list(call(self._client)))


class AsyncSdk:
    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def get(self, call: Callable[[Any], Any]) -> Any:
        return await call(self._client)

    async def stream(self, call: Callable[[Any], Any]) -> list[Any]:
        return [item async for item in await call(self._client)]


@pytest.fixture
async def gateway(door: OpenDoor, config: Config, make_box: MakeBox) -> Door:
    """Serve a chat model on a local and a remote box, and one for embeddings."""
    local = await make_box(Box("local", ("chat-v2", "embed"), tokens=7, api_key="box-key"))
    keyed = {"base_url": local, "api_key": "box-key"}
    config.models(
        chat={"local": {**keyed, "provider_model_id": "chat-v2"}, "remote": await make_box(Box("remote"))},
        embed={"local": keyed},
    )
    config.routing(
        routing_parameter={"local_fraction": 1.0},
        local_deployment=[{"endpoint": local, "models": ["chat", "embed"]}],
        remote_deployment=[],
    )
    return await door(Options(config.path, environ={}))


@pytest.fixture(params=["sync", "async"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[Door, float], Sdk]]:
    """Make a client of each kind for a gateway, with a timeout in seconds."""
    async with AsyncExitStack() as stack:

        def make(door: Door, timeout: float = 30) -> Sdk:
            given: dict[str, Any] = {"base_url": f"{door.urls[0]}/v1", "timeout": timeout}
            if request.param == "sync":
                client = openai.OpenAI(api_key="client-key", max_retries=0, **given)
                stack.callback(client.close)
                return SyncSdk(client)
            a_client = openai.AsyncOpenAI(api_key="client-key", max_retries=0, **given)
            stack.push_async_callback(a_client.close)
            return AsyncSdk(a_client)

        yield make


@pytest.fixture
def sdk(connect: Callable[[Door], Sdk], gateway: Door) -> Sdk:
    return connect(gateway)


async def test_completion(sdk: Sdk) -> None:
    answer = await sdk.get(lambda client: client.chat.completions.create(model="chat", messages=ASKED))
    assert answer.choices[0].message.content == SAID
    assert (answer.choices[0].finish_reason, answer.system_fingerprint) == ("stop", "local")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 7, 10)


async def test_response_headers(sdk: Sdk) -> None:
    answer = await sdk.get(
        lambda client: client.chat.completions.with_raw_response.create(
            model="chat", messages=ASKED, extra_headers={"x-request-id": "mine"}
        )
    )
    assert answer.headers["x-gateway-deployment"] == "local"
    assert (answer.headers["x-gateway-attempts"], answer.headers["x-gateway-generation"]) == ("1", "1")
    assert answer.request_id == "mine"
    assert answer.parse()._request_id == "mine"


async def test_streaming(sdk: Sdk) -> None:
    chunks = await sdk.stream(lambda client: client.chat.completions.create(model="chat", messages=ASKED, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in chunks) == SAID
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(part.usage is None for part in chunks)


async def test_streaming_with_usage(sdk: Sdk) -> None:
    *chunks, last = await sdk.stream(
        lambda client: client.chat.completions.create(
            model="chat", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(part.choices[0].delta.content or "" for part in chunks) == SAID
    assert (last.choices, last.usage.completion_tokens) == ([], 7)


async def test_tools(sdk: Sdk) -> None:
    answer = await sdk.get(lambda client: client.chat.completions.create(model="chat", messages=ASKED, tools=[TOOL]))
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"echo": "who are you?"})
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_streamed_tools(sdk: Sdk) -> None:
    chunks = await sdk.stream(
        lambda client: client.chat.completions.create(model="chat", messages=ASKED, tools=[TOOL], stream=True)
    )
    calls = [call for part in chunks for call in part.choices[0].delta.tool_calls or ()]
    assert calls[0].function.name == "weather"
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert json.loads(arguments) == {"echo": "who are you?"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_legacy_completions(sdk: Sdk) -> None:
    answer = await sdk.get(lambda client: client.completions.create(model="chat", prompt="who are you?"))
    assert answer.choices[0].text == SAID
    chunks = await sdk.stream(lambda client: client.completions.create(model="chat", prompt="who?", stream=True))
    assert "".join(part.choices[0].text for part in chunks) == SAID


async def test_responses(sdk: Sdk) -> None:
    answer = await sdk.get(lambda client: client.responses.create(model="chat", input="who are you?"))
    assert (answer.output_text, answer.status, answer.metadata["box"]) == (SAID, "completed", "local")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 7, 10)
    events = await sdk.stream(
        lambda client: client.responses.create(model="chat", input=ASKED, stream=True, max_output_tokens=2)
    )
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == "I am"
    assert [each.sequence_number for each in events] == list(range(len(events)))
    last = events[-1]
    assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")


@pytest.mark.parametrize("encoding", [openai.omit, "float", "base64"])
async def test_embeddings(sdk: Sdk, encoding: Any) -> None:
    answer = await sdk.get(
        lambda client: client.embeddings.create(model="embed", input=["one", "two"], encoding_format=encoding)
    )
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.usage.prompt_tokens == 2


async def test_models(sdk: Sdk) -> None:
    listed = await sdk.get(lambda client: client.models.list())
    assert [model.id for model in listed.data] == ["chat", "embed"]
    shown = await sdk.get(lambda client: client.models.retrieve("chat"))
    assert (shown.id, shown.object, shown.owned_by) == ("chat", "model", "hybrid-inference-gateway")


@pytest.mark.parametrize("path", ["chat", "models"])
async def test_an_unknown_model_is_not_found(sdk: Sdk, path: str) -> None:
    def call(client: Any) -> Any:
        if path == "models":
            return client.models.retrieve("chatt")
        return client.chat.completions.create(model="chatt", messages=ASKED)

    with pytest.raises(openai.NotFoundError) as error:
        await sdk.get(call)
    assert error.value.message.endswith("the model 'chatt' is not served here, did you mean 'chat'?")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


async def test_an_upstreams_refusal_arrives_as_it_is(sdk: Sdk) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Expected `int` >= 1 - at `\$\.max_tokens`"):
        await sdk.get(lambda client: client.chat.completions.create(model="chat", messages=ASKED, max_tokens=0))


async def serving(door: OpenDoor, config: Config, upstream: ScriptedUpstream) -> Door:
    config.models(chat={"box": upstream.url})
    config.routing()
    return await door(Options(config.path, environ={}))


@pytest.mark.parametrize("steps", [[Hang()], [*OPENING, Hang()]])
async def test_a_client_that_gives_up_closes_the_upstream(
    connect: Callable[[Door, float], Sdk], door: OpenDoor, config: Config, steps: list[Step]
) -> None:
    async with ScriptedUpstream(steps) as upstream:
        sdk = connect(await serving(door, config, upstream), 0.2)

        async def gives_up() -> object:  # perhaps before it is heard
            with pytest.raises(openai.APITimeoutError):
                await sdk.stream(
                    lambda client: client.chat.completions.create(model="chat", messages=ASKED, stream=True)
                )
            return upstream.requests

        await until(gives_up)
        await upstream.closed_by_peer()
        await upstream.all_closed()


async def test_a_stream_that_breaks_is_an_error(connect: Callable[[Door], Sdk], door: OpenDoor, config: Config) -> None:
    async with ScriptedUpstream([*OPENING, Reset()]) as upstream:
        sdk = connect(await serving(door, config, upstream))
        with pytest.raises(openai.APIError, match="the upstream broke off in mid-stream") as error:
            await sdk.stream(lambda client: client.chat.completions.create(model="chat", messages=ASKED, stream=True))
        assert error.value.code == "stream_broken"


async def test_a_response_that_breaks_is_an_error(
    connect: Callable[[Door], Sdk], door: OpenDoor, config: Config
) -> None:
    begun = chunk(sse('{"type": "response.output_text.delta", "sequence_number": 4, "delta": "one"}'))
    async with ScriptedUpstream([Send(sse_head() + begun), Reset()]) as upstream:
        sdk = connect(await serving(door, config, upstream))
        with pytest.raises(openai.APIError, match="the upstream broke off in mid-stream") as error:
            await sdk.stream(lambda client: client.responses.create(model="chat", input=ASKED, stream=True))
        assert error.value.code == "stream_broken"


async def test_no_answer_at_all_is_an_error(connect: Callable[[Door], Sdk], door: OpenDoor, config: Config) -> None:
    async with ScriptedUpstream([Reset()]) as upstream:
        sdk = connect(await serving(door, config, upstream))
        with pytest.raises(openai.InternalServerError, match="no deployment of 'chat' answered, 2 attempts made"):
            await sdk.get(lambda client: client.chat.completions.create(model="chat", messages=ASKED))
