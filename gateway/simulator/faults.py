"""The faults of a box: one class per kind, with its parameters and the script that it makes of a reply.

A fault applies to one request, to `times` requests, for ever, or for `lasts` seconds; `model` limits it to one model.
Requests that it does not fit are answered as usual and do not use it up. If it should come after more tokens than the
answer has, it comes after the last one. Called with a reply, a fault yields the script of what happens instead.
"""

# ruff: noqa: D102 - each class describes its kind, and all kinds have the same one method

import math
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import parse_qsl

import msgspec

from gateway.simulator import errors
from gateway.simulator.script import Body, End, Head, Pace, Pause, Raw, Reply, Script

Positive = Annotated[int, msgspec.Meta(ge=1)]
Tokens = Annotated[int, msgspec.Meta(ge=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]

_HALF_AN_EVENT = b'data: {"choices": [{"index": 0, "delta": {"conten\n\n'
_UNFINISHED, _FINISHED = b'"finish_reason":null', b'"finish_reason":"stop"'
_PAGE = b"<!doctype html><title>Sign in</title><p>Sign in to go on.\n"


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What all kinds share. Without `times` and `lasts`, a control request's fault applies to one request."""

    model: str | None = None
    times: Positive | Literal["forever"] | None = None
    lasts: NotNegative | None = None

    def fits(self, reply: Reply) -> bool:  # noqa: ARG002 - for those that do not fit every reply
        """Return whether the fault can happen to this reply."""
        return True


class _OfTokens(Fault, frozen=True, kw_only=True):
    """A fault between tokens, which embeddings do not have."""

    def fits(self, reply: Reply) -> bool:
        return bool(reply.pieces)


class _OfStreams(Fault, frozen=True, kw_only=True):
    """A fault between events, which only streams have."""

    def fits(self, reply: Reply) -> bool:
        return reply.is_stream


class Status(Fault, frozen=True, kw_only=True, tag="status"):
    """An error status, with `retry_after` in seconds."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500
    retry_after: Tokens | None = None

    def __call__(self, _: Reply, __: Pace) -> Script:
        headers = () if self.retry_after is None else (("retry-after", str(self.retry_after)),)
        return _json(errors.of_status(self.status), self.status, headers)


class ContextLength(Fault, frozen=True, kw_only=True, tag="context_length"):
    """400: the prompt is too long, in the words of one of eight servers."""

    says: errors.Dialect = "openai"

    def __call__(self, _: Reply, __: Pace) -> Script:
        return _json(errors.too_long(self.says), 400)


class ContentFilter(Fault, frozen=True, kw_only=True, tag="content_filter"):
    """400: the prompt violates the provider's policy."""

    says: errors.PolicyDialect = "openai"

    def __call__(self, _: Reply, __: Pace) -> Script:
        return _json(errors.against_policy(self.says), 400)


class Loading(Fault, frozen=True, kw_only=True, tag="loading"):
    """503 on every path, `/health` included: the model is loading."""

    says: errors.LoadingDialect = "llamacpp"

    def __call__(self, _: Reply, __: Pace) -> Script:
        return _at_once(errors.loading(self.says), Head(503))


class ErrorBody(Fault, frozen=True, kw_only=True, tag="error_body"):
    """200, and an error as the JSON body."""

    def __call__(self, _: Reply, __: Pace) -> Script:
        return _json(errors.of_status(500))


class ErrorEvent(_OfStreams, frozen=True, kw_only=True, tag="error_event"):
    """200, and an error event in place of the next token."""

    tokens: Tokens = 0

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        yield from replace(reply, opening=reply.opening if self.tokens else b"").until(self.tokens, pace)
        yield Body(b"data: " + msgspec.json.encode(errors.of_status(500)) + b"\n\n")


class EmptyBody(Fault, frozen=True, kw_only=True, tag="empty_body"):
    """200, and an empty body."""

    def __call__(self, reply: Reply, _: Pace) -> Script:
        return _at_once(b"", reply.head)


class WrongType(Fault, frozen=True, kw_only=True, tag="wrong_type"):
    """200, and an HTML page."""

    def __call__(self, _: Reply, __: Pace) -> Script:
        return _at_once(_PAGE, Head(content_type="text/html"))


class Reset(Fault, frozen=True, kw_only=True, tag="reset"):
    """An RST before the head."""

    def __call__(self, _: Reply, __: Pace) -> Script:
        yield End.RESET


class Close(Fault, frozen=True, kw_only=True, tag="close"):
    """A FIN before the head."""

    def __call__(self, _: Reply, __: Pace) -> Script:
        yield End.CLOSE


class Silence(Fault, frozen=True, kw_only=True, tag="silence"):
    """No answer at all, for `seconds` or for ever; then a FIN."""

    seconds: NotNegative | None = None

    def __call__(self, _: Reply, __: Pace) -> Script:
        return _hold(self.seconds)


class Trickle(Fault, frozen=True, kw_only=True, tag="trickle"):
    """A head sent at one byte every `seconds`; then the whole body."""

    seconds: NotNegative = 1

    def __call__(self, reply: Reply, _: Pace) -> Script:
        fields = f"content-type: {reply.head.content_type}\r\ncontent-length: {len(reply.body)}\r\nconnection: close"
        for byte in f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode():
            yield Raw(bytes((byte,)))
            yield Pause(self.seconds)
        yield Raw(reply.body)
        yield End.CLOSE


class HeadOnly(Fault, frozen=True, kw_only=True, tag="head_only"):
    """A head, and no body for `seconds` or for ever; then a FIN."""

    seconds: NotNegative | None = None

    def __call__(self, reply: Reply, _: Pace) -> Script:
        yield reply.head
        yield from _hold(self.seconds)


class Comments(_OfStreams, frozen=True, kw_only=True, tag="comments"):
    """`count` comments, `every` seconds apart; then silence as in `head_only`."""

    count: Tokens = 10
    every: NotNegative = 1
    seconds: NotNegative | None = None

    def __call__(self, reply: Reply, _: Pace) -> Script:
        yield reply.head
        for _number in range(self.count):
            yield Body(b": ping\n\n")
            yield Pause(self.every)
        yield from _hold(self.seconds)


class Late(_OfTokens, frozen=True, kw_only=True, tag="late"):
    """A first token after `seconds`. A stream's head and role come at once."""

    seconds: NotNegative = 20

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        return reply.script(lambda index: pace(index) if index else self.seconds)


class Cut(_OfTokens, frozen=True, kw_only=True, tag="cut"):
    """An end after `tokens`: an RST, a FIN inside the body, or the body's clean end."""

    tokens: Tokens = 5
    end: Literal["reset", "close", "clean"] = "reset"

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        if self.end == "clean":
            yield from replace(reply, head=replace(reply.head, length=None)).until(self.tokens, pace)
        else:
            yield from reply.until(self.tokens, pace)
            yield End.RESET if self.end == "reset" else End.CLOSE


class Stall(_OfTokens, frozen=True, kw_only=True, tag="stall"):
    """Silence after `tokens`, for `seconds` or for ever; then a FIN inside the body."""

    tokens: Tokens = 5
    seconds: NotNegative | None = None

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        yield from reply.until(self.tokens, pace)
        yield from _hold(self.seconds)


class Malformed(_OfStreams, frozen=True, kw_only=True, tag="malformed"):
    """One event with half a JSON text after `tokens`; the stream goes on."""

    tokens: Tokens = 5

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        return reply.with_event(_HALF_AN_EVENT, self.tokens).script(pace)


class EarlyFinish(_OfStreams, frozen=True, kw_only=True, tag="early_finish"):
    """A finish reason in each event, from the first token on."""

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        pieces = (piece.replace(_UNFINISHED, _FINISHED) for piece in reply.pieces)
        return replace(reply, pieces=tuple(pieces)).script(pace)


class NoDone(_OfStreams, frozen=True, kw_only=True, tag="no_done"):
    """A finish reason, and a clean end without `[DONE]`."""

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        return replace(reply, done=b"").script(pace)


class HeldOpen(_OfStreams, frozen=True, kw_only=True, tag="held_open"):
    """A finish reason, no `[DONE]`, and no end for `seconds` or for ever; then a FIN inside the body."""

    seconds: NotNegative | None = None

    def __call__(self, reply: Reply, pace: Pace) -> Script:
        yield from replace(reply, done=b"").script(pace)
        yield from _hold(self.seconds)


AnyFault = (
    Status
    | ContextLength
    | ContentFilter
    | Loading
    | ErrorBody
    | ErrorEvent
    | EmptyBody
    | WrongType
    | Reset
    | Close
    | Silence
    | Trickle
    | HeadOnly
    | Comments
    | Late
    | Cut
    | Stall
    | Malformed
    | EarlyFinish
    | NoDone
    | HeldOpen
)


def named(name: str) -> tuple[str, AnyFault | None]:
    """Split a model's name, `model+kind?parameter=value&...`, into the model and its fault.

    Raises:
        msgspec.ValidationError: there is no such fault.

    """
    model, plus, told = name.partition("+")
    if not plus:
        return name, None
    kind, _, query = told.partition("?")
    fault: AnyFault = msgspec.convert({"kind": kind, **dict(parse_qsl(query))}, AnyFault, strict=False)
    return model, fault


def _json(body: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Script:
    return _at_once(msgspec.json.encode(body), Head(status, headers=headers))


def _at_once(body: bytes, head: Head) -> Script:
    yield replace(head, length=len(body))
    yield Body(body)


def _hold(seconds: float | None) -> Script:
    yield Pause(math.inf if seconds is None else seconds)
    yield End.CLOSE
