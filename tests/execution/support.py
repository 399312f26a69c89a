"""A gateway that listens as in production, in front of the fakes of a test."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from aiohttp import web

from gateway.adapters.openai_compatible import Address, authorization
from gateway.api.body import Limits
from gateway.execution.outcome import Outcome
from gateway.execution.upstream import Transport
from gateway.lifecycle import Door, Listen
from gateway.routing.snapshot import Deployment, Endpoint
from gateway.server import Gateway, Options
from tests.fakes.client import Answer, RawClient, post
from tests.fakes.connection import PATIENCE, Cut
from tests.fakes.leaping import leaping
from tests.fakes.upstream import sse
from tests.running import Config, open_door, until

CHAT = "/v1/chat/completions"
CONTENT = sse('{"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}')
FINISH = sse('{"choices":[{"delta":{},"finish_reason":"stop"}]}')
DONE = sse("[DONE]")
ROOM = 4096
"""Bytes that the kernel keeps at most, roughly, where it is to keep next to nothing."""

Route = Mapping[str, object]


def chain(*urls: str) -> dict[str, object]:
    """Write a route whose boxes are tried in this order: `a` first, `b` when it fails, and so on."""
    return {"abcdefgh"[place]: {"base_url": url, "weight": 0 if place else 1} for place, url in enumerate(urls)}


def ask(model: str = "m", **fields: object) -> bytes:
    """Write a chat request."""
    return post(CHAT, {"model": model, **fields})


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway under test; `outcomes` are those it told its observers, `delays` the seconds it did not sleep."""

    door: Door
    config: Config
    outcomes: list[Outcome]
    delays: list[float]

    @property
    def gateway(self) -> Gateway:
        return self.door.gateway

    @property
    def url(self) -> str:
        return self.door.urls[0]

    def deployment(self, model: str, name: str) -> Deployment:
        """Give a deployment by its names."""
        snapshot = self.gateway.manager.snapshot
        assert snapshot is not None
        return next(each for each in snapshot.deployments if each.identity == (model, name))

    def client(self, *, room: int | None = None) -> RawClient:
        """Open a connection; `room` is that of RawClient."""
        return RawClient(self.url, room=room)

    async def cramped(self) -> web.RequestHandler:
        """Cramp the one client, so that it is waited for as soon as a byte waits for it; give its line."""
        line, transport = await cramp(self.door)
        transport.set_write_buffer_limits(high=0)
        return line

    async def post(self, body: object, target: str = CHAT, headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """Post on a connection of its own; `body` is JSON, or the id of a model to chat with."""
        return await self.say(post(target, {"model": body} if isinstance(body, str) else body, headers))

    async def say(self, data: bytes) -> Answer:
        """Send bytes on a connection of its own, return the answer."""
        async with self.client() as client:
            await client.send(data)
            return await client.read_answer()

    async def broken(self, data: bytes) -> tuple[bytes, str]:
        """Send bytes and read the answer, which breaks; give what came of its body, and how it ended."""
        async with self.client() as client:
            await client.send(data)
            return await read_broken(client)

    async def outcome(self, number: int = 1) -> Outcome:
        """Wait for the n-th outcome (from 1), which is the last one."""
        await until(lambda: len(self.outcomes) >= number)
        assert len(self.outcomes) == number, self.outcomes
        return self.outcomes[-1]

    async def failures(self, number: int = 1) -> list[str | None]:
        """Give the failures of the n-th outcome's attempts, in order."""
        return [attempt.failure for attempt in (await self.outcome(number)).attempts]

    async def until_generation(self, number: int) -> None:
        """Wait until this generation is in force."""
        await until(lambda: self.gateway.manager.generation >= number)

    async def log(self) -> list[dict[str, Any]]:
        """Return the log's records so far."""
        self.gateway.feed.settle()
        assert await asyncio.to_thread(self.gateway.sink.flush, PATIENCE)
        return self.config.records()


async def cramp(door: Door) -> tuple[web.RequestHandler, asyncio.Transport]:
    """Let the kernel keep next to nothing for the one client, whose `room` is as small; give its line."""
    await until(lambda: door.capacity.connections)
    ((line, transport),) = door.capacity.connections.items()
    assert isinstance(line, web.RequestHandler)
    assert isinstance(transport, asyncio.Transport)
    limit(transport)
    return line, transport


def limit(transport: asyncio.Transport, room: int = ROOM) -> None:
    """Let the kernel keep only so many bytes, roughly, of what is written."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)


async def read_broken(client: RawClient) -> tuple[bytes, str]:
    """Read a chunked answer, which breaks; give what came of its body, and how it ended."""
    head = await client.read_head()
    assert head.status == 200, client.raw
    pieces: list[bytes] = []

    async def read() -> None:
        while piece := await client.read_chunk():
            pieces.append(piece)

    with pytest.raises(Cut) as cut:
        await read()
    assert cut.value.partial == b""
    return b"".join(pieces), cut.value.how


def error_of(answer: Answer) -> dict[str, Any]:
    """Check that an answer is an error in OpenAI's shape, and give the error."""
    assert (answer.status >= 400, answer.head.get("content-type")) == (True, "application/json"), answer
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


def deployment(url: str, health_path: str = "/health") -> Deployment:
    """Make a deployment of the model `m`, named `a`, without a key."""
    return Deployment(
        model="m",
        name="a",
        endpoint=Endpoint(url, url + health_path),
        kind="vllm",
        group="local",
        weight=Fraction(1),
        served_model="m",
        key=None,
        urls=Address.of(url).operation_urls(),
        headers=authorization(None),
    )


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process without a file descriptor to open, whichever a thread gives back meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # the standard streams are open
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def running(
    config: Config,
    routes: Mapping[str, Route] | None = None,
    *,
    limits: Limits | None = None,
    environ: Mapping[str, str] | None = None,
    transport: Transport | None = None,
    cors_origins: frozenset[str] = frozenset(),
    keep_alive: float = 75.0,
    **routing: object,
) -> AsyncIterator[Running]:
    """Serve `routes` by model, or the models.yaml that is there; `routing` are fields of routing.yaml."""
    leaping()
    if routes is not None:
        config.models(**routes)
    config.routing(**routing)
    options = Options(config.path, log_output=str(config.log), limits=limits or Limits(), environ=environ or {})
    options = replace(
        options, transport=transport or options.transport, cors_origins=cors_origins, keep_alive=keep_alive
    )
    door = await open_door(options, Listen(port=0))
    outcomes: list[Outcome] = []
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    door.gateway.executor._observers += (outcomes.append,)
    door.gateway.executor._sleep = sleep
    try:
        yield Running(door, config, outcomes, delays)
    finally:
        await door.close(PATIENCE)
