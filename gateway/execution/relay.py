"""Upstream bytes to the client, as they come.

Once the first byte is out, there are only two ends: the answer's own, and a visible break. A break inside an event
stream is reported in one last event, and the connection closes without the chunk that would end the body properly (RFC
9112 8: an incomplete message). Every other break is the closed connection alone. A client on HTTP/1.0 takes the close
itself for the end, so there the connection is reset.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from gateway.execution.answer import Answer, AttemptFailedError
from gateway.execution.client import Client, WireClient
from gateway.execution.completions import CompletionStream
from gateway.execution.deadline import Deadline, ExpiredError
from gateway.execution.flow import Flow, Straight
from gateway.execution.framing import BEGINNINGS
from gateway.execution.joining import DiffersError
from gateway.execution.outcome import Usage
from gateway.execution.responses import ResponseStream
from gateway.execution.template import Reader
from gateway.execution.usage import TAIL, usage_in
from gateway.routing.failures import Cause, Failure

_AFTERMATH: Final = 5.0
"""Seconds for what may follow the last finish reason: the usage, and `[DONE]`."""
_FAREWELL: Final = 1.0
"""Seconds for the end itself, after `[DONE]`."""


class Body(Reader):
    """Passes on any body but an event stream, unchanged. Mutable: what is known of it.

    A JSON object that is cut short, though properly framed, must not end properly: if its length was given, the last
    byte is kept back.
    """

    lost: Final = None
    malformed: Final = 0
    complete: Final = False
    whole: Final = False
    done: Final = False
    failed: Final = False

    def __init__(self, clock: Callable[[], float], *, is_object: bool = False, length: int | None = None) -> None:
        """`clock` is monotonic, in seconds; `is_object`: JSON is expected, of `length` bytes if that is known."""
        self.size = 0
        self.first_content: float | None = None
        self._clock = clock
        self._is_object = is_object
        self._length = length
        self._tail = b""

    def feed(self, chunk: bytes) -> tuple[bytes, bool]:
        """Take the next bytes; all of them are content."""
        self._tail = (self._tail + chunk[-TAIL:])[-TAIL:]
        if self.size + len(chunk) == self._length and self.truncated:
            chunk = chunk[:-1]
        self.size += len(chunk)
        if self.first_content is None:
            self.first_content = self._clock()
        return chunk, True

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return self._is_object and not self._tail.rstrip().endswith(b"}")

    def end(self) -> bytes:
        """Note that the body is over; there is nothing to add."""
        return b""

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer reported."""
        return usage_in(self._tail)

    def last_words(self, _: object) -> bytes:
        """Return nothing: it would be taken for a part of the body."""
        return b""


Stream = CompletionStream | ResponseStream
"""What an event stream goes through on its way to the client."""
Passing = Stream | Body
"""What an answer's bytes go through on their way to the client."""


async def relay(  # noqa: PLR0917 - once a request: names would cost
    answer: Answer, first: bytes, client: Client, passing: Passing, idle: float, clock: Deadline, *, is_fed: bool
) -> None:
    """Pass on a whole body, of which `first` is the beginning; ending the client's message is left to the caller.

    If it `is_fed`, the beginning has already been fed to `passing`, which let this much of it pass.

    `clock` is the request's own. The upstream may be silent for `idle` seconds (0: no limit). Content breaks its
    silence; comments do not. The time that a slow client takes is not counted. A complete stream is given a few seconds
    for what may follow, and is then ended properly, however the upstream ends it.

    Raises:
        AttemptFailedError: the upstream broke off, fell silent, or does not say what the client has already; what came
            before has been sent.
        ClientLeftError: the client is gone.

    """
    try:
        await _pass_on(answer, first, client, _Course(passing, idle, clock), is_fed=is_fed)
        last = passing.end()
    except DiffersError:
        raise AttemptFailedError(Failure(Cause.REPLAY_DIFFERS, "the repeated request got a different answer")) from None
    if passing.failed:
        raise AttemptFailedError(Failure(Cause.ERROR_ANSWER, "an error event in mid-stream"))
    if passing.truncated:
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "it ended before it was complete"))
    if last:
        await client.send(last)


async def _pass_on(answer: Answer, first: bytes, client: Client, course: "_Course", *, is_fed: bool) -> None:
    passing = course.passing
    try:
        with course.clock:
            flow = answer.flow
            if flow is not None and isinstance(client, WireClient):
                await _Pouring(course, flow, client).run(answer, first, is_fed=is_fed)
            else:
                await _pass_each(answer, first, client, course, is_fed=is_fed)
    except ExpiredError:
        if not passing.whole:
            raise AttemptFailedError(Failure(Cause.STALLED, f"no content for {course.idle:g} s")) from None
    except AttemptFailedError:
        if not passing.complete:
            raise


class _Course:
    """How long the upstream may be silent now.

    Mutable: until when, infinite while that is not known; when a complete stream is over; and since when the clock has
    been stopped.
    """

    __slots__ = ("_ends", "_rested", "clock", "deadline", "idle", "now", "passing")

    def __init__(self, passing: Passing, idle: float, clock: Deadline) -> None:
        self.passing = passing
        self.idle = idle or inf
        self.clock = clock
        self.now = clock.loop.time
        self.deadline = inf
        self._ends: float | None = None
        self._rested: float | None = None

    def came(self, content: bool, runs: bool) -> None:  # noqa: FBT001 - once a chunk: names would cost
        """Note that something came; let the clock run on from here, or stop it while the client is slow."""
        if self.passing.complete:
            now = self.now()
            if self._ends is None:
                self._ends = now + _AFTERMATH
            elif self._rested is not None:
                self._ends += now - self._rested
            if self.passing.done:
                self._ends = min(self._ends, now + _FAREWELL)
            self.deadline, self._rested = self._ends, None if runs else now
        elif content or self.deadline == inf:
            self.deadline, self._ends = self.now() + self.idle, None
        self.clock.at(self.deadline if runs else inf)

    def rests(self) -> None:
        """Stop the clock: it is the client that is slow."""
        self._rested = self.now()
        self.clock.at(inf)


async def _pass_each(answer: Answer, first: bytes, client: Client, course: _Course, *, is_fed: bool) -> None:
    """Pass on part by part, each when the client has room for it."""
    chunk = first
    while chunk or is_fed:
        data, content = (chunk, True) if is_fed else course.passing.feed(chunk)
        is_fed = False
        if data:
            course.rests()
            await client.send(data)
        if course.passing.failed:
            return
        course.came(content, not answer.is_over())
        chunk = await answer.chunk()


class _Pouring:
    """Passes parts on inside the upstream's own callbacks: no task is woken for a part.

    Nearly all of a stream is known events, each in an HTTP chunk of its own that is received by a read of its own. With
    a thousand streams, nothing of this one is in the processor's cache when its next token comes. So all that such a
    chunk needs is in one place, the frame of a generator that is sent what is read (`_straight`).

    Mutable: whether the client is full; and `raw`, the transport for chunks that pass unchanged, if there is one.
    """

    __slots__ = ("_client", "_course", "_flow", "_full", "_passing", "_raw")

    def __init__(self, course: _Course, flow: Flow, client: WireClient) -> None:
        self._course = course
        self._passing = course.passing
        self._flow = flow
        self._client = client
        self._full = False
        self._raw = client.raw

    async def run(self, answer: Answer, first: bytes, *, is_fed: bool) -> None:
        """Pour `first` and then the rest, until the end or until the stream has failed."""
        if self._gave(first, content=True) if is_fed else first and self._take(first):
            return
        self._client.flush()
        self._raw = self._client.raw
        self._client.pourer = self
        try:
            if self._client.full:
                self.pause()
            await answer.pour(self._flow, self._take, self._straight)
        finally:
            self._client.outbox.flush()
            self._client.pourer = None

    def pause(self) -> None:
        """Stop pouring: the client is full."""
        self._full, self._raw = True, None
        self._flow.pause()
        self._course.rests()

    def resume(self) -> None:
        """Resume pouring."""
        self._full, self._raw = False, self._client.raw
        self._flow.resume()
        self._course.came(content=True, runs=True)

    def _straight(self, otherwise: Callable[[bytes], None]) -> Straight:
        """Pass on known events in the very chunks that they came in; hand everything else to `otherwise`."""
        passing, course, flow = self._passing, self._course, self._flow
        clock, now, idle, beginnings = course.clock, course.now, course.idle, BEGINNINGS
        outbox = self._client.outbox
        post, waiting = outbox.post, outbox.waiting
        while True:
            data = yield
            known, raw = passing.known, self._raw
            if known is None or raw is None or not flow.at_chunk:
                otherwise(data)
                continue
            template, kept, most = known
            prefix, ends, had, events = template.prefix, template.ends, len(kept), 0
            around = len(prefix) + len(ends)
            try:
                while True:
                    begins = beginnings[len(data)]
                    middle = data.removeprefix(begins + prefix).removesuffix(ends)
                    if not begins or len(begins) + len(middle) + around != len(data):
                        break
                    try:
                        text = middle.decode()
                    except UnicodeDecodeError:
                        break
                    if not text or not text.isprintable() or '"' in text or "\\" in text:  # as `is_verbatim`
                        break
                    if self._raw is not raw or len(kept) > most or raw.is_closing():
                        break
                    events += 1
                    kept += middle
                    if waiting:
                        clock.when = outbox.since + idle
                        waiting.append((raw, data))
                    else:
                        clock.when = now() + idle
                        post(raw, data)  # writing it stops the clock if the client is full then
                    data = yield
            finally:
                passing.took(events, events * template.around + len(kept) - had)
            course.deadline = clock.when
            outbox.flush()  # what follows is written directly
            self._pass_several(data, otherwise)

    def _pass_several(self, data: bytes, otherwise: Callable[[bytes], None]) -> None:
        """Pass on the known chunks that a read begins with; hand the rest to `otherwise`."""
        raw, course = self._raw, self._course
        if raw is not None and not raw.is_closing() and (taken := self._passing.repeated(data)):
            course.deadline = course.clock.when = course.now() + course.idle
            raw.write(data[:taken])
            data = data[taken:]
        if data:
            otherwise(data)

    def _take(self, chunk: bytes) -> bool:
        data, content = self._passing.feed(chunk)
        return self._gave(data, content=content)

    def _gave(self, data: bytes, *, content: bool) -> bool:
        """Write what `passing` returned; return whether the stream has failed."""
        if data:
            self._client.write(data)
        if self._passing.failed:
            return True
        self._course.came(content, not self._full)
        return False
