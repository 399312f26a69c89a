"""`/v1/*`: the paths that an OpenAI client requests."""

import asyncio
import random
import time
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.hdrs import AUTHORIZATION, ORIGIN, VIA
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.adapters.openai_compatible import OPERATIONS, Operation, UnreplaceableModelError
from gateway.api.access import admitted
from gateway.api.body import JSON, Limits, Peek, check_head, peek_body, read_body
from gateway.api.context import GENERATION, REQUEST_ID, check_framing
from gateway.api.cors import check_page
from gateway.api.errors import RequestError, unanswered_response, unknown_model
from gateway.api.turns import Turns
from gateway.api.via import Via
from gateway.execution.client import Client, ClientLeftError, WebClient
from gateway.execution.executor import Executor
from gateway.execution.fields import Fields, media_type
from gateway.execution.outcome import Outcome
from gateway.execution.record import Ask
from gateway.execution.trace import Sampling, Trace
from gateway.execution.upstream import Call
from gateway.routing.manager import RoutingManager
from gateway.routing.snapshot import Model, Snapshot

_FORWARDED: Final = ("Accept",)
_TRACE: Final = ("traceparent", "tracestate")
_KEPT: Final = (*_TRACE, AUTHORIZATION)
_NO_FIELDS: Final = CIMultiDictProxy(CIMultiDict[str]())


class Asked(msgspec.Struct, eq=False):
    """A request whose head has arrived; `kind` is its media type, `length` the declared length of its body in bytes.

    With a `body`, the head has already been checked; without one, the body is still to be read. `fields` are the header
    fields to send to an upstream, if they are known.

    Mutable: the head and the body, which are dropped once read, and `client_name`, set once the key is known.
    """

    operation: Operation
    request_id: str
    headers: CIMultiDictProxy[str]
    content: StreamReader
    kind: str = JSON
    body: bytes | None = None
    length: int = 0
    fields: Fields | None = None
    client_name: str | None = None

    def __repr__(self) -> str:
        return f"<{self.operation} {self.request_id}>"

    def is_read(self) -> bool:
        """Return whether the whole body has arrived."""
        return self.content.is_eof()

    def forget(self) -> None:
        """Drop the head and the body, which a stream would hold for as long as it lasts."""
        self.headers, self.content, self.body, self.fields = _NO_FIELDS, EMPTY_PAYLOAD, None, None


class OpenAI:
    """The handlers of `/v1/*`. The `manager` has the snapshot in force, or None before there is one.

    With `sampling`, requests are traced; without, the clients' trace fields pass to the upstreams unchanged.
    Mutable: the list of models, and its generation.
    """

    def __init__(
        self,
        executor: Executor,
        manager: RoutingManager,
        limits: Limits,
        sampling: Sampling | None = None,
        pages: frozenset[str] = frozenset(),
    ) -> None:
        """Serve with this executor; `pages` are the origins whose pages may send requests, as for `Cors`."""
        self._pages = pages
        self._sampling = sampling
        self._executor = executor
        self._manager = manager
        self._limits = limits
        self._turns = Turns()
        self._via = Via(random.random)
        self._created = int(time.time())
        self._listed: tuple[int, bytes] = (0, b"")

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to register."""
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
        """Send 100 Continue, unless the head alone is refused; the handler then sends the refusal (RFC 9110 10.1.1).

        Raises:
            HTTPExpectationFailed: the client expects anything else.

        """
        if request.headers.get("Expect", "").lower() != "100-continue":
            raise web.HTTPExpectationFailed
        with suppress(RequestError, ConnectionError):  # a client that left is noticed when the body is read
            check_framing(request)
            self._admitted(request.headers)
            check_head(request.headers, _kind(request), _length(request), self._limits.body)
            if request.version == HttpVersion11:
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the final answer has not begun

    async def routed(self, request: web.Request, operation: Operation) -> web.StreamResponse:
        """Route a request by the model that it names, and answer it."""
        client = WebClient(request)
        asked = Asked(
            operation,
            request[REQUEST_ID],
            request.headers,
            request.content,
            _kind(request),
            length=_length(request),
        )
        try:
            unanswered = await self.answer(asked, client)
        finally:
            if client.generation is not None:
                request[GENERATION] = client.generation
        if unanswered is not None:
            return unanswered
        assert client.response is not None  # noqa: S101 - an answer was begun
        return client.response

    async def answer(self, asked: Asked, client: Client) -> web.Response | None:
        """Answer the client; a response that is returned is still to be sent, and says why no deployment answered.

        Raises:
            RequestError: the request is refused; nothing has been sent.

        """
        began, peek = time.monotonic(), None
        trace = _trace(self._sampling, asked.headers) if self._sampling is not None else None
        turn = self._turns.take()
        try:
            if turn is not None:
                await turn
            if asked.fields is None:
                self._check_origin(asked.headers)
            asked.client_name = self._admitted(asked.headers)
            body = asked.body
            if body is None or len(body) > self._limits.body:
                check_head(asked.headers, asked.kind, asked.length, self._limits.body)
                body = await read_body(asked.content, self._limits, asked.length)
            peek = peek_body(body)
            snapshot = self._snapshot()
            client.generation = snapshot.generation
            route = snapshot.routes.get(peek.model)
            if route is None:
                raise unknown_model(peek.model, snapshot.routes)
        except RequestError as error:
            why = error.status, error.code or "invalid_request"
            self._executor.tell(_refused(asked, client, peek, began, trace, *why))
            raise
        except asyncio.CancelledError:
            self._executor.tell(_refused(asked, client, peek, began, trace, *self._executor.unheard()))
            raise
        call = Call(asked.operation, body, asked.fields or self.forwarded(asked.headers), asked.request_id)
        asked.forget()
        del body
        is_stream = peek.stream is True
        adds_usage, choices = (peek.adds_usage(asked.operation), peek.choices) if is_stream else (False, 1)
        ask = Ask(asked.request_id, peek.model, is_stream, call, adds_usage, trace, choices, asked.client_name)
        try:
            unanswered = await self._executor.run(ask, snapshot, route, client)
        except ClientLeftError:
            return None  # there is nobody to send the rest to
        except UnreplaceableModelError as error:
            raise RequestError(400, str(error), param="model") from error
        return None if unanswered is None else unanswered_response(unanswered, ask.model)

    def _check_origin(self, headers: CIMultiDictProxy[str]) -> None:
        """Refuse what comes from where nobody may ask; heads that are known have been looked at (`may_repeat`).

        Raises:
            RequestError: 403 for a page, 508 for a request that has been here before.

        """
        if ORIGIN in headers:
            check_page(headers, self._pages)
        if VIA in headers:
            self._via.check(headers.getall(VIA))

    def may_repeat(self, headers: CIMultiDictProxy[str]) -> bool:
        """Tell whether a head that is taken once may be taken again without a look at where it comes from."""
        try:
            self._check_origin(headers)
        except RequestError:
            return False
        return True

    def _admitted(self, headers: CIMultiDictProxy[str]) -> str | None:
        snapshot = self._manager.snapshot
        clients = snapshot.settings.clients if snapshot is not None else None
        return None if clients is None else admitted(headers, clients)

    def forwarded(self, headers: CIMultiDictProxy[str]) -> Fields:
        """Return the header fields of a request that pass to an upstream."""
        passing = {"Content-Type": JSON, "Accept": "*/*"}
        for name in _FORWARDED if self._sampling else _FORWARDED + _TRACE:
            value = headers.get(name)
            if value is not None and value.isascii() and value.isprintable():
                passing[name] = value
        passing["Via"] = self._via.onwards(headers.getall(VIA, ()))
        return Fields(passing.items())

    def _snapshot(self) -> Snapshot:
        snapshot = self._manager.snapshot
        if snapshot is None:
            raise RequestError(503, "the gateway has no valid configuration yet", code="no_configuration")
        return snapshot

    def _shown_to(self, request: web.Request) -> Snapshot:
        snapshot = self._snapshot()
        request[GENERATION] = snapshot.generation
        self._admitted(request.headers)
        return snapshot

    async def list_models(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models`; the body is built once per generation."""
        snapshot = self._shown_to(request)
        if self._listed[0] != snapshot.generation:
            data = [self._model(model) for model in snapshot.models]
            self._listed = (snapshot.generation, _json({"object": "list", "data": data}))
        return web.Response(body=self._listed[1], content_type="application/json")

    async def show_model(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models/{id}`, for an alias as well."""
        snapshot = self._shown_to(request)
        name = request.match_info["id"]
        route = snapshot.routes.get(name)
        if route is None:
            raise unknown_model(name, snapshot.routes)
        model = next(model for model in snapshot.models if model.id == route.model)
        return web.Response(body=_json(self._model(model)), content_type="application/json")

    def _model(self, model: Model) -> dict[str, object]:
        """Describe a model as OpenAI does, with the fields that vLLM and SGLang add and their tools read."""
        told = {"id": model.id, "object": "model", "created": self._created, "owned_by": "hybrid-inference-gateway"}
        length = model.metadata.get("context_length")
        longest = {} if length is None else {"max_model_len": length}
        return {**told, "root": model.id, **longest, **model.metadata}


def _trace(sampling: Sampling, headers: CIMultiDictProxy[str]) -> Trace:
    return sampling.begin(*(headers.getall(name, ()) for name in _TRACE))


def _refused(  # noqa: PLR0917 - what is known of it
    asked: Asked, client: Client, peek: Peek | None, began: float, trace: Trace | None, status: int, failure: str
) -> Outcome:
    return Outcome(
        request_id=asked.request_id,
        operation=asked.operation,
        model=peek.model if peek else "",
        served_model=None,
        generation=client.generation or 0,
        stream=bool(peek and peek.stream),
        status=status,
        attempts=(),
        fallback=False,
        duration=(time.monotonic() - began) * 1000,
        failure=failure,
        trace=trace,
        client_name=asked.client_name,
    )


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=dict)  # a frozen mapping is the one type that it does not know


def kept(headers: CIMultiDictProxy[str]) -> CIMultiDictProxy[str]:
    """Return the fields of a head that are needed again when the next head is the same."""
    return CIMultiDictProxy(CIMultiDict((name, value) for name in _KEPT for value in headers.getall(name, ())))


def _kind(request: web.Request) -> str:
    """Return the media type; JSON without the field, except from a browser, which needs no preflight to omit it."""
    if "Content-Type" in request.headers:
        return media_type(request.headers["Content-Type"])
    return "" if "Origin" in request.headers else JSON


def _length(request: web.Request) -> int:
    return int(request.headers.get("Content-Length", 0))
