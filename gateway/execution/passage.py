"""An event stream on its way to a client: what of the upstream's bytes may pass, and what is known of them.

Only whole events pass, so that another stream may take over between two of them. Left out are events that are no JSON,
an upstream's error (it is a break, and what is told of that is the executor's to say), and the usage that a client did
not ask for. Everything else of a first stream passes in the upstream's own bytes.

A stream that takes over is joined to what the client has (`joining`), and its events are rewritten: what is not new is
taken out, `id` and `created` stay those of the first stream, and `usage` is what one unbroken stream would have told.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.execution.chunks import Chunk, MalformedError, Piece, is_done, read
from gateway.execution.joining import DiffersError, Transcript
from gateway.execution.outcome import Usage
from gateway.execution.rewriting import Frame
from gateway.execution.sse import Event, EventScanner
from gateway.execution.takeover import New, Rescue, Takeover

_LONGEST: Final = 1 << 20
_MOST_TEXT: Final = 1 << 20
_DONE: Final = b"data: [DONE]\n\n"
_EVENT_ENDS: Final = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")
_BLANK: Final = b"\n\n"
_NOTHING: Final = b""


class Passed(NamedTuple):
    """What may go to the client, and whether content came, new or not."""

    data: bytes
    content: bool


class Passage:
    """One client's event stream; it lives through the streams that it is made of.

    Mutable. Of the stream that passes now: `finished` (a finish reason came), `done` (`[DONE]` came), `failed` (an
    error came). Of the whole: `size` (bytes passed), `first_content` (when it came), `malformed` (events left out),
    `opaque` (something passed that nobody can go on from, or too much).
    """

    def __init__(self, clock: Callable[[], float], *, hides_usage: bool = False, keeps: bool = True) -> None:
        """`clock` is monotonic, in seconds; `keeps` the text that has passed, so that the stream can be carried on."""
        self.size = 0
        self.first_content: float | None = None
        self.malformed = 0
        self.opaque = not keeps
        self.finished = self.done = self.failed = False
        self._clock = clock
        self._hides_usage = hides_usage
        self._scanner = EventScanner()
        self._inside = False
        self._transcript = Transcript()
        self._first = _NOTHING
        self._takeover: Takeover | None = None
        self._tally = Tally()

    def feed(self, chunk: bytes) -> Passed:
        """Take the next bytes. An event beyond a MiB is content, and passes in parts: nothing else is so long.

        Raises:
            DiffersError: the stream does not go on from what the client has.

        """
        content = False
        parts: list[bytes] = []
        for event in self._scanner.feed(chunk):
            if self.failed:
                break
            data, says = self._take(event)
            content = content or says
            if data:
                parts.append(data)
        if self._scanner.waiting > _LONGEST and not self.failed:
            parts.append(self._part_of_event())
            content = True
        if content and self.first_content is None:
            self.first_content = self._clock()
        return Passed(self._sent(b"".join(parts)), content)

    def end(self) -> bytes:
        """Note that the stream is over, and give what may still pass: `[DONE]`, a last event without its empty line.

        Such an event counts if it makes the stream complete, or comes after what did: else it was cut.

        Raises:
            DiffersError: as `feed`.

        """
        event = self._scanner.rest()
        last = _NOTHING
        if event.data is not None and not self.failed and self._counts(event.data):
            last = self._sent(self._take(event)[0])
        if self.finished and not self.done and not self.failed:
            self.done = True
            last += self._sent((_BLANK if self._inside else _NOTHING) + _DONE)
        return last

    def taken_over(self, how: Rescue) -> None:
        """Let a second stream follow on what the client has."""
        spent = self._tally.restarts(self._takeover.given if self._takeover else 0)
        self._takeover = Takeover(how, self.said, Frame.of(self._first), spent)
        self._scanner = EventScanner()
        self.finished = self.done = self.failed = False

    @property
    def said(self) -> tuple[Piece, ...]:
        """What the client has of the answer."""
        return self._transcript.runs()

    @property
    def tokens(self) -> int:
        """How many tokens the client has."""
        return self._tally.tokens

    @property
    def usage(self) -> Usage | None:
        """What the client's answer took, where that was told."""
        return self._tally.told

    @property
    def lost(self) -> Usage | None:
        """What broken streams took beyond that; None where none has broken."""
        return self._tally.lost

    @property
    def complete(self) -> bool:
        """Whether all of the stream that counts has come: its finish reason, or its `[DONE]`."""
        return self.finished or self.done

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return not (self.finished or self.done or self.failed)

    def last_words(self, event: bytes) -> bytes:
        """Give an event to say last, set apart from what was cut."""
        return (_BLANK if self._inside else _NOTHING) + event

    def _sent(self, data: bytes) -> bytes:
        if data:
            self._inside = not data.endswith(_EVENT_ENDS)
            self.size += len(data)
        return data

    def _part_of_event(self) -> bytes:
        if self._takeover:
            raise DiffersError
        self.opaque = self._inside = True
        raw = self._scanner.rest().raw
        part = raw.rstrip(b"\r\n")
        self._scanner.feed(raw[len(part) :])  # that may be the beginning of the empty line
        return part

    def _take(self, event: Event) -> Passed:
        data = event.data
        if self._inside:
            self._inside = False
            return Passed(event.raw, content=True)
        if data is None or not data.strip():
            return Passed(event.raw, content=False)
        if is_done(data):
            self.done = True
            released = self._takeover.end() if self._takeover else []
            return Passed(self._added(released) + event.raw, content=False)
        try:
            chunk = read(data)
        except MalformedError:
            self.malformed += 1
            return Passed(_NOTHING, content=False)
        if chunk is None:
            if self._takeover:
                raise DiffersError
            self.opaque = True
            return Passed(event.raw, content=False)
        if chunk.error is not None:
            self.failed = True
            return Passed(_NOTHING, content=False)
        return self._take_chunk(chunk, data, event.raw)

    def _take_chunk(self, chunk: Chunk, data: bytes, raw: bytes) -> Passed:
        content = chunk.content
        self.finished = self.finished or chunk.finished
        self._tally.generates(content=content)
        usage = chunk.told_usage
        if self._takeover is None:
            self._first = self._first or (data if chunk.choices else _NOTHING)
            passed = raw
            if content:
                self._keep(chunk)
        else:
            passed = self._added(self._takeover.take(chunk, data))
        if usage is not None:
            self._tally.tells(usage, self._takeover.recounted(usage) if self._takeover else usage)
            if self._hides_usage and not chunk.choices:
                passed = _NOTHING
        return Passed(passed, content)

    def _counts(self, data: bytes) -> bool:
        if is_done(data):
            return True
        try:
            chunk = read(data)
        except MalformedError:
            return False
        return self.complete or (chunk is not None and chunk.finished)

    def _keep(self, chunk: Chunk) -> None:
        self._tally.passes()
        pieces = None if self.opaque else chunk.pieces()
        if pieces is None:
            self.opaque = True
        else:
            self._note(pieces)

    def _note(self, pieces: tuple[Piece, ...]) -> None:
        """Keep what has passed; a text without end is not kept."""
        for piece in pieces:
            self._transcript.add(piece)
        if self._transcript.size > _MOST_TEXT:
            self.opaque = True
            self._transcript = Transcript()

    def _added(self, released: list[New]) -> bytes:
        for _, pieces in released:
            if any(piece.text for piece in pieces):
                self._tally.passes()
            self._note(pieces)
        return b"".join(data for data, _ in released)


class Tally:
    """Counts a passage's tokens. An upstream tells how many there are last, if at all: an event is taken for one."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.told: Usage | None = None
        self._streams = 1
        self._given = 0
        self._read: int | None = None
        self._generated = 0
        self._passed = 0

    @property
    def tokens(self) -> int:
        """How many tokens the client has."""
        told = self.told.completion_tokens if self.told else None
        return told or self._passed

    @property
    def lost(self) -> Usage | None:
        """What was read and generated more than once: the prompt by each further stream, tokens that were withheld."""
        if self._streams == 1:
            return None
        prompt = self.told.prompt_tokens if self.told else None
        if prompt is None or self._read is None:
            return Usage(None, self._generated - self._passed)
        return Usage(prompt * (self._streams - 2) + self._given + self._read, self._generated - self._passed)

    def generates(self, *, content: bool) -> None:
        """Count what an upstream generated."""
        self._generated += content

    def passes(self) -> None:
        """Count what the client got of it."""
        self._passed += 1

    def tells(self, usage: Usage, whole: Usage) -> None:
        """Note what an upstream told of itself, and what that comes to for the `whole`."""
        self._read, self.told = usage.prompt_tokens, whole

    def restarts(self, given: int) -> int:
        """Begin with a further stream, the last one having been `given` tokens with its prompt; give the client's."""
        tokens = self.tokens
        self._generated += tokens - self._passed
        self._passed, self.told, self._read = tokens, None, None
        self._streams += 1
        self._given += given
        return tokens
