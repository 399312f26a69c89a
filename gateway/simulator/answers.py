"""Requests as a box reads them, and its answers: texts, tool calls, vectors."""

import base64
import hashlib
import itertools
import json
import math
import re
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from gateway.simulator.box import Prefill
from gateway.simulator.faults import Positive
from gateway.simulator.script import EVENT_STREAM, Head, Json, Reply

Input = str | list[str | int | list[int]]

FILLER = (" This", " text", " is", " simulated,", " one", " word", " for", " each", " token.")
_OPENING = re.compile(r"(\S+)( \S+)( \S+\.)")


class PrefillRefusedError(ValueError):
    """The box does not continue an assistant message; the error's text says why."""


class Message(msgspec.Struct):
    """A message of a chat."""

    role: str
    content: str | list[Json] | None = None

    def text(self) -> str:
        """Return the text parts, joined."""
        parts = [{"text": self.content}] if isinstance(self.content, str) else self.content or []
        return " ".join(str(part["text"]) for part in parts if "text" in part)


class _Function(msgspec.Struct):
    name: str


class _Tool(msgspec.Struct):
    function: _Function


class Asked(msgspec.Struct):
    """The body of a request for a chat, a completion or embeddings, as far as a simulated box reads it."""

    model: str
    messages: list[Message] = []
    prompt: Input = ""
    input: Input = ""
    stream: bool | None = None
    stream_options: dict[str, bool | None] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    tools: list[_Tool] | None = None
    tool_choice: object = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32

    def called_tool(self) -> str | None:
        """Return the name of the first tool, unless tools are off or the conversation ends with a tool's result."""
        off = self.tool_choice == "none" or any(last.role == "tool" for last in self.messages[-1:])
        return self.tools[0].function.name if self.tools and not off else None

    def last_user_text(self) -> str:
        """Return the text of the user's last message."""
        return next((message.text() for message in reversed(self.messages) if message.role == "user"), "")

    def texts(self, *, without_last: bool = False) -> list[str]:
        """Return all texts of the prompt, or all but the last message's."""
        messages = self.messages[:-1] if without_last else self.messages
        return [*(message.text() for message in messages), *texts(self.prompt)]

    def begun(self, prefill: Prefill) -> str | None:
        """Return the assistant's text that the answer continues, or None for a new answer.

        Raises:
            PrefillRefusedError: it cannot be continued.

        """
        if not self.messages or self.messages[-1].role != "assistant":
            return None
        if prefill == "refused":
            raise PrefillRefusedError("This model does not support assistant message prefill.")
        if self.continue_final_message and self.add_generation_prompt:
            raise PrefillRefusedError("continue_final_message and add_generation_prompt are not compatible.")
        asked = prefill == "asked" and self.continue_final_message
        return self.messages[-1].text() if asked or prefill == "always" else None


class Answer:
    """A completion, sent whole or in chunks. Its pieces are its tokens: text, or a tool's arguments."""

    def __init__(self, asked: Asked, said: tuple[str, ...], begun: str | None, box: str, *, chat: bool) -> None:
        """Answer with `said`, or with the rest of it after a text `begun`; `box` is the name of the box."""
        self._asked = asked
        self._chat = chat
        self._tool = asked.called_tool() if chat and begun is None else None
        said = _arguments(asked.last_user_text()) if self._tool else said if begun is None else continued(said, begun)
        self._pieces = said[: asked.max_completion_tokens or asked.max_tokens]
        self._finish = "length" if len(self._pieces) < len(said) else "tool_calls" if self._tool else "stop"
        self._usage = _usage(asked.texts(), self._pieces)
        self._id = uuid.uuid4().hex
        self._frame: Json = {"created": int(time.time()), "model": asked.model, "system_fingerprint": box}

    def reply(self) -> Reply:
        """Return the answer in the form that was requested."""
        if not self._asked.stream:
            return Reply.whole(msgspec.json.encode(self._whole()), len(self._pieces))
        return Reply(
            Head(content_type=EVENT_STREAM, headers=(("cache-control", "no-cache"),)),
            opening=_events(self._opening()),
            pieces=tuple(_events([self._piece(piece)]) for piece in self._pieces),
            closing=_events(self._closing()),
            done=b"data: [DONE]\n\n",
        )

    def _whole(self) -> Json:
        text = "".join(self._pieces)
        message: Json = {"role": "assistant", "content": text}
        if self._tool is not None:
            message |= {"content": None, "tool_calls": [self._call(text)]}
        said: Json = {"message": message} if self._chat else {"text": text}
        return self._envelope(_choice(said, self._finish), self._usage)

    def _opening(self) -> Iterator[Json]:
        if self._chat:
            yield self._chunk({"role": "assistant", "content": "" if self._tool is None else None})
        if self._tool is not None:
            yield self._chunk({"tool_calls": [{"index": 0, **self._call("")}]})

    def _piece(self, text: str) -> Json:
        if self._tool is not None:
            return self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})
        return self._chunk({"content": text} if self._chat else {"text": text})

    def _closing(self) -> Iterator[Json]:
        yield self._chunk({} if self._chat else {"text": ""}, self._finish)
        if (self._asked.stream_options or {}).get("include_usage"):
            yield self._envelope([], self._usage, ".chunk")

    def _call(self, arguments: str) -> Json:
        return {"id": f"call_{self._id}", "type": "function", "function": {"name": self._tool, "arguments": arguments}}

    def _chunk(self, content: Json, finish: str | None = None) -> Json:
        return self._envelope(_choice({"delta": content} if self._chat else content, finish), None, ".chunk")

    def _envelope(self, choices: list[Json], usage: Json | None, suffix: str = "") -> Json:
        prefix, kind = ("chatcmpl", f"chat.completion{suffix}") if self._chat else ("cmpl", "text_completion")
        return {"id": f"{prefix}-{self._id}", "object": kind, **self._frame, "choices": choices, "usage": usage}


def embeddings(asked: Asked) -> Reply:
    """Answer with a vector for each text."""
    told = texts(asked.input)
    vectors = [_vector(text, asked.dimensions, asked.encoding_format) for text in told]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    answer = {"object": "list", "data": data, "model": asked.model, "usage": _usage(told, ())}
    return Reply.whole(msgspec.json.encode(answer), 0)


def texts(value: Input) -> list[str]:
    """Split an input into its texts; a text may be written as a list of token numbers."""
    if isinstance(value, str) or all(isinstance(item, int) for item in value):
        return [str(value)]
    return [str(item) for item in value]


def introduction(name: str, tokens: int) -> tuple[str, ...]:
    """Return a text that names the box."""
    return _said(("I", " am", f" {name}."), tokens)


def deterministic(prompt: Iterable[str], tokens: int) -> tuple[str, ...]:
    """Return a text that depends on the prompt alone."""
    return _said(("Answer", " to", f" {hashlib.sha256(chr(0).join(prompt).encode()).hexdigest()[:8]}."), tokens)


def continued(own: tuple[str, ...], begun: str) -> tuple[str, ...]:
    """Return the rest of a text that has `begun`; the first piece may be the rest of a word.

    The text may be another box's. One that no box says is followed by a whole text.
    """
    opening = _OPENING.match(begun)
    said = _said(opening.groups(), len(own)) if opening else own
    if not "".join(said).startswith(begun):
        return _said((), len(own))
    ends = itertools.accumulate(map(len, said))
    left = [(word, end - len(begun)) for word, end in zip(said, ends, strict=True) if end > len(begun)]
    return tuple(word[-length:] for word, length in left)


def _said(opening: Iterable[str], tokens: int) -> tuple[str, ...]:
    return tuple(itertools.islice(itertools.chain(opening, itertools.cycle(FILLER)), tokens))


def _arguments(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\S+\s*", json.dumps({"echo": text})))


def _events(events: Iterable[Json]) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)


def _choice(content: Json, finish: str | None) -> list[Json]:
    return [{"index": 0, **content, "logprobs": None, "finish_reason": finish}]


def _usage(prompt: Iterable[str], pieces: tuple[str, ...]) -> Json:
    read, spent = words(prompt), len(pieces)
    return {"prompt_tokens": read, "completion_tokens": spent, "total_tokens": read + spent}


def words(prompt: Iterable[str]) -> int:
    """Count the words, which stand for a prompt's tokens."""
    return sum(len(text.split()) for text in prompt)


def _vector(text: str, dimensions: int, encoding: str) -> list[float] | str:
    """Derive a unit vector from a text; OpenAI's base64 holds little-endian 32-bit floats."""
    numbers = struct.unpack(f"<{dimensions}h", hashlib.shake_256(text.encode()).digest(2 * dimensions))
    length = math.hypot(*numbers) or 1.0
    vector = [number / length for number in numbers]
    return base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if encoding == "base64" else vector
