"""What a turn of the event loop has to write, written together at the beginning of the next one.

A peer on the same machine that waits for bytes sleeps, and waking it costs the writer more than the bytes do. Between
two writes there is a request's work, long enough for the peer to fall asleep again. Of several writes in a row the
first one wakes it. Netty calls that flush consolidation.

What is posted is written before anything happens that is scheduled after it: who goes on in a later turn need not
think of it. Whoever writes or closes in the same one flushes first. What was posted on a connection that is closing is
dropped, as the loop itself does.
"""

import asyncio
from collections import deque
from typing import Final

CROWD: Final = 4
"""From how many requests on what is posted waits for others. Among few it would only be late."""


class Outbox:
    """Holds what is to be written.

    Mutable: that (`waiting`), in the order it came, and `since` when the first of it does, in the loop's time; how many
    `requests` are being answered; and the loop, once it is known.
    """

    __slots__ = ("_loop", "requests", "since", "waiting")

    def __init__(self) -> None:
        """Start empty."""
        self.requests = 0
        self.waiting: deque[tuple[asyncio.WriteTransport, bytes]] = deque()
        self.since = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def post(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Let this be written soon, or at once where there is no crowd; in a running loop.

        While something waits, who posts very often may append to `waiting`, which is the same.
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
        """Write all that waits. What goes wrong with one connection is the loop's to tell, and no other's business."""
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
