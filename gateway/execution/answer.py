"""An upstream's answer: its head has been read, its body is still to come, in the bytes that the upstream sent.

Only the header fields named here go back to a client. Hop-by-hop fields stay behind (RFC 9110 7.6.1), and so do those
that concern only the upstream.
"""

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from aiohttp.connector import Connection
from aiohttp.hdrs import CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from gateway.execution.fields import EVENT_STREAM, Fields, media_type
from gateway.execution.flow import Flow, Straight
from gateway.routing.failures import Cause, Failure
from gateway.routing.snapshot import Deployment

_RETURNED: Final = frozenset(
    {"content-type", "content-encoding", "retry-after", "retry-after-ms", "x-should-retry", "openai-version"}
)
_RETURNED_PREFIXES: Final = ("x-ratelimit-", "ratelimit")
_RETURNED_SUFFIX: Final = "-processing-ms"
_PLAIN: Final = "identity"
_JSON: Final = ("application/json", "+json")
BODILESS: Final = frozenset({204, 205})


class AttemptFailedError(Exception):
    """An attempt, or an answer already begun, failed; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        """Carry the failure."""
        super().__init__(failure.cause.value)
        self.failure = failure


class Facts(msgspec.Struct):
    """What the head of an answer says, except for the length of the body.

    `headers` are those that go back to a client. `framed`: the body is framed in a way that we asked for: no switch of
    protocols, no transfer coding but chunked. `encoded`: the body has a content coding, which was not asked for.
    `is_json`, `has_events`: the body is to be read as JSON, or as an event stream. `to_the_end`: the body ends with the
    connection.

    Mutable: `told`, the deployment that last gave such an answer, and the header fields that the client was sent with
    it.
    """

    status: int
    headers: list[tuple[str, str]]
    content_type: str
    is_json: bool
    has_events: bool
    encoded: bool
    framed: bool
    to_the_end: bool
    told: tuple[Deployment, Fields] | None = None


def facts(status: int, fields: CIMultiDictProxy[str]) -> Facts:
    """Return what the head of an answer says."""
    coding, has_length = fields.get(TRANSFER_ENCODING), CONTENT_LENGTH in fields
    content_type, is_json, has_events = _kind(fields.get(CONTENT_TYPE, ""))
    encoded = fields.get(CONTENT_ENCODING, _PLAIN).lower() != _PLAIN
    return Facts(
        status,
        [(name, text) for name, text in fields.items() if _returns(name) and text.isascii() and text.isprintable()],
        content_type,
        is_json and not encoded and status not in BODILESS,
        has_events and not encoded,
        encoded,
        status >= 200 and (coding is None or coding.lower() == "chunked"),  # noqa: PLR2004 - RFC 9110 15.2
        not has_length and coding is None and status != 204,  # noqa: PLR2004 - RFC 9112 6.3
    )


def length_of(fields: CIMultiDictProxy[str]) -> int | None:
    """Return the length of a body in bytes; None if the head does not give it."""
    length = fields.get(CONTENT_LENGTH)
    return None if length is None else int(length)


class Head(Protocol):
    """The part of a response that an Answer needs."""

    @property
    def facts(self) -> Facts:
        """What its head says. Read once."""
        ...

    @property
    def length(self) -> int | None:
        """The length of the body in bytes; None if the head does not give it."""
        ...

    @property
    def body(self) -> Flow | aiohttp.StreamReader:
        """The body to come."""
        ...

    @property
    def lost_by(self) -> BaseException | None:
        """The error that the connection ended with; None if it ended without one, or has not ended."""
        ...

    def release(self) -> object:
        """Give the connection back: the body has ended."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Response(aiohttp.ClientResponse):
    """A response that notices when its connection ends: aiohttp reports only some ends to a reader of the body.

    Otherwise the reader of a body that stops being HTTP half-way would wait for ever, and a reset would look like the
    proper end of a body without a length (RFC 9112 8).
    """

    _ended: asyncio.Future[None]

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read the head. A connection that is already lost brings none, and has no `closed` future either."""
        closed = None if connection.protocol is None else connection.protocol.closed
        self._ended = closed or asyncio.get_running_loop().create_future()
        self._ended.remove_done_callback(_heed)
        self._ended.add_done_callback(_heed)
        started = await super().start(connection)
        self._ended.add_done_callback(self._cut)
        return started

    @property
    def facts(self) -> Facts:
        """What the head says."""
        return facts(self.status, self.headers)

    @property
    def length(self) -> int | None:
        """The length of the body in bytes; None if the head does not give it."""
        return length_of(self.headers)

    @property
    def body(self) -> aiohttp.StreamReader:
        """The body to come."""
        return self.content

    @property
    def lost_by(self) -> BaseException | None:
        """The error that the connection ended with."""
        ended = self._ended
        error = ended.exception() if ended.done() and not ended.cancelled() else None
        return error and (error.__cause__ or error)  # aiohttp wraps the original error

    def close(self) -> None:
        """Close the connection."""
        self._ended.remove_done_callback(self._cut)
        super().close()

    def release(self) -> Any:  # noqa: ANN401 - aiohttp's own
        """Give the connection back."""
        self._ended.remove_done_callback(self._cut)
        return super().release()

    def _cut(self, _: asyncio.Future[None]) -> None:
        if not self.content.is_eof():
            self.content.set_exception(aiohttp.ClientPayloadError("the connection ended inside the body"))


def _heed(ended: asyncio.Future[None]) -> None:
    """Retrieve the exception of an ended connection, so that asyncio does not report that nobody did."""
    with suppress(asyncio.CancelledError):
        ended.exception()


class Answer(msgspec.Struct, eq=False):
    """An upstream's answer: its head has been read, its body is still to come.

    Mutable: `done`, which is called once, when nothing more will be read of the body.
    """

    response: Head
    facts: Facts
    status: int
    body: Flow | aiohttp.StreamReader
    done: Callable[[], None] | None

    @property
    def length(self) -> int | None:
        """The length of the body in bytes; None if the head does not give it."""
        return self.response.length

    def is_over(self) -> bool:
        """Return whether there is nothing more to wait for."""
        return self.done is None or self.body.at_eof()

    @property
    def flow(self) -> Flow | None:
        """The body, if it is one that can be poured."""
        return self.body if isinstance(self.body, Flow) else None

    async def chunk(self) -> bytes:
        """Return the next bytes as they came, `b""` at the end and after it.

        Raises:
            AttemptFailedError: the answer broke off.

        """
        if self.done is None:
            return b""
        try:
            chunk = await self.body.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise self._cut_short() from as_cause(error)
        if not chunk:
            self._end()
        return chunk

    def whole(self) -> bytes | None:
        """Return the whole body if all of it has come, else None; nothing of it may have been read before.

        Raises:
            AttemptFailedError: the body ended with a reset.

        """
        if self.done is None or not self.body.is_eof():
            return None
        body = self.body.read_nowait()
        if self.facts.to_the_end:
            self._end()
        return body

    async def pour(
        self, flow: Flow, take: Callable[[bytes], bool], straight: Callable[[Callable[[bytes], None]], Straight]
    ) -> None:
        """Pour `flow`, this answer's body, into `take` until that returns true or the body ends; see `Flow.pour`.

        Raises:
            AttemptFailedError: the answer broke off. What `take` raises is raised as well.

        """
        if self.done is None:
            return
        try:
            await flow.pour(take, straight)
        except (aiohttp.ClientError, OSError) as error:
            raise self._cut_short() from as_cause(error)
        if flow.at_eof():
            self._end()

    async def read(self, limit: int) -> bytes | None:
        """Return the whole body, or None if it is larger than `limit` bytes.

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
        """Stop reading. The connection goes back to the pool if the body has ended, and is closed otherwise."""
        if self.done is not None:
            done, self.done = self.done, None
            if self.body.at_eof():
                self.response.release()
            else:
                self.response.close()
            done()

    def _end(self) -> None:
        if self.facts.to_the_end and self.response.lost_by is not None:
            raise self._cut_short()
        self.close()

    def _cut_short(self) -> AttemptFailedError:
        why = errno_of(self.response.lost_by)
        return AttemptFailedError(Failure(Cause.CUT_ANSWER, f"the body was cut short{why and f' ({why})'}"))


def errno_of(error: BaseException | None) -> str:
    """Return the errno name of a system error; an empty string if it has none."""
    return errno.errorcode.get(getattr(error, "errno", None) or 0, "")


@lru_cache(maxsize=4096)
def _returns(name: str) -> bool:
    """Return whether a header field goes back to a client."""
    lower = name.lower()
    return lower in _RETURNED or lower.startswith(_RETURNED_PREFIXES) or lower.endswith(_RETURNED_SUFFIX)


@lru_cache(maxsize=256)
def _kind(text: str) -> tuple[str, bool, bool]:
    """Read a Content-Type: the media type, whether it is JSON, whether it is an event stream."""
    kind = media_type(text)
    return kind, kind.endswith(_JSON), kind == EVENT_STREAM


_QUOTING: Final = (
    HttpProcessingError,
    aiohttp.ClientResponseError,
    aiohttp.ClientPayloadError,
    aiohttp.ServerDisconnectedError,
)


def as_cause(error: Exception) -> Exception | None:
    """Return an error as it may be kept as a cause; None for aiohttp's that quote the answer, which may echo our key.

    Its traceback is dropped: aiohttp's errors are part of reference cycles, and the traceback's frames hold the request
    and with it the whole configuration.
    """
    error.__traceback__ = None
    return None if isinstance(error, _QUOTING) else error
