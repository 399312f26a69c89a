"""What the events of a chat or completion stream carry (OpenAI's `chat.completion.chunk` and `text_completion`).

`read` decodes an event once. What it says is returned as pieces: a part of the answer, and the text that is added to
it. Two runs of one request say the same if their joined pieces are the same: where a text is cut into tokens does not
matter. An answer's content is text, reasoning, a refusal, audio, pictures or a tool call.
"""

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from gateway.execution.outcome import Usage
from gateway.execution.usage import usage_of

_DONE: Final = b"[DONE]"
_NULL: Final = msgspec.Raw(b"null")
_UNTOLD: Final = {"code": "error"}
"""An error without any details."""


class Piece(NamedTuple):
    """Text that is added to a part of the answer: `content`, `reasoning`, `refusal`, `text`, or a part of a tool call.

    A tool call's parts are `tool 0 name` and `tool 0 arguments`, by the call's index.
    """

    part: str
    text: str


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: object = None
    function: _Function | None = None
    custom: object = None

    @property
    def name(self) -> str:
        return (self.function and self.function.name) or ""

    @property
    def arguments(self) -> str:
        return (self.function and self.function.arguments) or ""

    @property
    def is_text(self) -> bool:
        """Whether all that it says is a name and arguments; a lone id cannot be compared with that of another run."""
        return not self.custom and bool(self.name or self.arguments or not self.id)


class _Delta(msgspec.Struct, gc=False):
    content: object = None
    reasoning: object = None
    reasoning_content: object = None
    reasoning_details: object = None
    refusal: object = None
    tool_calls: object = None
    function_call: object = None
    audio: object = None
    images: object = None


class Choice(msgspec.Struct, gc=False):
    """One of an answer's choices, or what an event adds to it."""

    index: object = 0
    delta: _Delta | None = None
    text: object = None
    finish_reason: object = None
    error: object = None

    @property
    def failure(self) -> object:
        """The error that it ended with, as OpenRouter reports it for a choice; None if it did not."""
        return self.error or (_UNTOLD if self.finish_reason == "error" else None)

    @property
    def says(self) -> bool:
        """Whether it says anything."""
        delta = self.delta
        return bool(self.text or (delta is not None and (delta.content or _says(delta))))


class Chunk(msgspec.Struct, gc=False):
    """The part of an event's JSON that is read."""

    choices: list[Choice] | None = []
    error: object = None
    usage: msgspec.Raw = msgspec.Raw()

    @property
    def content(self) -> bool:
        """Whether it says anything."""
        for choice in self.choices or ():  # noqa: SIM110 - a generator costs more than all else here
            if choice.says:
                return True
        return False

    @property
    def failure(self) -> object:
        """The first error that one of its choices ended with."""
        for choice in self.choices or ():
            if choice.failure:
                return choice.failure
        return None

    @property
    def finished(self) -> bool:
        """Whether it has a finish reason."""
        for choice in self.choices or ():  # noqa: SIM110 - a generator costs more than all else here
            if choice.finish_reason:
                return True
        return False

    @property
    def tells_usage(self) -> bool:
        """Whether it reports usage, in whatever form."""
        return bool(self.usage) and self.usage != _NULL

    @property
    def told_usage(self) -> Usage | None:
        """The usage that it reports."""
        return usage_of(self.usage) if self.tells_usage else None

    def pieces(self) -> tuple[Piece, ...] | None:
        """Return what it says; None if that is not the text of one choice, and so cannot be repeated."""
        if not self.choices:
            return ()
        if len(self.choices) > 1 or self.choices[0].index:
            return None
        choice = self.choices[0]
        found = [Piece(part, text) if isinstance(text, str) else None for part, text in _texts(choice)]
        if choice.delta is not None and choice.delta.tool_calls:
            try:
                calls = msgspec.convert(choice.delta.tool_calls, list[_ToolCall])
            except msgspec.ValidationError:
                return None
            found += _called(calls) if all(call.is_text for call in calls) else [None]
        pieces = tuple(piece for piece in found if piece is not None)
        return pieces if len(pieces) == len(found) else None


def plain(chunk: Chunk) -> tuple[str, str] | None:
    """Return the part and the text of a chunk that says this and nothing else, as nearly every chunk does.

    Its `content` is true then, its `finished` false, and its `pieces` are this one. It may report usage.
    """
    choices = chunk.choices
    if not choices or len(choices) != 1:
        return None
    choice = choices[0]
    if choice.index or choice.finish_reason or choice.error is not None:
        return None
    delta = choice.delta
    also: object
    if choice.text or delta is None:
        said, part = choice.text, "text"
        also = delta is not None and _says(delta)
    elif delta.content:
        said, part = delta.content, "content"
        also = delta.reasoning or delta.reasoning_content or delta.reasoning_details or _does(delta)
    else:
        said, part = delta.reasoning_content or delta.reasoning, "reasoning"
        also = delta.reasoning_details or _does(delta)
    return (part, said) if said and isinstance(said, str) and not also else None


def _texts(choice: Choice) -> Iterator[tuple[str, object]]:
    if choice.text:
        yield "text", choice.text
    delta = choice.delta
    if delta is None:
        return
    reasoning = delta.reasoning_content or delta.reasoning
    if reasoning or delta.reasoning_details:
        yield "reasoning", reasoning or None
    for part in ("content", "refusal", "function_call", "audio", "images"):
        if said := getattr(delta, part):
            yield part, said


def _called(calls: list[_ToolCall]) -> Iterator[Piece]:
    for call in calls:
        yield Piece(f"tool {call.index} name", call.name)
        yield Piece(f"tool {call.index} arguments", call.arguments)


def _says(delta: _Delta) -> bool:
    text = delta.content or delta.reasoning or delta.reasoning_content or delta.reasoning_details
    return bool(text or _does(delta))


def _does(delta: _Delta) -> bool:
    return bool(delta.refusal or delta.tool_calls or delta.function_call or delta.audio or delta.images)


class MalformedError(ValueError):
    """An event that is not JSON."""


_chunk: Final = msgspec.json.Decoder(Chunk)


def is_done(data: bytes) -> bool:
    """Return whether an event is the one that ends a stream."""
    return data.strip() == _DONE


def read(data: bytes) -> Chunk | None:
    """Decode an event; None for JSON of an unknown shape.

    Raises:
        MalformedError: it is not JSON.

    """
    try:
        return _chunk.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        parsed(data)
    return None


def parsed(data: bytes) -> object:
    """Parse what msgspec does not decode: JSON of another type, and what clients accept: NaN, a lone surrogate.

    Raises:
        MalformedError: it is not JSON.

    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedError from None
