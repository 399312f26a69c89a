"""The application of a box: its paths, and the control requests."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.simulator.answers import Answer, Asked, PrefillRefusedError, deterministic, embeddings, introduction
from gateway.simulator.box import Box, Prefill, State
from gateway.simulator.errors import loading, refusal
from gateway.simulator.faults import AnyFault, NotNegative, named
from gateway.simulator.play import Sleep, play
from gateway.simulator.responses import AskedResponse, response
from gateway.simulator.script import Reply

T = TypeVar("T")
A = TypeVar("A", Asked, AskedResponse)

MAX_BODY = 64 * 2**20
STATE = web.AppKey("state", State)


def create_simulator(
    box: Box, *, sleep: Sleep = asyncio.sleep, clock: Callable[[], float] = time.monotonic
) -> web.Application:
    """Create the application of a box; `app[STATE]` is its state, `clock` is monotonic, in seconds."""
    state = State.of(box)
    handlers = _Handlers(box, state, sleep, clock)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[handlers.ask_for_key])
    app[STATE] = state
    app.on_response_prepare.append(handlers.sign)
    app.router.add_post("/v1/chat/completions", handlers.generate)
    app.router.add_post("/v1/completions", handlers.generate)
    app.router.add_post("/v1/responses", handlers.respond)
    app.router.add_post("/v1/embeddings", handlers.embed)
    app.router.add_get("/v1/models", handlers.models)
    app.router.add_get("/health", handlers.health)
    app.router.add_get("/simulator", handlers.show)
    app.router.add_post("/simulator", handlers.change)
    return app


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    """A control request: what it does not name is unchanged. An empty list removes all faults."""

    healthy: bool | None = None
    first_token: NotNegative | None = None
    token_rate: NotNegative | None = None
    deterministic: bool | None = None
    prefill: Prefill | None = None
    fault: AnyFault | list[AnyFault] | None = None


class _Handlers:
    def __init__(self, box: Box, state: State, sleep: Sleep, clock: Callable[[], float]) -> None:
        self._box = box
        self._state = state
        self._sleep = sleep
        self._clock = clock

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked, fault = await self._read(request, Asked)
        try:
            begun = asked.begun(self._state.prefill)
        except PrefillRefusedError as error:
            raise refusal(web.HTTPBadRequest, str(error), None) from error
        said = self._said(asked.texts(without_last=begun is not None))
        answer = Answer(asked, said, begun, self._box.name, chat=request.path.endswith("/chat/completions"))
        return await self._answer(request, asked.model, answer.reply(), fault)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        asked, fault = await self._read(request, AskedResponse)
        reply = response(asked, self._said(asked.texts()), self._box.name)
        return await self._answer(request, asked.model, reply, fault)

    async def embed(self, request: web.Request) -> web.StreamResponse:
        asked, fault = await self._read(request, Asked)
        return await self._answer(request, asked.model, embeddings(asked), fault)

    async def models(self, _: web.Request) -> web.Response:
        model = {"object": "model", "created": 0, "owned_by": self._box.name}
        data = [{"id": name, **model} for name in self._box.models or (self._box.name,)]
        return web.json_response({"object": "list", "data": data})

    async def health(self, _: web.Request) -> web.Response:
        if self._state.healthy and (fault := self._state.loading(self._clock())):
            return web.Response(body=loading(fault.says), status=503, content_type="application/json")
        status = 200 if self._state.healthy else 503
        return web.json_response({"status": "ok" if self._state.healthy else "unavailable"}, status=status)

    async def show(self, _: web.Request) -> web.Response:
        return web.json_response({"name": self._box.name, **self._state.told(self._clock())})

    async def change(self, request: web.Request) -> web.Response:
        for name, value in msgspec.structs.asdict(await _decode(request, _Change)).items():
            if name == "fault" and value is not None:
                self._state.plan(value if isinstance(value, list) else [value], self._clock())
            elif value is not None:
                setattr(self._state, name, value)
        return await self.show(request)

    async def sign(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-simulator"] = self._box.name

    @web.middleware
    async def ask_for_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self._box.api_key
        if key and request.path.startswith("/v1/") and request.headers.get("authorization") != f"Bearer {key}":
            raise refusal(web.HTTPUnauthorized, "Incorrect API key provided.", "invalid_api_key")
        return await handler(request)

    async def _read(self, request: web.Request, shape: type[A]) -> tuple[A, AnyFault | None]:
        asked = await _decode(request, shape)
        model, fault = (asked.model, None) if asked.model in self._box.models else _named(asked.model)
        if self._box.models and model not in self._box.models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise refusal(web.HTTPNotFound, message, "model_not_found")
        self._state.requests_by_model[asked.model] += 1
        return asked, fault

    def _said(self, prompt: list[str]) -> tuple[str, ...]:
        tokens = self._box.tokens
        return deterministic(prompt, tokens) if self._state.deterministic else introduction(self._box.name, tokens)

    async def _answer(
        self, request: web.Request, model: str, reply: Reply, named: AnyFault | None
    ) -> web.StreamResponse:
        if named is not None:
            fault = self._state.take_named(named, reply, model)
        else:
            fault = self._state.take(reply, model, self._clock())
        script = fault(reply, self._state.pace) if fault else reply.script(self._state.pace)
        self._state.streams += reply.is_stream
        try:
            return await play(request, script, self._sleep)
        finally:
            self._state.streams -= reply.is_stream


def _named(name: str) -> tuple[str, AnyFault | None]:
    try:
        return named(name)
    except msgspec.ValidationError as error:
        raise refusal(web.HTTPBadRequest, f"model {name!r}: {error}", None) from error


async def _decode(request: web.Request, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except msgspec.MsgspecError as error:
        raise refusal(web.HTTPBadRequest, str(error), None) from error
