"""Server-sent events, read as they pass: an incremental scanner that never touches the bytes.

The grammar is the WHATWG HTML standard's, 9.2.6: an event ends at an empty line; a line ends at CR, LF or CRLF; the
stream may open with a byte order mark; a line that starts with a colon is a comment; the `data` fields of an event are
joined with line feeds. Chunks may be cut anywhere, in a CRLF or in a character too.

`ChatStream` knows what the events of a chat or completion stream mean: content feeds the clock of silence, a finish
reason or `[DONE]` tells a whole stream from a cut one. What it cost stands in the last events; there `usage` is looked
for without parsing: inside a JSON string its quotes would be escaped, so that only a real member matches.
"""

import json
import re
from typing import Final, NamedTuple

import msgspec

from gateway.execution.outcome import Usage

_BOM: Final = b"\xef\xbb\xbf"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class EventScanner:
    """Cuts a stream of bytes into the `data` of its events. Comments and events without data give nothing.

    `waiting` is about how many bytes have come since the last event ended.
    """

    def __init__(self) -> None:
        """Start at the stream's first byte."""
        self.waiting = 0
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._begun = False
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes, give the data of the events that they complete; the work is linear in the bytes."""
        self.waiting += len(chunk)
        text = chunk.removeprefix(b"\n") if self._after_cr else chunk
        self._after_cr = chunk.endswith(b"\r") or (self._after_cr and not chunk)
        first, *more = _LINE_END.split(text)
        self._line.append(first)
        if not more:
            return []
        lines = [b"".join(self._line), *more[:-1]]
        self._line = more[-1:]
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BOM)
        return [event for line in lines if (event := self._end_line(line)) is not None]

    @property
    def rest(self) -> bytes:
        """The data of the event that has begun and not ended."""
        name, _, value = b"".join(self._line).partition(b":")
        return b"\n".join([*self._data, *([value.removeprefix(b" ")] if name == b"data" else [])])

    def _end_line(self, line: bytes) -> bytes | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        self.waiting = 0
        data, self._data = self._data, []
        return b"\n".join(data) if data else None


class _Delta(msgspec.Struct):
    content: object = None
    reasoning: object = None
    reasoning_content: object = None
    reasoning_details: object = None
    refusal: object = None
    tool_calls: object = None
    function_call: object = None
    audio: object = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: object = None
    finish_reason: object = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: object = None


_chunk: Final = msgspec.json.Decoder(_Chunk)


class Meaning(NamedTuple):
    """What an event carries.

    `content` is text, reasoning, a refusal, audio or a tool call. `finished` stands for a finish reason, `done` for
    `[DONE]`, `failed` for an error in place of an answer. Anything else, a malformed event too, is nothing yet.
    """

    content: bool = False
    finished: bool = False
    done: bool = False
    failed: bool = False


def meaning(event: bytes) -> Meaning:
    """Tell what an event carries."""
    if event.strip() == b"[DONE]":
        return Meaning(done=True)
    try:
        chunk = _chunk.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Meaning()
    return Meaning(
        content=any(choice.text or (choice.delta is not None and _says(choice.delta)) for choice in chunk.choices),
        finished=any(choice.finish_reason for choice in chunk.choices),
        failed=chunk.error is not None,
    )


def _says(delta: _Delta) -> bool:
    text = delta.content or delta.reasoning or delta.reasoning_content or delta.reasoning_details or delta.refusal
    return bool(text or delta.tool_calls or delta.function_call or delta.audio)


_TAIL: Final = 4096
_LONGEST: Final = 1 << 20
_START: Final = b"\n\n"
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}\Z")


class ChatStream:
    """What is known of one answer stream while it passes: whether content comes, and how the stream ends."""

    def __init__(self) -> None:
        """Start at the stream's first byte."""
        self.finished = False
        self.done = False
        self.failed = False
        self._scanner = EventScanner()
        self._tail = _START  # a stream begins where an event may begin

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes; tell whether content was in them. An event beyond a MiB is content: nothing else is."""
        self._tail = (self._tail + chunk)[-_TAIL:]
        content = self._scanner.waiting > _LONGEST
        for event in self._scanner.feed(chunk):
            content = self._take(event) or content
        return content

    def end(self) -> None:
        """Note that the stream is over: a last event that lacks its empty line is read too, as clients do."""
        self._take(self._scanner.rest)

    def _take(self, event: bytes) -> bool:
        told = meaning(event)
        self.finished = self.finished or told.finished
        self.done = self.done or told.done
        self.failed = self.failed or told.failed
        return told.content

    @property
    def at_boundary(self) -> bool:
        """Whether the stream stands between two events, so that one more may be added."""
        return _BOUNDARY.search(self._tail) is not None

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss: something came, but no `[DONE]`, finish reason or error after it."""
        return self._tail != _START and not (self.finished or self.done or self.failed)

    @property
    def usage(self) -> Usage | None:
        """The tokens that the last events told of."""
        return usage_in(self._tail)


_USAGE: Final = re.compile(r'"usage"\s*:\s*(?=\{)')
_object: Final = json.JSONDecoder()


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    def told(self) -> Usage:
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            None if prompt is None else prompt.cached_tokens,
            None if completion is None else completion.reasoning_tokens,
        )


def usage_in(tail: bytes) -> Usage | None:
    """Read the last whole `usage` object in the tail of an answer, a JSON body's or a stream's."""
    text = tail.decode(errors="replace")
    for match in reversed(list(_USAGE.finditer(text))):
        try:
            found, _ = _object.raw_decode(text, match.end())
            return msgspec.convert(found, _Usage).told()
        except (ValueError, msgspec.ValidationError, RecursionError):
            continue
    return None
