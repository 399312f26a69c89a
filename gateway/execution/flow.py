"""A body as it comes: kept until it is asked for, or poured out at once.

A reader that asks (`readany`) waits for a future and is woken by the loop; for many small parts, that costs more than
all else. A reader that lets the body pour is called with each part as it is received, and waits for the end only.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Final, Protocol

import msgspec

_MOST_WAITING: Final = 1 << 18
Straight = Generator[None, bytes, None]
"""A generator that is sent what a connection receives, raises nothing, and never ends by itself."""


class Source(Protocol):
    """Where a body comes from: what receives a connection's bytes."""

    def data_received(self, data: bytes) -> None:
        """Take what comes."""
        ...

    def divert(self, receive: Callable[[bytes], object] | None) -> None:
        """Let `receive` take what comes in place of `data_received`; None: no longer."""
        ...


class Flow(msgspec.Struct, eq=False):
    """One body, which a `source` receives over its transport; the transport is paused when too much waits.

    Mutable: the `parts` that wait, in the order they came; whether it is `over`, what broke it, and the error that the
    connection ended with, if any; the reader that waits or is poured to; and whether the transport is paused. Of a
    chunked body (RFC 9112, 7.1), also whether what comes next is a chunk's beginning (`between`).
    """

    transport: asyncio.Transport
    source: Source
    parts: list[bytes]
    over: bool
    lost_by: BaseException | None = None
    between: bool = False
    _error: BaseException | None = None
    _take: Callable[[bytes], bool] | None = None
    _poured: asyncio.Future[None] | None = None
    _waiter: asyncio.Future[None] | None = None
    _resting: bool = False

    def __repr__(self) -> str:
        return f"<{sum(map(len, self.parts))} bytes wait>"

    def give(self) -> None:
        """Hand on what has come (`parts`), and the end if there is one: pour it, or wake a reader that waits for it."""
        take = self._take
        if take is None:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            if sum(map(len, self.parts)) > _MOST_WAITING:
                self.pause()
            return
        if self.parts:
            try:
                enough = take(self._taken())
            except Exception as error:  # noqa: BLE001 - it is raised where the pouring is waited for
                self._finish(error)
                return
            if enough:
                self._finish(None)
        if self.over or self._error is not None:
            self._finish(self._error)

    def broke(self, error: BaseException) -> None:
        """Note that an incomplete body will bring no more; a call of `give` follows."""
        if not self.over and self._error is None:
            self._error = error

    @property
    def at_chunk(self) -> bool:
        """Whether what comes next is a chunk's beginning, and is poured."""
        return self.between and self._take is not None

    def at_eof(self) -> bool:
        """Return whether everything has been handed on."""
        return self.over and not self.parts

    def is_eof(self) -> bool:
        """Return whether everything has come."""
        return self.over

    def read_nowait(self) -> bytes:
        """Return what has come, without waiting."""
        if len(self.parts) == 1 and self.over:
            return self.parts.pop()
        return self._waiting() if self.parts else b""

    async def readany(self) -> bytes:
        """Wait for something to come and return it, `b""` at the end.

        Raises:
            aiohttp.ClientError, OSError: the body broke off.

        """
        while not self.parts:
            if self._error is not None:
                raise self._error
            if self.over:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._waiting()

    async def pour(
        self, take: Callable[[bytes], bool], straight: Callable[[Callable[[bytes], None]], Straight]
    ) -> None:
        """Call `take` with what has come and then with each part as it comes, until it returns true or the body ends.

        Meanwhile, what the connection receives, a body's framing and all, goes to `straight` first. That must pass what
        it does not take to the function that it is called with, which finds the body in it.

        Raises:
            aiohttp.ClientError, OSError: the body broke off. What `take` raises is raised as well.

        """
        if self.parts and take(self._waiting()):
            return
        if self._error is not None:
            raise self._error
        if self.over:
            return
        self._take = take
        self._poured = asyncio.get_running_loop().create_future()
        taking = straight(self.source.data_received)
        next(taking)
        self.source.divert(taking.send)
        try:
            await self._poured
        finally:
            self._take = self._poured = None
            self.source.divert(None)
            taking.close()

    def pause(self) -> None:
        """Stop receiving for now."""
        if not self._resting and not self.transport.is_closing():
            self._resting = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Receive again."""
        if self._resting:
            self._resting = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _waiting(self) -> bytes:
        data = self._taken()
        self.resume()
        return data

    def _taken(self) -> bytes:
        if len(self.parts) == 1:
            return self.parts.pop()
        parts, self.parts = self.parts, []
        return b"".join(parts)

    def _finish(self, error: BaseException | None) -> None:
        self._take = None
        poured = self._poured
        if poured is None or poured.done():
            return
        if error is None:
            poured.set_result(None)
        else:
            poured.set_exception(error)
