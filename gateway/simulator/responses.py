"""`/v1/responses` as a box answers it: a text, whole or as events.

https://platform.openai.com/docs/api-reference/responses
"""

import time
import uuid
from collections.abc import Iterator

import msgspec

from gateway.simulator.answers import words
from gateway.simulator.faults import Positive
from gateway.simulator.script import EVENT_STREAM, Head, Json, Reply


class _Item(msgspec.Struct):
    content: str | list[Json] | None = None

    def texts(self) -> Iterator[str]:
        parts = [{"text": self.content}] if isinstance(self.content, str) else self.content or []
        return (str(part["text"]) for part in parts if "text" in part)


class AskedResponse(msgspec.Struct):
    """The body of a request, as far as a simulated box reads it."""

    model: str
    input: str | list[_Item] = ""
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Positive | None = None

    def texts(self) -> list[str]:
        """Return all texts of the prompt."""
        given = [self.input] if isinstance(self.input, str) else [text for item in self.input for text in item.texts()]
        return [self.instructions, *given] if self.instructions else given


def response(asked: AskedResponse, said: tuple[str, ...], box: str) -> Reply:
    """Answer with a text; `box` is the name of the box."""
    pieces = said[: asked.max_output_tokens]
    made = _Response(asked, pieces, box, is_whole=len(pieces) == len(said))
    return made.stream() if asked.stream else Reply.whole(msgspec.json.encode(made.whole()), len(pieces))


class _Response:
    """A response made of these pieces, which are its tokens. Mutable: the number of events so far."""

    def __init__(self, asked: AskedResponse, pieces: tuple[str, ...], box: str, *, is_whole: bool) -> None:
        name = uuid.uuid4().hex
        read, spent = words(asked.texts()), len(pieces)
        self._pieces = pieces
        self._events = 0
        self._place: Json = {"item_id": f"msg_{name}", "output_index": 0, "content_index": 0}
        self._end = "completed" if is_whole else "incomplete"
        self._frame: Json = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model,
            "instructions": asked.instructions,
            "metadata": {"box": box},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        self._usage: Json = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": spent,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + spent,
        }

    def whole(self) -> Json:
        """Return the whole response."""
        why = {"reason": "max_output_tokens"} if self._end == "incomplete" else None
        text = "".join(self._pieces)
        return self._state(self._end, [self._item(self._end, [_part(text)])], self._usage) | {"incomplete_details": why}

    def stream(self) -> Reply:
        """Return the response as a stream of events."""
        begun: Json = {"response": self._state("in_progress", [], None)}
        text = "".join(self._pieces)
        opening = (
            self._event("created", begun),
            self._event("in_progress", begun),
            self._event("output_item.added", {"output_index": 0, "item": self._item("in_progress", [])}),
            self._event("content_part.added", {**self._place, "part": _part("")}),
        )
        pieces = tuple(
            self._event("output_text.delta", {**self._place, "delta": piece, "logprobs": []}) for piece in self._pieces
        )
        closing = (
            self._event("output_text.done", {**self._place, "text": text, "logprobs": []}),
            self._event("content_part.done", {**self._place, "part": _part(text)}),
            self._event("output_item.done", {"output_index": 0, "item": self._item(self._end, [_part(text)])}),
            self._event(self._end, {"response": self.whole()}),
        )
        head = Head(content_type=EVENT_STREAM, headers=(("cache-control", "no-cache"),))
        return Reply(head, opening=b"".join(opening), pieces=pieces, closing=b"".join(closing))

    def _state(self, status: str, output: list[Json], usage: Json | None) -> Json:
        return {**self._frame, "status": status, "error": None, "output": output, "usage": usage}

    def _item(self, status: str, content: list[Json]) -> Json:
        return {
            "id": self._place["item_id"],
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _event(self, name: str, told: Json) -> bytes:
        kind = f"response.{name}"
        data = msgspec.json.encode({"type": kind, "sequence_number": self._events, **told})
        self._events += 1
        return f"event: {kind}\ndata: ".encode() + data + b"\n\n"


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
