"""One TCP connection of a fake: bytes in, bytes out, and how the peer ended it.

`asyncio.StreamReader` forgets what it holds when the peer resets the connection; a test that asks which bytes arrived
before the reset needs them. Here every byte from the peer stays in `received`, and reading moves a cursor over it.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable
from typing import Literal, cast

Headers = tuple[tuple[str, str], ...]

_SO_ATTACH_FILTER = 26

PATIENCE = 20.0
"""Seconds after which a wait of a test gives up. A guard against a hung suite, never a measure."""


class Cut(Exception):  # noqa: N818 - a fact about the peer, not an error of the test
    """The peer ended the connection before what was waited for had arrived."""

    def __init__(self, partial: bytes, how: str) -> None:
        """`partial` holds the unread bytes; `how` is `fin`, `reset`, or `closed` when this side closed."""
        super().__init__(f"ended by {how} with {len(partial)} unread bytes: {partial[-200:]!r}")
        self.partial = partial
        self.how = how


class Connection(asyncio.Protocol):
    """A connected socket. `ended` is how the peer ended it (its FIN or its RST), `lost` that the socket is closed."""

    def __init__(
        self,
        *,
        patience: float | None = None,
        made: Callable[["Connection"], None] = lambda _: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.received = bytearray()
        self.ended: Literal["fin", "reset"] | None = None
        self.lost = False
        self._patience = patience
        self._made = made
        self._changed = changed
        self._cursor = 0
        self._settled = 0
        self._paused = False
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self._transport.set_write_buffer_limits(0)  # what write() has written is with the kernel
        self._made(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._notify()

    def eof_received(self) -> bool:
        self.ended = "fin"
        self._notify()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if exc is not None and self.ended is None:
            self.ended = "reset"
        self._notify()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._notify()

    @property
    def transport(self) -> asyncio.Transport:
        """The transport, once connected."""
        assert self._transport is not None, "not connected"
        return self._transport

    @property
    def unread(self) -> bytes:
        """What arrived and was not read yet."""
        return bytes(self.received[self._cursor :])

    @property
    def unsettled(self) -> bytes:
        """What arrived since `settle`."""
        return bytes(self.received[self._settled :])

    def settle(self) -> None:
        """Mark what was read so far as understood."""
        self._settled = self._cursor

    async def write(self, data: bytes) -> None:
        """Write and wait until the kernel has it all; raises ConnectionResetError on a closed connection."""
        if not self.lost:
            self.transport.write(data)
            await self._wait(lambda: self.lost or not self._paused)
        if self.lost:
            raise ConnectionResetError("write on a closed connection")

    async def read_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes; raises Cut."""
        await self._arrived(lambda: len(self.received) - self._cursor >= count)
        return self._take(self._cursor + count)

    async def read_until(self, mark: bytes) -> bytes:
        """Return the bytes up to the end of the next `mark`; raises Cut."""
        await self._arrived(lambda: self.received.find(mark, self._cursor) >= 0)
        return self._take(self.received.find(mark, self._cursor) + len(mark))

    async def read_to_end(self) -> bytes:
        """Return everything until the peer ends the connection; `ended` then tells how."""
        await self.wait_ended()
        return self._take(len(self.received))

    async def read_chunk(self) -> bytes:
        """Return the data of one chunk of a chunked body (RFC 9112 7.1), b"" for the last one; raises Cut."""
        size = int((await self.read_until(b"\r\n")).split(b";")[0], 16)
        if size == 0:
            while await self.read_until(b"\r\n") != b"\r\n":
                pass
            return b""
        return (await self.read_exactly(size + 2))[:-2]

    async def read_chunked(self) -> bytes:
        """Return a whole chunked body, decoded; raises Cut."""
        body = b""
        while piece := await self.read_chunk():
            body += piece
        return body

    async def wait_ended(self) -> None:
        """Wait until the peer ended the connection, or it is closed."""
        await self._wait(lambda: self.lost or self.ended is not None)

    async def close(self) -> None:
        """Close with a FIN."""
        self.transport.close()
        await self._wait(lambda: self.lost)

    async def reset(self) -> None:
        """Close with an RST."""
        if not self.lost:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await self.abort()

    async def abort(self) -> None:
        """Close at once, whatever waits to be written."""
        self.transport.abort()
        await self._wait(lambda: self.lost)

    def vanish(self) -> None:
        """Be heard no more, as a machine that lost its power: the kernel drops all that comes (Linux)."""
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF: return 0
        program = struct.pack("HP", 1, ctypes.addressof(drop))
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def half_close(self) -> None:
        """Send a FIN and go on reading."""
        self.transport.write_eof()

    def _take(self, end: int) -> bytes:
        data = bytes(self.received[self._cursor : end])
        self._cursor = end
        return data

    async def _arrived(self, ready: Callable[[], bool]) -> None:
        await self._wait(lambda: ready() or self.lost or self.ended is not None)
        if not ready():
            raise Cut(self.unread, self.ended or "closed")

    async def _wait(self, ready: Callable[[], bool]) -> None:
        async with asyncio.timeout(self._patience):
            while not ready():
                self._news.clear()
                await self._news.wait()

    def _notify(self) -> None:
        self._news.set()
        self._changed()


def split_head(head: bytes) -> tuple[str, Headers]:
    """Split a message head into its start line and its fields, in order; names as they were written."""
    start, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return start, tuple((name, value.strip(" \t")) for name, _, value in fields)


def values(headers: Headers, name: str) -> list[str]:
    """All values of a field, in order; names compare without case."""
    return [value for key, value in headers if key.lower() == name.lower()]


async def arrived() -> None:
    """Let servers learn of the connections that they accept: one that its server does not know outlives its close.

    A few turns of the loop do; the kernel may be late with a connection that was begun just now.
    """
    for _ in range(20):
        await asyncio.sleep(0)


async def first_of(*waits: asyncio.Task[object]) -> None:
    """Wait for the first of some tasks and cancel the others."""
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waits, return_exceptions=True)
