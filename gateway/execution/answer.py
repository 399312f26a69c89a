"""An upstream's answer: its head read, its body still to come, in the bytes that the upstream sent.

Of its header fields only those named here go back to a client. Everything hop-by-hop stays behind (RFC 9110 7.6.1), as
does what is the upstream's own business.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import aiohttp
from aiohttp.connector import Connection
from multidict import CIMultiDictProxy

from gateway.routing.failures import Cause, Failure

_RETURNED: Final = frozenset(
    {"content-type", "content-encoding", "retry-after", "retry-after-ms", "x-should-retry", "openai-version"}
)
_RETURNED_PREFIXES: Final = ("x-ratelimit-", "ratelimit")
_RETURNED_SUFFIX: Final = "-processing-ms"


class AttemptFailedError(Exception):
    """An attempt, or an answer already begun, failed; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        """Carry the failure."""
        super().__init__(failure.cause.value)
        self.failure = failure


class Head(Protocol):
    """What an Answer needs of a response."""

    status: int
    content: aiohttp.StreamReader

    @property
    def ended(self) -> asyncio.Future[None]:
        """Is done when the connection has ended."""
        ...

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The header fields."""
        ...

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        ...

    @property
    def content_length(self) -> int | None:
        """The body's length in bytes, where that was told."""
        ...

    def release(self) -> object:
        """Give the connection back, the body being over."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Response(aiohttp.ClientResponse):
    """A response that knows when its connection ends: aiohttp tells those who read the body a part of that only.

    A body that stops being HTTP in its middle would have its reader wait for ever, and a reset would end a body
    without a length well (RFC 9112 8).
    """

    ended: asyncio.Future[None]

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read the head; there is none to come on a connection that is lost, which has no `closed` either."""
        closed = None if connection.protocol is None else connection.protocol.closed
        self.ended = closed or asyncio.get_running_loop().create_future()
        self.ended.remove_done_callback(heed)
        self.ended.add_done_callback(heed)
        return await super().start(connection)


def heed(ended: asyncio.Future[None]) -> None:
    """Look at how a connection ended, so that asyncio does not complain that nobody did."""
    with suppress(asyncio.CancelledError):
        ended.exception()


class Answer:
    """An upstream's answer, its head read and its body still to come."""

    def __init__(self, response: Head, done: Callable[[], None]) -> None:
        """Wrap a response; `done` is called once, when nothing more will be read of it."""
        self._response = response
        self._done: Callable[[], None] | None = done
        self.status = response.status
        self.headers = [(name, value) for name, value in response.headers.items() if _may_return(name, value)]
        self.content_type = response.content_type
        self.encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        self.length = response.content_length
        self._to_the_end = self.length is None and "Transfer-Encoding" not in response.headers and self.status != 204  # noqa: PLR2004 - RFC 9112 6.3
        response.ended.add_done_callback(self._cut)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be waited for."""
        return self._done is None or self._response.content.at_eof()

    async def chunk(self) -> bytes:
        """Give the next bytes as they came, `b""` at the end and after it.

        Raises:
            AttemptFailedError: the answer broke off.

        """
        if self._done is None:
            return b""
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the body was cut short")) from unquoting(error)
        if not chunk:
            if self._to_the_end and self._was_reset():
                raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the connection was reset inside the body"))
            self.close()
        return chunk

    async def read(self, limit: int) -> bytes | None:
        """Give the whole body, or None when it is larger than `limit` bytes.

        Raises:
            AttemptFailedError: the answer broke off.

        """
        body = b""
        while chunk := await self.chunk():
            body += chunk
            if len(body) > limit:
                return None
        return body

    def close(self) -> None:
        """Read no more of it. The connection goes back to the pool if the body has ended, and is closed otherwise."""
        if self._done is not None:
            done, self._done = self._done, None
            self._response.ended.remove_done_callback(self._cut)
            if self._response.content.at_eof():
                self._response.release()
            else:
                self._response.close()
            done()

    def _cut(self, _: asyncio.Future[None]) -> None:
        content = self._response.content
        if not content.is_eof():
            content.set_exception(aiohttp.ClientPayloadError("the connection ended inside the body"))

    def _was_reset(self) -> bool:
        ended = self._response.ended
        return ended.done() and not ended.cancelled() and ended.exception() is not None


def is_framed(response: Head) -> bool:
    """Whether the body is framed in a way that we asked for: no switch of protocols, no coding but chunked."""
    coding = response.headers.get("Transfer-Encoding", "chunked")
    return response.status >= 200 and coding.lower() == "chunked"  # noqa: PLR2004 - RFC 9110 15.2


def _may_return(name: str, value: str) -> bool:
    lower = name.lower()
    named = lower in _RETURNED or lower.startswith(_RETURNED_PREFIXES) or lower.endswith(_RETURNED_SUFFIX)
    return named and value.isascii() and value.isprintable()


def unquoting(error: Exception) -> Exception | None:
    """Give an error that may be kept as a cause: what aiohttp says of an answer quotes it, and it may echo our key."""
    quotes = isinstance(
        error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError
    )
    return None if quotes else error
