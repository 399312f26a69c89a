"""The events of a stream that took over, rewritten to fit the stream that a client has begun to read."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from gateway.execution.outcome import MOST_TOKENS, Usage

_KEPT: Final = ("id", "created")
_CALL_OPENING: Final = ("id", "type")


class Frame(msgspec.Struct, frozen=True):
    """What all chunks of one stream have in common: the fields that OpenAI's reference says are the same in each."""

    fields: dict[str, object]

    @classmethod
    def of(cls, data: bytes) -> "Frame":
        """Read it from a stream's event; empty if that is not an object."""
        try:
            event = msgspec.json.decode(data, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError):
            event = {}
        return cls({name: event[name] for name in _KEPT if name in event})


def rewritten(data: bytes, new: tuple[str, ...], frame: Frame, *, spent: int) -> bytes:
    """Rewrite an event's JSON to say only what is `new`, its pieces in order, and to count `spent` tokens as generated.

    Those tokens were given to the upstream as a part of its prompt, where it counted them.
    """
    event: dict[str, Any] = msgspec.json.decode(data)
    event |= {name: value for name, value in frame.fields.items() if name in event}
    for choice in event.get("choices") or ():
        _say(choice, iter(new))
    if isinstance(usage := event.get("usage"), dict):
        event["usage"] = _counted(usage, spent)
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _say(choice: dict[str, Any], new: Iterator[str]) -> None:
    """Replace the old texts with the new ones, which are in the order of `Chunk.pieces`."""
    if choice.get("text"):
        choice["text"] = next(new)
    delta = choice.get("delta") or {}
    delta.pop("role", None)
    reasoning = [name for name in ("reasoning_content", "reasoning") if delta.get(name)]
    if reasoning:
        text = next(new)
        if text != delta[reasoning[0]]:
            delta.pop("reasoning_details", None)
        delta |= dict.fromkeys(reasoning, text)
    for name in ("content", "refusal"):
        if delta.get(name):
            delta[name] = next(new)
    for call in delta.get("tool_calls") or ():
        _call(call, next(new), next(new))


def _call(call: dict[str, Any], name: str, arguments: str) -> None:
    function = call.get("function") or {}
    if "arguments" in function:
        function["arguments"] = arguments
    if name and name == function["name"]:
        return
    for field in _CALL_OPENING:
        call.pop(field, None)
    if name:
        function["name"] = name
    else:
        function.pop("name", None)


def _counted(usage: dict[str, Any], spent: int) -> dict[str, Any]:
    moved = moved_tokens(usage.get("prompt_tokens"), spent)
    shifts = {"prompt_tokens": -moved, "completion_tokens": moved}
    return usage | {name: usage[name] + by for name, by in shifts.items() if isinstance(usage.get(name), int)}


def moved_tokens(prompt_tokens: object, spent: int) -> int:
    """Return how many of the `spent` tokens can be in a prompt of `prompt_tokens`."""
    return min(spent, prompt_tokens) if isinstance(prompt_tokens, int) else 0


def recounted(usage: Usage, spent: int) -> Usage:
    """Return the usage with `spent` tokens of its prompt counted as generated."""
    moved = moved_tokens(usage.prompt_tokens, spent)
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return Usage(
        None if prompt is None else prompt - moved,
        None if completion is None else min(completion + moved, MOST_TOKENS),
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
