"""A simulated OpenAI-compatible box: what `gateway demo` serves and the tests talk to.

It answers at a set pace, and each answer says which box gave it. What a running box does is in its `State`, which
`POST /simulator` changes and `GET /simulator` shows; whatever else a box shall learn to do wrong belongs there.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import math
import re
import struct
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

Json = dict[str, object]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Input = str | list[str | int | list[int]]
Sleep = Callable[[float], Awaitable[None]]
T = TypeVar("T")

MAX_BODY = 64 * 2**20
FILLER = (" This", " text", " is", " simulated,", " one", " word", " for", " each", " token.")


@dataclass(frozen=True, slots=True)
class Box:
    """What a box is from its start.

    `models` are the ids it knows (none: it answers to any); `first_token` is the delay before an answer's first token
    in seconds; `token_rate` is in tokens a second (0: no waiting); `tokens` is the length of an answer; `api_key` is
    the bearer token that it asks for.
    """

    name: str
    models: tuple[str, ...] = ()
    first_token: float = 0.0
    token_rate: float = 0.0
    tokens: int = 12
    api_key: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class State:
    """How a running box behaves, and what it counts: the streams now open, the requests it took on."""

    first_token: float
    token_rate: float
    healthy: bool = True
    streams: int = 0
    requests_by_model: Counter[str] = field(default_factory=Counter)


STATE = web.AppKey("state", State)


def create_simulator(box: Box, *, sleep: Sleep = asyncio.sleep) -> web.Application:
    """Make the application of a box; `app[STATE]` is its state."""
    state = State(box.first_token, box.token_rate)
    handlers = _Handlers(box, state, sleep)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[handlers.ask_for_key])
    app[STATE] = state
    app.on_response_prepare.append(handlers.sign)
    app.router.add_post("/v1/chat/completions", handlers.generate)
    app.router.add_post("/v1/completions", handlers.generate)
    app.router.add_post("/v1/embeddings", handlers.embed)
    app.router.add_get("/v1/models", handlers.models)
    app.router.add_get("/health", handlers.health)
    app.router.add_get("/simulator", handlers.show)
    app.router.add_post("/simulator", handlers.change)
    return app


class _Message(msgspec.Struct):
    role: str
    content: str | list[Json] | None = None

    def text(self) -> str:
        parts = [{"text": self.content}] if isinstance(self.content, str) else self.content or []
        return " ".join(str(part["text"]) for part in parts if "text" in part)


class _Function(msgspec.Struct):
    name: str


class _Tool(msgspec.Struct):
    function: _Function


class _Request(msgspec.Struct):
    """A body of any of the three endpoints, as far as a simulated box reads it."""

    model: str
    messages: list[_Message] = []
    prompt: Input = ""
    input: Input = ""
    stream: bool | None = None
    stream_options: dict[str, bool | None] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    tools: list[_Tool] | None = None
    tool_choice: object = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32

    def called_tool(self) -> str | None:
        """Name the first tool, unless tools are off or the conversation ends with a tool's result."""
        off = self.tool_choice == "none" or any(last.role == "tool" for last in self.messages[-1:])
        return self.tools[0].function.name if self.tools and not off else None

    def last_user_text(self) -> str:
        return next((message.text() for message in reversed(self.messages) if message.role == "user"), "")


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    healthy: bool | None = None
    first_token: NotNegative | None = None
    token_rate: NotNegative | None = None


class _Answer:
    """A completion, to be given whole or in chunks. Its `pieces` are its tokens: text, or a tool's arguments."""

    def __init__(self, box: Box, asked: _Request, *, chat: bool) -> None:
        self._chat = chat
        self._tool = asked.called_tool() if chat else None
        said = _words(box) if self._tool is None else _arguments(asked.last_user_text())
        self.pieces = said[: asked.max_completion_tokens or asked.max_tokens]
        self._finish = "length" if len(self.pieces) < len(said) else "stop" if self._tool is None else "tool_calls"
        self._usage = _usage([*(message.text() for message in asked.messages), *_texts(asked.prompt)], self.pieces)
        self._id = uuid.uuid4().hex
        self._frame: Json = {"created": int(time.time()), "model": asked.model, "system_fingerprint": box.name}

    def whole(self) -> Json:
        text = "".join(self.pieces)
        message: Json = {"role": "assistant", "content": text}
        if self._tool is not None:
            message |= {"content": None, "tool_calls": [self._call(text)]}
        said: Json = {"message": message} if self._chat else {"text": text}
        return self._envelope(_choice(said, self._finish), self._usage)

    def opening(self) -> Iterator[Json]:
        """Give the chunks before the first token."""
        if self._chat:
            yield self._chunk({"role": "assistant", "content": "" if self._tool is None else None})
        if self._tool is not None:
            yield self._chunk({"tool_calls": [{"index": 0, **self._call("")}]})

    def piece(self, text: str) -> Json:
        if self._tool is not None:
            return self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})
        return self._chunk({"content": text} if self._chat else {"text": text})

    def closing(self, *, usage: bool) -> Iterator[Json]:
        """Give the chunks after the last token."""
        yield self._chunk({} if self._chat else {"text": ""}, self._finish)
        if usage:
            yield self._envelope([], self._usage, ".chunk")

    def _call(self, arguments: str) -> Json:
        return {"id": f"call_{self._id}", "type": "function", "function": {"name": self._tool, "arguments": arguments}}

    def _chunk(self, content: Json, finish: str | None = None) -> Json:
        return self._envelope(_choice({"delta": content} if self._chat else content, finish), None, ".chunk")

    def _envelope(self, choices: list[Json], usage: Json | None, suffix: str = "") -> Json:
        prefix, kind = ("chatcmpl", f"chat.completion{suffix}") if self._chat else ("cmpl", "text_completion")
        return {"id": f"{prefix}-{self._id}", "object": kind, **self._frame, "choices": choices, "usage": usage}


class _Handlers:
    def __init__(self, box: Box, state: State, sleep: Sleep) -> None:
        self._box = box
        self._state = state
        self._sleep = sleep

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await self._read(request)
        answer = _Answer(self._box, asked, chat=request.path.endswith("/chat/completions"))
        if asked.stream:
            usage = bool((asked.stream_options or {}).get("include_usage"))
            return await self._stream(request, answer, usage=usage)
        async for _ in self._paced(answer.pieces):
            pass
        return web.json_response(answer.whole())

    async def embed(self, request: web.Request) -> web.Response:
        asked = await self._read(request)
        texts = _texts(asked.input)
        vectors = [_vector(text, asked.dimensions, asked.encoding_format) for text in texts]
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return web.json_response({"object": "list", "data": data, "model": asked.model, "usage": _usage(texts, ())})

    async def models(self, _: web.Request) -> web.Response:
        model = {"object": "model", "created": 0, "owned_by": self._box.name}
        data = [{"id": name, **model} for name in self._box.models or (self._box.name,)]
        return web.json_response({"object": "list", "data": data})

    async def health(self, _: web.Request) -> web.Response:
        status = 200 if self._state.healthy else 503
        return web.json_response({"status": "ok" if self._state.healthy else "unavailable"}, status=status)

    async def show(self, _: web.Request) -> web.Response:
        counted: Json = {"name": self._box.name, "requests": self._state.requests_by_model.total()}
        return web.json_response(counted | msgspec.to_builtins(self._state))

    async def change(self, request: web.Request) -> web.Response:
        for name, value in msgspec.structs.asdict(await _decode(request, _Change)).items():
            if value is not None:
                setattr(self._state, name, value)
        return await self.show(request)

    async def sign(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-simulator"] = self._box.name

    @web.middleware
    async def ask_for_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self._box.api_key
        if key and request.path.startswith("/v1/") and request.headers.get("authorization") != f"Bearer {key}":
            raise _refusal(web.HTTPUnauthorized, "Incorrect API key provided.", "invalid_api_key")
        return await handler(request)

    async def _read(self, request: web.Request) -> _Request:
        asked = await _decode(request, _Request)
        if self._box.models and asked.model not in self._box.models:
            message = f"The model `{asked.model}` does not exist or you do not have access to it."
            raise _refusal(web.HTTPNotFound, message, "model_not_found")
        self._state.requests_by_model[asked.model] += 1
        return asked

    async def _stream(self, request: web.Request, answer: _Answer, *, usage: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        self._state.streams += 1
        try:
            await response.prepare(request)
            for event in answer.opening():
                await response.write(_event(event))
            async for piece in self._paced(answer.pieces):
                await response.write(_event(answer.piece(piece)))
            for event in answer.closing(usage=usage):
                await response.write(_event(event))
            await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            return response  # the client left; aiohttp would log a traceback
        finally:
            self._state.streams -= 1
        return response

    async def _paced(self, pieces: Iterable[str]) -> AsyncIterator[str]:
        await self._sleep(self._state.first_token)
        for index, piece in enumerate(pieces):
            if index and self._state.token_rate:
                await self._sleep(1 / self._state.token_rate)
            yield piece


async def _decode(request: web.Request, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except msgspec.MsgspecError as error:
        raise _refusal(web.HTTPBadRequest, str(error), None) from error


def _refusal(kind: type[web.HTTPError], message: str, code: str | None) -> web.HTTPError:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return kind(text=json.dumps({"error": error}), content_type="application/json")


def _event(event: Json) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _choice(content: Json, finish: str | None) -> list[Json]:
    return [{"index": 0, **content, "logprobs": None, "finish_reason": finish}]


def _usage(prompt: Iterable[str], pieces: tuple[str, ...]) -> Json:
    read, spent = sum(len(text.split()) for text in prompt), len(pieces)
    return {"prompt_tokens": read, "completion_tokens": spent, "total_tokens": read + spent}


def _words(box: Box) -> tuple[str, ...]:
    words = itertools.chain(("I", " am", f" {box.name}."), itertools.cycle(FILLER))
    return tuple(itertools.islice(words, box.tokens))


def _arguments(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\S+\s*", json.dumps({"echo": text})))


def _texts(value: Input) -> list[str]:
    """Split an input into its texts; a text may be written as a list of token numbers."""
    if isinstance(value, str) or all(isinstance(item, int) for item in value):
        return [str(value)]
    return [str(item) for item in value]


def _vector(text: str, dimensions: int, encoding: str) -> list[float] | str:
    """Derive a unit vector from a text; OpenAI's base64 holds little-endian 32-bit floats."""
    numbers = struct.unpack(f"<{dimensions}h", hashlib.shake_256(text.encode()).digest(2 * dimensions))
    length = math.hypot(*numbers) or 1.0
    vector = [number / length for number in numbers]
    return base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if encoding == "base64" else vector
