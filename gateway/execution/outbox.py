"""What a turn of the event loop has to write, written together at the beginning of the next one.

A peer on the same machine that waits for bytes sleeps, and waking it costs the writer more than the bytes do. Between
two writes lies a request's work, long enough for the peer to fall asleep again. Of several writes in a row, only the
first wakes it. Netty calls this flush consolidation.

What is posted is written before anything that is scheduled after it: code that goes on in a later turn need not
consider it. Code that writes or closes in the same turn flushes first. What was posted on a connection that is closing
is dropped, as the loop itself does.
"""

import asyncio
from collections import deque
from typing import Final

CROWD: Final = 4
"""From how many requests on what is posted waits for more. With fewer it would only be late."""


class Outbox:
    """Holds what is to be written.

    Mutable: that (`waiting`), in the order it came, and since when the first of it has waited (`since`), in the loop's
    time; how many `requests` are being answered; and the loop, once it is known.
    """

    __slots__ = ("_loop", "requests", "since", "waiting")

    def __init__(self) -> None:
        """Start empty."""
        self.requests = 0
        self.waiting: deque[tuple[asyncio.WriteTransport, bytes | memoryview]] = deque()
        self.since = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def post(self, transport: asyncio.WriteTransport, data: bytes | memoryview) -> None:
        """Write this soon, or at once if there is no crowd; this needs a running loop.

        While something waits, a caller that posts very often may append to `waiting` itself, which has the same effect.
        """
        if self.requests < CROWD:
            if self.waiting:
                self.flush()
            transport.write(data)
            return
        if not self.waiting:
            loop = self._loop
            if loop is None:
                loop = self._loop = asyncio.get_running_loop()
            self.since = loop.time()
            loop.call_soon(self.flush)
        self.waiting.append((transport, data))

    def flush(self) -> None:
        """Write all that waits. An error on one connection is reported through the loop, and affects no other."""
        waiting = self.waiting
        while waiting:
            transport, data = waiting.popleft()
            if not transport.is_closing():
                try:
                    transport.write(data)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is of that connection
                    transport.abort()
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": "a write failed", "exception": error, "transport": transport}
                    )
