"""An event stream on its way to a client: which of the upstream's bytes may pass, and what is known of them.

Only whole events pass, so that another stream may take over between two of them. Left out are events that are not JSON,
an upstream's error (it is a break, and the executor decides what to say about it), and the usage if the client did not
ask for it. Everything else in a first stream passes in the upstream's own bytes.

Nearly all events of a stream fit a `template` of its first ones, and are not decoded: any cost per event here is paid
for every token.

A stream that takes over is joined to what the client has (`joining`), and its events are rewritten: what is not new is
removed, `id` and `created` stay those of the first stream, and `usage` is what one unbroken stream would have reported.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from gateway.execution.chunks import Chunk, MalformedError, Piece, is_done, plain, read
from gateway.execution.framing import BEGINNINGS, ENDS, framed
from gateway.execution.joining import DiffersError, Transcript
from gateway.execution.outcome import Usage
from gateway.execution.rewriting import Frame
from gateway.execution.sse import EventScanner, after_field
from gateway.execution.takeover import New, Rescue, Takeover
from gateway.execution.tally import Tally
from gateway.execution.template import Known, Template

_LONGEST: Final = 1 << 20
_MOST_TEXT: Final = 1 << 20
_MOST_UNKEPT: Final = 1 << 12
_DONE: Final = b"data: [DONE]\n\n"
_EVENT_ENDS: Final = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")
_BLANK: Final = b"\n\n"
_NOTHING: Final = b""
_JSON_BEGINS: Final = b"{"
_ERROR: Final = b"error:"
"""How llama.cpp's server begins an event that reports an error; `[DONE]` follows it all the same."""
_LESSONS: Final = 4
_WORTH: Final = 2


class CompletionStream:
    """One client's event stream, which may be made of several upstream streams in turn.

    Mutable. Of the stream that passes now: `finished` (each choice has its finish reason, and has said nothing since;
    never true if the number of choices is unknown), `done` (`[DONE]` came), `failed` (an error came: `error`). Of the
    whole: `size` (bytes passed), `first_content` (when it came), `malformed` (events left out), `opaque` (it cannot be
    carried on: too much has passed, or something that cannot be repeated).
    """

    most_held: Final = 1 << 20
    """Bytes that may be held back until the first content."""

    __slots__ = (
        "_choices",
        "_clock",
        "_decoded",
        "_ended",
        "_first",
        "_hides_usage",
        "_inside",
        "_inside_event",
        "_learns",
        "_lessons",
        "_open",
        "_resumed",
        "_scanner",
        "_takeover",
        "_tally",
        "_template",
        "_transcript",
        "done",
        "error",
        "failed",
        "finished",
        "first_content",
        "malformed",
        "opaque",
        "size",
    )

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        hides_usage: bool = False,
        keeps: bool = True,
        learns: bool = True,
        choices: int = 1,
    ) -> None:
        """`clock` is monotonic, in seconds; `keeps` the text that has passed, so that the stream can be carried on.

        `choices` is how many the answer will have, 0 if that is not known. Only a single one can be carried on.

        A stream that does not learn decodes every event; that only costs time.
        """
        self.size = 0
        self.first_content: float | None = None
        self.malformed = 0
        self.opaque = not keeps or choices != 1
        self.finished = self.done = self.failed = False
        self.error = _NOTHING
        self._clock = clock
        self._choices = choices
        self._open: set[object] = set()
        self._ended: set[object] = set()
        self._resumed = False  # a choice went on after its finish reason: this stream's are unreliable
        self._hides_usage = hides_usage
        self._scanner = EventScanner()
        self._inside = self._inside_event = False
        self._transcript = Transcript()
        self._first = _NOTHING
        self._takeover: Takeover | None = None
        self._tally = Tally()
        self._template: Template | None = None  # of the first stream's events, up to its end
        self._learns = learns
        self._lessons = self._decoded = 0

    def feed(self, chunk: bytes) -> tuple[bytes, bool]:
        """Take the next bytes; return those that may go to the client, and whether content came, new or not.

        An event longer than a MiB is content, and passes in parts: nothing else is so long.

        Raises:
            DiffersError: the stream does not go on from what the client has.

        """
        return (chunk, True) if self._repeats(chunk) else self._feed(chunk)

    @property
    def known(self) -> Known | None:
        """How events look that may pass without being read; None while each must be read."""
        template = self._template
        if template is None or self._inside_event:
            return None
        return (
            Known(template, bytearray(), _MOST_UNKEPT)
            if self.opaque
            else Known(template, self._transcript.text, _MOST_TEXT)
        )

    def took(self, events: int, size: int) -> None:
        """Count known events that have passed, and their bytes; their texts have already been added to what is kept."""
        self._tally.passed += events
        self.size += size

    def repeats(self, chunk: bytes) -> bool:
        """Take a whole HTTP chunk and return true, if it is an event that fits the template: such content may pass."""
        template = self._template
        if template is None or self._inside_event or not (begins := BEGINNINGS[len(chunk)]):
            return False
        middle = chunk.removeprefix(begins + template.prefix).removesuffix(template.ends)
        size = len(middle) + template.around
        if len(begins) + size + len(ENDS) != len(chunk):
            return False
        try:
            text = middle.decode()
        except UnicodeDecodeError:
            return False
        if not text or not text.isprintable() or '"' in text or "\\" in text:  # as `is_verbatim`
            return False
        self._tally.passed += 1
        self.size += size
        if not self.opaque:
            kept = self._transcript.text
            kept += middle
            if len(kept) > _MOST_TEXT:
                self._forget()
        return True

    def repeated(self, chunks: bytes) -> int:
        """Take as many such chunks as `chunks` begins with; return how many bytes were taken."""
        template, taken = self._template, 0
        if template is not None:
            ends = template.ends
            while (place := chunks.find(ends, taken)) >= 0 and self.repeats(chunks[taken : place + len(ends)]):
                taken = place + len(ends)
        return taken

    def _repeats(self, event: bytes) -> bool:
        return self._template is not None and self.repeats(framed(event))

    def _feed(self, chunk: bytes) -> tuple[bytes, bool]:
        template, size = self._template, self.size
        if template is not None and not self._inside_event and self._repeats_each(chunk, template):
            self.size += len(chunk)
            return chunk, True
        content = False
        parts: list[bytes] = []
        events, self._inside_event = self._scanner.cut(chunk), False
        for raw in events:
            if self.failed:
                break
            if raw is not chunk and self._repeats(raw):
                content = True
                parts.append(raw)
                continue
            data, says = self._take(raw, after_field(raw) if raw is chunk else self._scanner.data(raw))
            content = content or says
            if data:
                parts.append(data)
        if self._scanner.waiting > _LONGEST and not self.failed:
            parts.append(self._part_of_event())
            content = True
        self._inside_event = self._scanner.waiting > 0
        if content and self.first_content is None:
            self.first_content = self._clock()
        passed = parts[0] if len(parts) == 1 else b"".join(parts)
        self.size = size + len(passed)
        return passed, content

    def end(self) -> bytes:
        """Note that the stream is over; return what may still pass: `[DONE]`, a last event without its empty line.

        Such an event counts if it completes the stream, or comes after it is complete; otherwise it was cut.

        Raises:
            DiffersError: as `feed`.

        """
        event = self._scanner.rest()
        last = _NOTHING
        if event.data is not None and not self.failed and self._counts(event.data):
            last = self._sent(self._take(event.raw, event.data)[0])
        if self.finished and not self.done and not self.failed:
            self.done = True
            last += self._sent(self._added(self._takeover.end()) if self._takeover else _NOTHING)
            last += self._sent((_BLANK if self._inside else _NOTHING) + _DONE)
        return last

    def taken_over(self, how: Rescue) -> None:
        """Begin a second stream, which follows what the client has."""
        spent = self._tally.restarts(self._takeover.given if self._takeover else 0)
        self._takeover = Takeover(how, self.said, Frame.of(self._first), spent)
        self._scanner = EventScanner()
        self._template = None
        self._open, self._ended = set(), set()
        self.finished = self.done = self.failed = self._resumed = False

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
        """The tokens that the client's answer took, if they were reported."""
        return self._tally.told

    @property
    def lost(self) -> Usage | None:
        """The tokens that broken streams took on top of that; None if none has broken."""
        return self._tally.lost

    @property
    def complete(self) -> bool:
        """Whether all that counts has come: `[DONE]`, or the finish reasons, if they are reliable."""
        return self.done or (self.finished and not self._resumed)

    @property
    def whole(self) -> bool:
        """Whether the stream may end here, if nothing else comes."""
        return self.finished or self.done

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return not (self.finished or self.done or self.failed)

    def last_words(self, error: Mapping[str, object]) -> bytes:
        """Return a last event that reports `error`, set apart from an event that was cut.

        It has the form that vLLM, SGLang and OpenRouter use: go-openai reads no error after an `event: error` line.
        """
        return (_BLANK if self._inside else _NOTHING) + b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"

    def _sent(self, data: bytes) -> bytes:
        if data:
            self._inside = not data.endswith(_EVENT_ENDS)
            self.size += len(data)
        return data

    def _part_of_event(self) -> bytes:
        if self._takeover:
            raise DiffersError
        self.opaque = self._inside = True
        self._template = None
        raw = self._scanner.rest().raw
        part = raw.rstrip(b"\r\n")
        self._scanner.cut(raw[len(part) :])  # that may be the beginning of the empty line
        return part

    def _repeats_each(self, chunk: bytes, template: Template) -> bool:
        texts = template.texts(chunk)
        if not texts:
            return False
        self._tally.passed += len(texts)
        if not self.opaque:
            self._note(((template.part, "".join(texts)),))
        return True

    def _take(self, raw: bytes, data: bytes | None) -> tuple[bytes, bool]:
        if self._inside:
            self._inside = False
            return raw, True
        if data is None:
            if raw.startswith(_ERROR):
                return self._take_error(_as_object(raw.removeprefix(_ERROR).strip()))
            return raw, False
        if data[:1] != _JSON_BEGINS:
            if not data.strip():
                return raw, False
            if is_done(data):
                return self._take_done(raw), False
        return self._take_json(raw, data)

    def _take_done(self, raw: bytes) -> bytes:
        self.done = True
        self._template = None
        released = self._takeover.end() if self._takeover else []
        return self._added(released) + raw

    def _take_json(self, raw: bytes, data: bytes) -> tuple[bytes, bool]:
        try:
            chunk = read(data)
        except MalformedError:
            self.malformed += 1
            return _NOTHING, False
        if chunk is None:
            if self._takeover:
                raise DiffersError
            self.opaque = True
            return raw, False
        if chunk.error is not None:
            return self._take_error(data)
        if self._takeover is None and (said := plain(chunk)) is not None:
            self._first = self._first or data
            self._take_plain(chunk, raw, said)
            return raw, True
        if self._choices == 1 and (error := chunk.failure) is not None:
            return self._take_error(msgspec.json.encode({"error": error}))
        return self._take_chunk(chunk, data, raw)

    def _take_error(self, error: bytes) -> tuple[bytes, bool]:
        if not self.complete:  # else it is no longer part of the answer
            self.failed = True
            self.error = error
            self._template = None
        return _NOTHING, False

    def _take_plain(self, chunk: Chunk, raw: bytes, said: tuple[str, str]) -> None:
        self._tally.passed += 1
        self._decoded += 1
        if self._ended:
            self._goes_on(0)
        self._open.add(0)
        if not self.opaque:
            self._note((said,))
        usage = chunk.told_usage
        if usage is not None:
            self._tally.tells(usage, usage)
        elif self._learns and not (self.finished or self.done):
            self._learn(raw, *said)

    def _take_chunk(self, chunk: Chunk, data: bytes, raw: bytes) -> tuple[bytes, bool]:
        content = chunk.content
        if chunk.choices:
            self._count_choices(chunk)
        usage = chunk.told_usage
        if self._takeover is None:
            self._first = self._first or (data if chunk.choices else _NOTHING)
            passed = raw
            if content:
                self._keep(chunk)
        else:
            self._tally.generates(content=content)
            passed = self._added(self._takeover.take(chunk, data))
        if usage is not None:
            self._tally.tells(usage, self._takeover.recounted(usage) if self._takeover else usage)
        if self._hides_usage and not chunk.choices and chunk.tells_usage:
            passed = _NOTHING
        return passed, content

    def _count_choices(self, chunk: Chunk) -> None:
        """Note which choices have begun and which have ended, and whether all of them have."""
        for choice in chunk.choices or ():
            index = _named(choice.index)
            if self._ended and choice.says:
                self._goes_on(index)
            if choice.finish_reason:
                self._ended.add(index)
                self._open.discard(index)
                if not choice.index:
                    self._template = None  # what follows must be read
            elif index not in self._ended:
                self._open.add(index)
        if self._choices and len(self._ended) >= self._choices and not self._open:
            self.finished = True

    def _goes_on(self, index: object) -> None:
        """Note that a choice says more after its finish reason: some servers send one in the first event, or in all."""
        if index in self._ended:
            self._ended.remove(index)
            self._open.add(index)
            self.finished, self._resumed = False, True

    def _learn(self, raw: bytes, part: str, text: str) -> None:
        """Make this event the template, unless earlier templates have been of too little use."""
        if self._lessons >= _LESSONS + (self._tally.passed - self._decoded) // _WORTH:
            self._template = None
        elif (template := Template.of(raw, part, text)) is not None:
            self._lessons += 1
            if template.holds(text):
                self._template = template

    def _counts(self, data: bytes) -> bool:
        if is_done(data):
            return True
        try:
            chunk = read(data)
        except MalformedError:
            return False
        return self.whole or (chunk is not None and chunk.finished)

    def _keep(self, chunk: Chunk) -> None:
        self._tally.passed += 1
        self._decoded += 1
        pieces = None if self.opaque else chunk.pieces()
        if pieces is None:
            self.opaque = True
        else:
            self._note(pieces)

    def _note(self, pieces: Iterable[tuple[str, str]]) -> None:
        """Keep what has passed, unless that has become too long."""
        transcript = self._transcript
        for part, text in pieces:
            transcript.add(part, text)
        if self._template is not None and self._template.part != transcript.part:
            self._template = None
        if transcript.size > _MOST_TEXT:
            self._forget()

    def _forget(self) -> None:
        self.opaque = True
        self._transcript = Transcript()

    def _added(self, released: list[New]) -> bytes:
        for _, pieces in released:
            if any(piece.text for piece in pieces):
                self._tally.gives()
            self._note(pieces)
        return b"".join(data for data, _ in released)


def _named(index: object) -> object:
    """Return a hashable name of a choice: its index, which should be a number and may be any JSON."""
    return msgspec.json.encode(index) if isinstance(index, list | dict) else index


def _as_object(error: bytes) -> bytes:
    """Turn what follows llama.cpp's `error:`, JSON or plain text, into the error object that its JSON answers have."""
    try:
        told: object = msgspec.json.decode(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = {"message": error.decode(errors="replace")}
    return msgspec.json.encode({"error": told})
