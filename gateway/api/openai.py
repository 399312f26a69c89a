"""`/v1/*`: what an OpenAI client asks for.

A body is read whole before anything is decided, within a limit and a deadline; only `model` and `stream` are looked at.
The deadline grows with what has arrived, so that a slow upload passes and a stalled or trickled one does not.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import msgspec
from aiohttp import HttpVersion11, StreamReader, web

from gateway.adapters.edited import LARGE
from gateway.adapters.openai_compatible import OPERATIONS, Operation, UnreplaceableModelError
from gateway.api.context import GENERATION, REQUEST_ID, check_framing
from gateway.api.errors import RequestError, unanswered_response, unknown_model
from gateway.execution.executor import CLIENT_LEFT, Ask, Executor
from gateway.execution.outcome import Outcome
from gateway.execution.relay import ClientLeftError, WebClient
from gateway.execution.trace import Sampling, Trace
from gateway.execution.upstream import Call
from gateway.routing.snapshot import Model, Route, Snapshot

_FORWARDED: Final = ("Accept",)
_TRACE: Final = ("traceparent", "tracestate")
_GRACE: Final = 30.0
_SLOWEST: Final = 16_384
_CREDIT: Final = 8
"""How many times what has come of a body may be set aside for it, on its word."""


class Peek(msgspec.Struct):
    """The fields of a body that routing needs. `stream_options` is looked at for whether it is there."""

    model: str
    stream: bool | None = None
    stream_options: msgspec.Raw = msgspec.Raw()

    def adds_usage(self, operation: Operation) -> bool:
        """Tell whether the upstream is to be asked for the usage of a stream that the client does not ask for."""
        return bool(self.stream) and not self.stream_options and operation != "embeddings"


_SHOWN: Final = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_peek: Final = msgspec.json.Decoder(Peek)


@dataclass(slots=True)
class _Refused:
    """A request that may yet be refused, as far as it is known; what its Outcome will say then."""

    request_id: str
    operation: Operation
    began: float
    model: str = ""
    stream: bool = False
    generation: int = 0
    trace: Trace | None = None

    def outcome(self, status: int, failure: str) -> Outcome:
        return Outcome(
            request_id=self.request_id,
            operation=self.operation,
            model=self.model,
            served_model=None,
            generation=self.generation,
            stream=self.stream,
            status=status,
            attempts=(),
            fallback=False,
            duration=(time.monotonic() - self.began) * 1000,
            failure=failure,
            trace=self.trace,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may take: bytes of body, and the seconds a body may stall."""

    body: int = 32 << 20
    stall: float = _GRACE


class OpenAI:
    """The handlers of `/v1/*`. `current` gives the snapshot in force, or None before there is one.

    With `sampling`, requests are traced; without, what clients say of traces passes to the upstreams as it is.
    """

    def __init__(
        self,
        executor: Executor,
        current: Callable[[], Snapshot | None],
        limits: Limits,
        sampling: Sampling | None = None,
    ) -> None:
        """Serve with this executor."""
        self._sampling = sampling
        self._executor = executor
        self._current = current
        self._limits = limits
        self._created = int(time.time())
        self._listed: tuple[int, bytes] = (0, b"")

    def routes(self) -> list[web.RouteDef]:
        """Give the routes to register."""
        return [
            *map(self._route, OPERATIONS),
            web.get("/v1/models", self.list_models),
            web.get("/v1/models/{id:.+}", self.show_model),
        ]

    def _route(self, operation: Operation) -> web.RouteDef:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self.routed(request, operation)

        return web.post(f"/v1/{operation}", handle, expect_handler=self.invite)

    async def invite(self, request: web.Request) -> None:
        """Say 100 Continue, unless the head alone earns a refusal, which the handler then gives (RFC 9110 10.1.1).

        Raises:
            HTTPExpectationFailed: something else is expected.

        """
        if request.headers.get("Expect", "").lower() != "100-continue":
            raise web.HTTPExpectationFailed
        with suppress(RequestError):
            check_framing(request)
            _check_head(request, self._limits.body)
            if request.version == HttpVersion11:
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the answer proper has not begun

    async def routed(self, request: web.Request, operation: Operation) -> web.StreamResponse:
        """Answer a request by the model it names."""
        trace = self._trace(request)
        refused = _Refused(request[REQUEST_ID], operation, time.monotonic(), trace=trace)
        try:
            _check_head(request, self._limits.body)
            body = await read_body(request, self._limits)
            peek = peek_body(body)
            refused.model, refused.stream = peek.model, bool(peek.stream)
            snapshot = self._snapshot(request)
            refused.generation = snapshot.generation
            route = snapshot.routes.get(peek.model)
            if route is None:
                raise unknown_model(peek.model, snapshot.routes)
        except RequestError as error:
            self._executor.tell(refused.outcome(error.status, error.code or "invalid_request"))
            raise
        except asyncio.CancelledError:
            self._executor.tell(refused.outcome(CLIENT_LEFT, "client_left"))
            raise
        call = _call(request, operation, body, _FORWARDED if trace else _FORWARDED + _TRACE)
        ask = Ask(request[REQUEST_ID], peek.model, bool(peek.stream), call, peek.adds_usage(operation), trace)
        return await self._answer(request, ask, snapshot, route)

    async def _answer(self, request: web.Request, ask: Ask, snapshot: Snapshot, route: Route) -> web.StreamResponse:
        client = WebClient(request)
        unanswered = None
        try:
            unanswered = await self._executor.run(ask, snapshot, route, client)
        except ClientLeftError:
            pass  # what has been begun is all there will be
        except UnreplaceableModelError as error:
            raise RequestError(400, str(error), param="model") from error
        if unanswered is not None:
            return unanswered_response(unanswered, ask.model)
        assert client.response is not None  # noqa: S101 - an answer was begun
        return client.response

    def _trace(self, request: web.Request) -> Trace | None:
        if self._sampling is None:
            return None
        return self._sampling.begin(*(request.headers.getall(name, ()) for name in _TRACE))

    def _snapshot(self, request: web.Request) -> Snapshot:
        snapshot = self._current()
        if snapshot is None:
            raise RequestError(503, "the gateway has no valid configuration yet", code="no_configuration")
        request[GENERATION] = snapshot.generation
        return snapshot

    async def list_models(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models`; the body is made once a generation."""
        snapshot = self._snapshot(request)
        if self._listed[0] != snapshot.generation:
            data = [self._model(model) for model in snapshot.models]
            self._listed = (snapshot.generation, _json({"object": "list", "data": data}))
        return web.Response(body=self._listed[1], content_type="application/json")

    async def show_model(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models/{id}`, an alias included."""
        snapshot = self._snapshot(request)
        name = request.match_info["id"]
        route = snapshot.routes.get(name)
        if route is None:
            raise unknown_model(name, snapshot.routes)
        model = next(model for model in snapshot.models if model.id == route.model)
        return web.Response(body=_json(self._model(model)), content_type="application/json")

    def _model(self, model: Model) -> dict[str, object]:
        owner = {"owned_by": "hybrid-inference-gateway"}
        return {"id": model.id, "object": "model", "created": self._created, **owner, **model.metadata}


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=dict)  # a frozen mapping is the one thing that it does not know


def _call(request: web.Request, operation: Operation, body: bytes, forwarded: Iterable[str]) -> Call:
    headers = {"Content-Type": "application/json", "x-request-id": request[REQUEST_ID]}
    for name in forwarded:
        value = request.headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            headers[name] = value
    return Call(operation, body, headers)


def _check_head(request: web.Request, limit: int) -> None:
    kind = request.content_type.lower()
    named = "Content-Type" in request.headers
    if named and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = repr(kind[:100])
        raise RequestError(400, f"content-type: found {shown}, expected application/json", param="content-type")
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestError(
            415, "content-encoding: expected none", code="unsupported_encoding", param="content-encoding"
        )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes", code="request_too_large")


async def read_body(request: web.Request, limits: Limits) -> bytes:
    """Read the body.

    Raises:
        RequestError: 413 above the limit, 408 when it stalls (RFC 9110 15.5.14, 15.5.9), 400 when it breaks off.

    """
    content = request.content
    try:
        body = await (content.read() if content.is_eof() else _arrived(content, limits, request.content_length or 0))
    except TimeoutError as error:
        raise RequestError(408, "the request's body stopped arriving", code="request_timeout") from error
    except web.RequestPayloadError as error:
        raise RequestError(400, "the request's body is not well framed", code="invalid_body") from error
    if len(body) > limits.body:
        raise _too_large(limits.body)
    return body


async def _arrived(content: StreamReader, limits: Limits, expected: int) -> bytes:
    """Gather a body in one buffer: parts that are joined in the end would be there twice."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    body = BytesIO()
    is_roomy = expected <= LARGE
    async with asyncio.timeout(limits.stall) as deadline:
        while part := await content.readany():
            body.write(part)
            size = body.tell()
            if size > limits.body:
                raise _too_large(limits.body)
            if not is_roomy and size < expected <= size * _CREDIT:
                is_roomy = True
                _make_room(body, expected)
            deadline.reschedule(began + limits.stall + size / _SLOWEST)
    return body.getvalue()


def _make_room(body: BytesIO, length: int) -> None:
    """Give a buffer its final length: one that grows moves now and then, and is there twice meanwhile."""
    size = body.tell()
    body.seek(length - 1)
    body.write(b"\0")
    body.seek(size)


def peek_body(body: bytes) -> Peek:
    """Read what routing needs to know of a body.

    Raises:
        RequestError: it is no JSON object, or `model` or `stream` are not what they should be.

    """
    if not body:
        raise RequestError(400, "the body is empty, expected a JSON object", code="invalid_json")
    try:
        return _peek.decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # the cause would carry the body along
        raise RequestError(400, f"the body is not valid JSON: {_position(error)}", code="invalid_json") from None


def _field_error(message: str) -> RequestError:
    """Name the field that msgspec's message is about (`Expected `str`, got `int` - at `$.model``)."""
    if "required field `model`" in message:
        return RequestError(400, "model is missing", code="missing_field", param="model")
    for param in ("model", "stream"):
        if f"$.{param}" in message:
            expected = "a string" if param == "model" else "true or false"
            found = message.partition("got `")[2].partition("`")[0]
            found = _SHOWN.get(found, found)
            return RequestError(400, f"{param}: found {found}, expected {expected}", code="invalid_type", param=param)
    return RequestError(400, "the body is not a JSON object", code="invalid_type")


def _position(error: Exception) -> str:
    """Keep the place and drop what the decoder may quote of the body."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    _, marker, place = str(error).partition("(byte ")
    return f"unexpected at byte {place.rstrip(')')}" if marker else "it is cut short"
