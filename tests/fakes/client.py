"""A raw-socket HTTP client: sends exact bytes, and shows the exact bytes of the answer.

async with RawClient(server.make_url("/")) as client:
    await client.send(post("/v1/chat/completions", {"model": "m"}))
    answer = await client.read_answer()
"""

import asyncio
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from tests.fakes.connection import PATIENCE, Connection, Headers, split_head, values


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer; `raw` is its bytes up to and with the empty line."""

    raw: bytes
    version: str
    status: int
    reason: str
    headers: Headers

    def values(self, name: str) -> list[str]:
        return values(self.headers, name)

    def get(self, name: str) -> str | None:
        """The first value of a field."""
        return next(iter(self.values(name)), None)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `body` is decoded from chunks."""

    head: Head
    body: bytes

    @property
    def status(self) -> int:
        return self.head.status

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection to a server, `async with`. What the server does not say within PATIENCE is a TimeoutError."""

    def __init__(self, url: object, *, room: int | None = None) -> None:
        """`url` is anything whose str() is an http URL; its path is not used.

        `room`: how many bytes the kernel keeps, roughly, for a client that does not read.
        """
        parts = urlsplit(str(url))
        assert parts.hostname, f"no host in {url}"
        self._address = (parts.hostname, parts.port or 80)
        self._room = room
        self._connection = Connection(patience=PATIENCE)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self._room is None:
            await loop.create_connection(lambda: self._connection, *self._address)
            return self
        opened = socket.socket()
        opened.settimeout(0)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._room)  # before the first window is told
        await loop.sock_connect(opened, self._address)
        await loop.create_connection(lambda: self._connection, sock=opened)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.abort()

    @property
    def raw(self) -> bytes:
        """Every byte that arrived."""
        return bytes(self._connection.received)

    @property
    def ended(self) -> Literal["fin", "reset"] | None:
        """How the server ended the connection, if it did."""
        return self._connection.ended

    async def send(self, data: bytes) -> None:
        """Send exactly these bytes."""
        await self._connection.write(data)

    async def read_head(self) -> Head:
        """Return the head of the next answer; raises Cut."""
        raw = await self._connection.read_until(b"\r\n\r\n")
        start, headers = split_head(raw)
        version, code, *reason = start.split(" ", 2)
        return Head(raw, version, int(code), "".join(reason), headers)

    async def read_body(self, head: Head) -> bytes:
        """Return the body that `head` announces (RFC 9112 6.3), decoded; raises Cut when it ends early."""
        if head.status < 200 or head.status in (204, 304):
            return b""
        if head.values("transfer-encoding"):
            return await self._connection.read_chunked()
        if length := head.get("content-length"):
            return await self._connection.read_exactly(int(length))
        return await self._connection.read_to_end()

    async def read_answer(self) -> Answer:
        """Return the next answer, whole; raises Cut."""
        head = await self.read_head()
        return Answer(head, await self.read_body(head))

    async def read_chunk(self) -> bytes:
        """Return the data of one chunk, b"" for the last one; raises Cut."""
        return await self._connection.read_chunk()

    async def read_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes as they came; raises Cut."""
        return await self._connection.read_exactly(count)

    async def read_until(self, mark: bytes) -> bytes:
        """Return the bytes up to the end of the next `mark`, as they came; raises Cut."""
        return await self._connection.read_until(mark)

    async def read_to_end(self) -> bytes:
        """Return everything until the server ends the connection; `ended` then tells how."""
        return await self._connection.read_to_end()

    def pause_reading(self) -> None:
        """Take nothing more from the socket: a slow reader."""
        self._connection.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._connection.transport.resume_reading()

    async def abort(self) -> None:
        """Leave with an RST."""
        await self._connection.reset()

    async def close(self) -> None:
        """Leave with a FIN."""
        await self._connection.close()

    def vanish(self) -> None:
        """Be heard no more (Linux)."""
        self._connection.vanish()

    def half_close(self) -> None:
        """Send a FIN and go on reading."""
        self._connection.half_close()


def get(target: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Build a GET request."""
    return _request("GET", target, (("host", "gateway"), *headers)) + b"\r\n"


def post(target: str, obj: object, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Build a POST of a JSON body."""
    body = json.dumps(obj).encode()
    fields = (("host", "gateway"), ("content-type", "application/json"), ("content-length", str(len(body))))
    return _request("POST", target, (*fields, *headers)) + b"\r\n" + body


def _request(method: str, target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")
