"""Aiohttp's response protocol, which also reads repeated heads by itself, and lets bodies pour.

It relies on internals that aiohttp does not guarantee: `ResponseHandler`, its parser and `StreamReader`, as of 3.14.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import TimerNoop
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EmptyStreamReader, StreamReader

from gateway.execution.answer import Facts, facts, length_of
from gateway.execution.client import close
from gateway.execution.flow import Flow
from gateway.execution.framing import ENDS
from gateway.execution.heads import LastHead
from gateway.execution.outbox import Outbox
from gateway.sockets import GONE, acknowledge_within, acknowledged, has_unacknowledged

_NEVER_PAUSED: Final = 1 << 30
_FITTING: Final = 1 << 14
"""How many bytes of a request a box's kernel accepts even if the box reads nothing."""
_LOOK: Final = 0.1
"""Seconds between two looks at how much of a long request the peer has taken."""
_READS: Final = 16
_MOST_READ: Final = 1 << 16
_FINAL: Final = 200
_SWITCHING: Final = 101
_timer: Final = TimerNoop()


def is_tested(version: str) -> bool:
    """Return whether this module was tested with a version of aiohttp."""
    return version.startswith("3.14.")


class LastHeads:
    """The last heads of a destination's answers: one whose body has a known length, and one whose body is chunked."""

    __slots__ = ("chunked", "whole")

    def __init__(self) -> None:
        """Start without heads."""
        self.whole: LastHead[Facts] = LastHead(of_answer=True)
        self.chunked: LastHead[Facts] = LastHead(of_answer=True)


Said = tuple[Facts, int | None, Flow]
"""What the head of an answer says, the length of the body (None if the head does not give it), and the body."""


class Connector(aiohttp.TCPConnector):
    """A connection pool that lets the bodies of answers pour."""

    def __init__(self, outbox: Outbox, **settings: Any) -> None:  # noqa: ANN401 - the connector's own
        """Create the pool; this needs a running loop."""
        super().__init__(**settings)
        self._factory = partial(AnswerProtocol, outbox, loop=self._loop)  # type: ignore[assignment] # a subclass of it


class PlainConnector(aiohttp.TCPConnector):
    """A connection pool like aiohttp's, but for connections that received something while they were idle."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - the connector's own
        """Create the pool; this needs a running loop."""
        super().__init__(**settings)
        self._factory = partial(_PlainProtocol, loop=self._loop)  # type: ignore[assignment] # a subclass of it


class _PlainProtocol(ResponseHandler):
    def is_connected(self) -> bool:
        """Return whether the pool may hand the connection out: nobody asked for what has come (RFC 9112 9.2)."""
        return super().is_connected() and not self.should_close


class AnswerProtocol(ResponseHandler):
    """Aiohttp's protocol, which also keeps the head that is awaited, and the flow of the current answer.

    Mutable: both; the last heads of the destination that was asked; how many bytes are still `_due` of a body whose
    head repeated one with a length, since aiohttp's parser does not read that body; and whether the time to acknowledge
    a request is limited.
    """

    flow: Flow | None = None
    _awaited: asyncio.Future[Said] | None = None
    _last: LastHeads
    _due = 0
    _is_bounded = False

    def __init__(self, outbox: Outbox, loop: asyncio.AbstractEventLoop) -> None:
        """Create the protocol of a connection to come, whose requests are posted in the outbox."""
        super().__init__(loop)
        self._outbox = outbox

    @property
    def was_used(self) -> bool:
        """Whether a session has read an answer here: it creates a parser for each."""
        return self._parser is not None

    def close(self) -> None:
        """Close. In mid-exchange, wait neither for the peer to read the request nor for TLS's closing handshake.

        A peer that has stopped would hold the connection, and the body that it does not read, for as long as it lives.
        The connection is reset, because otherwise the kernel would go on offering its part of that body.
        """
        transport = self.transport
        if transport is not None and (
            self._is_unread(transport) or (self._is_amid and transport.get_extra_info("sslcontext") is not None)
        ):
            if not transport.is_closing():  # else the socket may be gone
                close(transport, reset=True)
            self.abort()
        else:
            super().close()

    @property
    def _is_amid(self) -> bool:
        """Whether an answer, or the rest of one, is still to come: ours, or one that aiohttp reads for its session."""
        if self.flow is not None:
            return not self.flow.over
        payload = self._payload
        return self._awaited is not None or (self._parser is not None and (payload is None or not payload.is_eof()))

    def set_response_params(self, **params: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Create a parser for the next answer; the body of the last one is no longer read."""
        self._payload = None
        super().set_response_params(**params)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Record an error; first read what came before it: a box may answer, and close, before it has read all."""
        if isinstance(exc, OSError) and self._parser is not None and self._is_amid:
            self._read_what_came()
        super().set_exception(exc, *cause)

    def _read_what_came(self) -> None:
        """Read what the kernel has received: a failed write reports the end before the bytes ahead of it are read."""
        transport = self.transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return
        with suppress(OSError, ValueError):
            place = transport.get_extra_info("socket").fileno()
            for _ in range(_READS):
                data = os.read(place, _MOST_READ)
                if not data:
                    break
                self.data_received(data)

    def is_connected(self) -> bool:
        """Return whether another request may be sent: it is connected, idle, received nothing unasked, had no error.

        The pool asks this before it hands a connection out, because a box may send something on a pooled one unasked.
        A box may also answer before it has read a large request; it may never read the rest.
        """
        transport = self.transport
        return not (
            transport is None
            or self._should_close
            or self._tail
            or self._buffer
            or self._upgraded
            or self._exception is not None
            or transport.is_closing()
            or (not self._is_bounded and self._is_unread(transport))
        )

    def _is_unread(self, transport: asyncio.Transport) -> bool:
        """Return whether the peer has yet to receive a part of a request; of one that surely fits it has all."""
        if transport.get_write_buffer_size():
            return True
        if self._is_bounded:
            return False
        made = transport.get_extra_info("socket")
        with suppress(OSError, ValueError):
            return made is not None and has_unacknowledged(made)
        return False

    def waits(self) -> None:
        """Wait for the next request. What comes by then was not asked for; with no parser, none of it is consumed."""
        self.flow = self._parser = None

    def is_quiet(self) -> bool:
        """Return whether a connection that was usable when it became idle has neither ended nor received anything.

        When the peer ends it, the transport is closing first, and is gone only in the loop's next turn.
        """
        transport = self.transport
        return transport is not None and not self._tail and not transport.is_closing()

    def ask(
        self,
        data: bytes,
        last: LastHeads,
        rest: Iterable[bytes | memoryview] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> asyncio.Future[Said]:
        """Send a request; return a future of what the head of its answer says.

        The `rest` is too long to be copied. While the peer takes it, `sent` is called again and again: at least once
        after the last byte, unless the answer comes first.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError
        self._parser = None
        self._last = last
        awaited = self._awaited = self._loop.create_future()
        fits = rest is None and len(data) <= _FITTING
        if fits is not self._is_bounded:
            self._bound(transport, is_bounded=fits)
        self._outbox.post(transport, data)
        if rest is not None:
            for part in rest:
                self._outbox.post(transport, part)
            if sent is not None:
                self._watch(awaited, sent, _taken(transport))
        return awaited

    def _watch(self, awaited: asyncio.Future[Said], sent: Callable[[], None], taken: int) -> None:
        self._loop.call_later(_LOOK, self._look, awaited, sent, taken)

    def _look(self, awaited: asyncio.Future[Said], sent: Callable[[], None], before: int) -> None:
        """Call `sent` if the peer has taken more of the request; look again while there may be more to take.

        Only the kernel can tell: over TLS, the transport says that nothing waits.
        """
        transport = self.transport
        if awaited is not self._awaited or transport is None or transport.is_closing():
            return
        taken = _taken(transport)
        if taken > before:
            sent()
        if taken > before or self._is_unread(transport):
            self._watch(awaited, sent, taken)

    def _bound(self, transport: asyncio.Transport, *, is_bounded: bool) -> None:
        """Limit the time in which the peer must acknowledge what is sent, or lift the limit."""
        self._is_bounded = is_bounded
        made = transport.get_extra_info("socket")
        if made is not None:
            acknowledge_within(made, GONE if is_bounded else 0)

    def divert(self, receive: Callable[[bytes], object] | None) -> None:
        """Let `receive` take what comes in place of `data_received`; None: no longer.

        The protocol is set again because a loop may look the method up only once, when the transport is given its
        protocol.
        """
        if receive is None:
            del self.data_received
        else:
            self.data_received = receive  # type: ignore[method-assign, assignment] # its result is ignored
        if self.transport is not None:
            self.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Pass on at once what the bytes bring of a body: one write per read, however many chunks that holds."""
        flow = self.flow
        if flow is None:
            if self._awaited is None:
                super().data_received(data)
            elif self._parser is not None or not self._repeats(self._awaited, data):
                self._parse(self._awaited, data)
            return
        if self._due:
            self._fill(flow, data)
        else:
            self._read_on(flow, data)
        flow.give()

    def _repeats(self, awaited: asyncio.Future[Said], data: bytes) -> bool:
        """Take an answer whose head says the same as the last one; return whether it is one."""
        last = self._last.whole
        found = last.repeated(data)
        transport = self.transport
        if found is None or last.meaning is None or transport is None:
            return False
        at, length = found
        self._awaited = None
        if len(data) == at + length:
            flow = Flow(transport, self, [data[at:]] if length else [], over=True)
        else:
            flow = Flow(transport, self, [], over=False)
            self._due = length
            self._fill(flow, data[at:])
            if not flow.over:
                self.flow = flow
        if not awaited.done():
            awaited.set_result((last.meaning, length, flow))
        return True

    def _fill(self, flow: Flow, data: bytes) -> None:
        """Take a part of a body of known length."""
        due = self._due
        if len(data) > due:  # nobody asked for the rest: what comes next on this connection cannot be trusted
            self.force_close()
            data = data[:due]
        if data:
            flow.parts.append(data)
        self._due = due - len(data)
        if not self._due:
            flow.over = True

    def _read_on(self, flow: Flow, data: bytes) -> None:
        """Let aiohttp's parser read a part of a body, and note whether the part ends `between` two chunks."""
        parser = self._parser
        if parser is None:
            super().data_received(data)
            return
        try:
            messages, _, _ = parser.feed_data(data)
        except Exception as error:  # noqa: BLE001 - the parser's: as aiohttp does, but for a flow in its end
            self._broken(error)
            return
        if messages:  # nobody asked for them: what comes next on this connection cannot be trusted
            self.force_close()
        flow.between = flow.between and data[-2:] == ENDS  # else the next one has begun, its size line incomplete

    def _parse(self, awaited: asyncio.Future[Said], data: bytes) -> None:
        """Let aiohttp's parser read the head of an answer."""
        is_first = self._parser is None
        if is_first:
            self.set_response_params(
                timer=_timer, read_until_eof=True, auto_decompress=False, read_bufsize=_NEVER_PAUSED
            )
        assert self._parser is not None  # noqa: S101 - it is set
        try:
            messages, self._upgraded, _ = self._parser.feed_data(data)
        except Exception as error:  # noqa: BLE001 - the parser's: as aiohttp does
            self._broken(error)
            self._fails(HttpProcessingError())
            return
        for message, body in messages:
            if self._awaited is None or self.transport is None:
                self.force_close()
                return
            if message.code < _FINAL and message.code != _SWITCHING:
                is_first = False
                continue
            if message.should_close:
                self.force_close()
            length, known = length_of(message.headers), None
            is_first = is_first and not message.should_close and message.code == _FINAL
            last = self._last.chunked if length is None else self._last.whole
            if is_first and length is None and last.repeated(data):
                known = last.meaning
            flow, said = _flow(self, body), known or facts(message.code, message.headers)
            if is_first and known is None:
                last.learn(data, length, said)
            self._awaited = None
            if not awaited.done():
                awaited.set_result((said, length, flow))

    def _broken(self, error: Exception) -> None:
        """Close a connection whose answer is not HTTP."""
        if self.transport is not None:
            self.transport.close()
        self.set_exception(HttpProcessingError(), error)

    def _fails(self, error: BaseException) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited.done():
            awaited.set_exception(error)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own
        """Resume reading, if it is paused: aiohttp calls this at the end of each body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let an incomplete body break: aiohttp reports only some ends. First read what came before an error."""
        if isinstance(exc, OSError) and self._is_amid:
            self._read_what_came()
        flow, self.flow = self.flow, None
        if flow is not None:
            flow.lost_by = exc
        super().connection_lost(exc)
        self._fails(self.exception() or aiohttp.ServerDisconnectedError())
        if flow is not None:
            flow.broke(aiohttp.ClientPayloadError("the connection ended inside the body"))
            flow.give()


class _FlowReader(StreamReader):
    """A body that the parser fills, turned into a flow, which is in `_protocol`: there is no other place for it."""

    __slots__ = ()
    _protocol: Flow  # type: ignore[assignment] # this is the trick

    def becomes(self, flow: Flow) -> None:
        """Direct what comes to the flow, and drop the reader's own queues."""
        self._protocol = flow
        self._buffer = self._eof_callbacks = ()  # type: ignore[assignment] # nothing is put there
        self._http_chunk_splits = None

    def feed_data(self, data: bytes, size: int = 0) -> bool:  # noqa: ARG002 - the parser's call
        """Add bytes to the flow; its `give` hands them on."""
        self._protocol.parts.append(data)
        return False

    def feed_eof(self) -> None:
        """Note the end."""
        self._eof = True
        self._protocol.over = True

    def set_exception(self, exc: BaseException, exc_cause: object = None) -> None:  # noqa: ARG002 - as above
        """Note that the body broke off."""
        self._protocol.broke(exc)

    def begin_http_chunk_receiving(self) -> None:
        """Note that a chunk has begun, and its size is known."""
        self._protocol.between = False

    def end_http_chunk_receiving(self) -> None:
        """Note that a chunk has ended, with the line end that follows it."""
        self._protocol.between = True


def _flow(protocol: AnswerProtocol, body: StreamReader) -> Flow:
    """Turn a body, part of which may have come, into a flow."""
    transport = protocol.transport
    assert transport is not None  # noqa: S101 - it has just brought the head
    if isinstance(body, EmptyStreamReader):
        return Flow(transport, protocol, [], over=True)
    flow = Flow(transport, protocol, list(body._buffer), body.is_eof())  # noqa: SLF001 - what has come
    if not flow.over:
        protocol.flow = flow
        body.__class__ = _FlowReader
        body.becomes(flow)  # type: ignore[attr-defined] # it is one now
    return flow


def _taken(transport: asyncio.Transport) -> int:
    """Return a number that grows when the peer takes something."""
    made = transport.get_extra_info("socket")
    with suppress(OSError, ValueError):
        return (0 if made is None else acknowledged(made)) or -transport.get_write_buffer_size()
    return 0
