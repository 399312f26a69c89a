"""Aiohttp's response protocol, which reads heads that repeat by itself, and lets bodies pour.

It leans on what aiohttp does not promise: `ResponseHandler`, its parser and `StreamReader`, as they are in 3.14.
"""

import asyncio
import os
from collections.abc import Callable
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
from gateway.sockets import GONE, acknowledge_within

_NEVER_PAUSED: Final = 1 << 30
_FITTING: Final = 1 << 14
"""How many bytes of a request a box's kernel takes, though the box reads nothing."""
_READS: Final = 16
_MOST_READ: Final = 1 << 16
_FINAL: Final = 200
_SWITCHING: Final = 101
_timer: Final = TimerNoop()


def is_tested(version: str) -> bool:
    """Tell whether this module was tested with a version of aiohttp."""
    return version.startswith("3.14.")


class LastHeads:
    """The last heads of a place's answers: of those whose body is of a known length, and of those in chunks."""

    __slots__ = ("chunked", "whole")

    def __init__(self) -> None:
        """Know none."""
        self.whole: LastHead[Facts] = LastHead(of_answer=True)
        self.chunked: LastHead[Facts] = LastHead(of_answer=True)


Said = tuple[Facts, int | None, Flow]
"""What the head of an answer says, how long the body is where that was told, and the body."""


class Connector(aiohttp.TCPConnector):
    """A pool whose connections let an answer's body pour."""

    def __init__(self, outbox: Outbox, **settings: Any) -> None:  # noqa: ANN401 - the connector's own
        """Make one; in a running loop."""
        super().__init__(**settings)
        self._factory = partial(AnswerProtocol, outbox, loop=self._loop)  # type: ignore[assignment] # a subclass of it


class AnswerProtocol(ResponseHandler):
    """Aiohttp's protocol, which knows the head that is awaited, and the flow of the answer that comes.

    Mutable: those; the last heads of the place that was asked; what is still `due` of a body whose head repeated one
    that told a length, which is then not aiohttp's parser's; and whether the time to acknowledge a request is bounded.
    """

    flow: Flow | None = None
    _awaited: asyncio.Future[Said] | None = None
    _last: LastHeads
    _due = 0
    _is_bounded = False

    def __init__(self, outbox: Outbox, loop: asyncio.AbstractEventLoop) -> None:
        """Make one for a connection to come, whose requests are posted."""
        super().__init__(loop)
        self._outbox = outbox

    @property
    def was_used(self) -> bool:
        """Whether an answer has been read here: a parser is made for each."""
        return self._parser is not None

    def close(self) -> None:
        """Close. What is in the midst waits for no peer: neither until it has read the request, nor for TLS's farewell.

        One that has stopped would hold the connection, and the body that it does not read, for as long as it lives. It
        is reset, or the kernel would go on offering what it has of that.
        """
        transport = self.transport
        if transport is not None and (
            transport.get_write_buffer_size() or (self._is_amid and transport.get_extra_info("sslcontext") is not None)
        ):
            if not transport.is_closing():  # else there may be no socket any more
                close(transport, reset=True)
            self.abort()
        else:
            super().close()

    @property
    def _is_amid(self) -> bool:
        """Whether an answer is still to come, or the rest of it: ours, or one that aiohttp reads for its session."""
        if self.flow is not None:
            return not self.flow.over
        payload = self._payload
        return self._awaited is not None or (self._parser is not None and (payload is None or not payload.is_eof()))

    def set_response_params(self, **params: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Make a parser for the next answer; that of the last one is no longer read."""
        self._payload = None
        super().set_response_params(**params)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Take an error; one of writing may have been told why: a box may answer, and close, before it reads all."""
        if isinstance(exc, OSError) and self._parser is not None and self._is_amid:
            self._read_what_came()
        super().set_exception(exc, *cause)

    def _read_what_came(self) -> None:
        """Read what the kernel has: who writes learns of the end first."""
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
        """Tell whether a next request may be sent: it is connected, said nothing unasked, and all went well.

        The pool asks that before it gives a connection away: one that it keeps may speak without being asked.
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
        )

    def waits(self) -> None:
        """Wait for the next request: what comes by then is asked by nobody, and no parser swallows a part of it."""
        self.flow = self._parser = None

    def is_quiet(self) -> bool:
        """Tell whether a connection that was usable when it began to wait has neither ended nor said something.

        One whose end has come is closing first, and has a transport until the loop's next turn.
        """
        transport = self.transport
        return transport is not None and not self._tail and not transport.is_closing()

    def ask(self, data: bytes, last: LastHeads) -> asyncio.Future[Said]:
        """Send a request; give what comes to what the head of its answer says."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError
        self._parser = None
        self._last = last
        awaited = self._awaited = self._loop.create_future()
        if (len(data) <= _FITTING) is not self._is_bounded:
            self._bound(transport, is_bounded=len(data) <= _FITTING)
        self._outbox.post(transport, data)
        return awaited

    def _bound(self, transport: asyncio.Transport, *, is_bounded: bool) -> None:
        """Bound the time in which what is sent is to be acknowledged, or bound it no longer."""
        self._is_bounded = is_bounded
        made = transport.get_extra_info("socket")
        if made is not None:
            acknowledge_within(made, GONE if is_bounded else 0)

    def divert(self, receive: Callable[[bytes], object] | None) -> None:
        """Let what comes be received so, and not by `data_received`; None: no longer.

        A loop may look that up once, when the transport is given its protocol.
        """
        if receive is None:
            del self.data_received
        else:
            self.data_received = receive  # type: ignore[method-assign, assignment] # what it gives is not looked at
        if self.transport is not None:
            self.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Let what the bytes bring of a body go on at once: one write a read, however many chunks that holds."""
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
        """Take an answer whose head says what the last one said; tell whether it is one."""
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
        if len(data) > due:  # nobody asked for the rest: what comes next on this connection is not to be trusted
            self.force_close()
            data = data[:due]
        if data:
            flow.parts.append(data)
        self._due = due - len(data)
        if not self._due:
            flow.over = True

    def _read_on(self, flow: Flow, data: bytes) -> None:
        """Let aiohttp's parser read a part of a body. One that is `between` two chunks knows of none, nor begun one."""
        parser = self._parser
        if parser is None:
            super().data_received(data)
            return
        try:
            messages, _, _ = parser.feed_data(data)
        except Exception as error:  # noqa: BLE001 - the parser's: as aiohttp does, but for a flow in its end
            self._broken(error)
            return
        if messages:  # nobody asked for them: what comes next on this connection is not to be trusted
            self.force_close()
        flow.between = flow.between and data[-2:] == ENDS  # else a next one has begun, if it has not told its size

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
        """Give up a connection whose answer is not HTTP."""
        if self.transport is not None:
            self.transport.close()
        self.set_exception(HttpProcessingError(), error)

    def _fails(self, error: BaseException) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited.done():
            awaited.set_exception(error)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own
        """Read on, if that was stopped: aiohttp says so at the end of each body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let a body that is not whole break: aiohttp tells of some ends only."""
        flow, self.flow = self.flow, None
        if flow is not None:
            flow.lost_by = exc
        super().connection_lost(exc)
        self._fails(self.exception() or aiohttp.ServerDisconnectedError())
        if flow is not None:
            flow.broke(aiohttp.ClientPayloadError("the connection ended inside the body"))
            flow.give()


class _FlowReader(StreamReader):
    """A body that the parser fills, turned into a flow: `_protocol` is that. It has no place for anything else."""

    __slots__ = ()
    _protocol: Flow  # type: ignore[assignment] # this is the trick

    def becomes(self, flow: Flow) -> None:
        """Let what comes go to the flow, and the queues of its own go."""
        self._protocol = flow
        self._buffer = self._eof_callbacks = ()  # type: ignore[assignment] # nothing is put there
        self._http_chunk_splits = None

    def feed_data(self, data: bytes, size: int = 0) -> bool:  # noqa: ARG002 - the parser's call
        """Let bytes through; `give` hands them on."""
        self._protocol.parts.append(data)
        return False

    def feed_eof(self) -> None:
        """Note the end."""
        self._eof = True
        self._protocol.over = True

    def set_exception(self, exc: BaseException, exc_cause: object = None) -> None:  # noqa: ARG002 - as above
        """Note that it broke off."""
        self._protocol.broke(exc)

    def begin_http_chunk_receiving(self) -> None:
        """Note that a chunk has begun, and told its size."""
        self._protocol.between = False

    def end_http_chunk_receiving(self) -> None:
        """Note that it has ended, with the line end that follows it."""
        self._protocol.between = True


def _flow(protocol: AnswerProtocol, body: StreamReader) -> Flow:
    """Let a body, of which a part may have come, pour."""
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
