"""The tokens that an upstream counted: `usage`, from an event of a stream or a whole JSON answer.

A long body has it near its end, so only its last bytes are searched. They are scanned for every `usage` only if they
cannot be decoded from the last one on.
"""

import json
import re
from typing import Annotated, Final

import msgspec

from gateway.execution.outcome import MOST_TOKENS, Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    """As chats and completions report it, and as responses do."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None

    def told(self) -> Usage:
        read = self.prompt_tokens_details or self.input_tokens_details
        thought = self.completion_tokens_details or self.output_tokens_details
        return Usage(
            self.input_tokens if self.prompt_tokens is None else self.prompt_tokens,
            self.output_tokens if self.completion_tokens is None else self.completion_tokens,
            None if read is None else read.cached_tokens,
            None if thought is None else thought.reasoning_tokens,
        )


class _AnyUsage(msgspec.Struct, gc=False):
    """As servers report it that send strings for numbers, or lists for empty objects: what can be read of it counts."""

    prompt_tokens: object = None
    completion_tokens: object = None
    prompt_tokens_details: object = None
    completion_tokens_details: object = None
    input_tokens: object = None
    output_tokens: object = None
    input_tokens_details: object = None
    output_tokens_details: object = None

    def told(self) -> Usage:
        return Usage(
            _count(self.input_tokens if self.prompt_tokens is None else self.prompt_tokens),
            _count(self.output_tokens if self.completion_tokens is None else self.completion_tokens),
            _detail(self.prompt_tokens_details or self.input_tokens_details, "cached_tokens"),
            _detail(self.completion_tokens_details or self.output_tokens_details, "reasoning_tokens"),
        )


def _count(told: object) -> int | None:
    if isinstance(told, float) and told.is_integer():
        told = int(told)
    return told if type(told) is int and 0 <= told <= MOST_TOKENS else None


def _detail(details: object, name: str) -> int | None:
    return _count(details.get(name)) if isinstance(details, dict) else None


class _Rest(msgspec.Struct, gc=False):
    usage: _Usage


TAIL: Final = 1 << 14
"""How many of a body's last bytes are searched."""
_counts: Final = msgspec.json.Decoder(_Usage)
_any_counts: Final = msgspec.json.Decoder(_AnyUsage)
_rest: Final = msgspec.json.Decoder(_Rest)
_NAME: Final = b'"usage"'
_BACKSLASH: Final = 92  # as a number: found faster
_USAGE: Final = re.compile(r'"usage"\s*:\s*(?=\{)')
_object: Final = json.JSONDecoder()


def usage_in(tail: bytes) -> Usage | None:
    """Return the last whole `usage` object in the tail of a JSON body.

    It is searched for without parsing: inside a JSON string its quotes would be escaped, so only a member's name
    matches. Nearly always it is a member of the body itself; then the tail from its name on, after an opening brace, is
    an object.
    """
    place = tail.rfind(_NAME)
    if place < 0:
        return None
    rest = tail[place:]
    if _BACKSLASH not in rest:  # no name is escaped, so this is the only usage
        try:
            return _rest.decode(b"{" + rest).usage.told()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return _usage_anywhere(tail)


def usage_of(counts: msgspec.Raw) -> Usage | None:
    """Return the usage that the value of `usage` holds, if it is an object; impossible counts are treated as absent."""
    if not counts:
        return None
    try:
        return _counts.decode(counts).told()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _any_counts.decode(counts).told()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _usage_anywhere(tail: bytes) -> Usage | None:
    text = tail.decode(errors="replace")
    for match in reversed(list(_USAGE.finditer(text))):
        try:
            found, _ = _object.raw_decode(text, match.end())
            return msgspec.convert(found, _AnyUsage).told()
        except (ValueError, msgspec.ValidationError, RecursionError):
            continue
    return None
