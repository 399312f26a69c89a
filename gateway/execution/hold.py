"""What is worth committing to.

Until it has come, nothing goes to the client, so that failing over is still possible:

- An event stream is held back until its first content: text, reasoning, a refusal or a tool call. The head, comments,
  and role-only or empty chunks do not count. A stream that ends properly without content (`[DONE]`, or its end after a
  finish reason) is an answer too; a finish reason alone is not, because some servers send one in the first event.
- Any other body is held back whole if it is JSON of at most a MiB, and checked: not empty, not cut short, no error
  object under a 200. A larger one is committed to at the limit.

Each failure found here is one that another deployment may not have.
"""

import json
import re
import time
from collections.abc import Callable
from typing import ClassVar, Final

import msgspec

from gateway.execution.answer import BODILESS, Answer, AttemptFailedError
from gateway.execution.chunks import Choice
from gateway.execution.completions import CompletionStream
from gateway.execution.outcome import Usage
from gateway.execution.relay import Stream
from gateway.execution.usage import TAIL, usage_in, usage_of
from gateway.routing.failures import Cause, Failure, error_failure

LARGEST: Final = 1 << 20
_USUAL: Final = re.compile("(?:application|audio|image|multipart|text|video)/[a-z.+-]{1,60}")


class ErrorAnswerError(AttemptFailedError):
    """An `error` came with a success status: a JSON object, as the answer or as its first event."""

    def __init__(self, error: bytes) -> None:
        """Carry the error, and the failure that it means."""
        super().__init__(error_failure(error))
        self.error = error


_NULL: Final = msgspec.Raw(b"null")
_UNTOLD: Final = msgspec.Raw()
_ERROR: Final = b'rror"'
"""The end of `"error"`: in a long text, Python finds five bytes in a quarter of the time that it needs for more."""


class _Answer(msgspec.Struct):
    error: object = None
    choices: msgspec.Raw = _NULL
    data: msgspec.Raw = _NULL
    output: msgspec.Raw = _NULL
    usage: msgspec.Raw = _UNTOLD


class Whole(msgspec.Struct, gc=False):
    """A whole JSON body that has been checked: what an Outcome needs to know of it.

    Mutable: `first_content`, when it came.
    """

    lost: ClassVar[None] = None
    malformed: ClassVar[int] = 0

    body: bytes
    size: int
    counts: msgspec.Raw = _UNTOLD
    first_content: float | None = None

    def __repr__(self) -> str:
        return f"<{self.size} bytes>"

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer reported; if it has no usable `usage` of its own, its tail may hold one."""
        return usage_of(self.counts) or usage_in(self.body[-TAIL:])

    def last_words(self, _: object) -> bytes:
        """Return nothing: it would be taken for a part of the body."""
        return b""


_answer: Final = msgspec.json.Decoder(_Answer)
_failed: Final = msgspec.json.Decoder(list[Choice])


def at_once(answer: Answer) -> Whole | None:
    """Return a JSON answer if all of it has come by now, else None.

    Raises:
        ErrorAnswerError: the answer is an error.
        AttemptFailedError: it is not an answer.

    """
    body = answer.whole() if answer.facts.is_json else None
    return None if body is None else _looked_at(body)


async def hold(answer: Answer, came: Callable[[], None], stream: Callable[[], Stream] | None = None) -> bytes | Whole:
    """Read an answer's beginning until it is worth committing to, and return it; nothing more has been read then.

    `came` is called when a part of a JSON body comes, except for the last: the answer's content has begun, and the rest
    is merely slow. `stream` is called for an event stream: what comes is fed to its result, and returned as it may
    pass. Without `stream`, it is returned as it came.

    Raises:
        ErrorAnswerError: the answer is an error.
        AttemptFailedError: it is not an answer.

    """
    if answer.facts.is_json:
        held = await _gathered(answer, came)
        return _looked_at(held) if answer.is_over() else held
    if answer.status in BODILESS:
        raise AttemptFailedError(Failure(Cause.EMPTY_ANSWER, f"status {answer.status}"))
    if answer.facts.encoded:
        return await _something(answer)
    if answer.facts.has_events:
        return await _first_content(answer, stream() if stream else None)
    raise AttemptFailedError(Failure(Cause.WRONG_TYPE, _named(answer.facts.content_type)))


def _named(kind: str) -> str:
    """Name a content type; an unusual one may hold anything, our key included, and is not quoted."""
    return f"content-type {kind}" if _USUAL.fullmatch(kind) else "an unusual content-type"


async def _something(answer: Answer) -> bytes:
    first = await answer.chunk()
    if not first:
        raise AttemptFailedError(Failure(Cause.EMPTY_ANSWER, "the body is empty"))
    return first


async def _first_content(answer: Answer, stream: Stream | None) -> bytes:
    held = bytearray()
    size = 0
    looked = stream or CompletionStream(time.monotonic, keeps=False, learns=False)
    while chunk := await answer.chunk():
        passed, content = looked.feed(chunk)
        held += chunk if stream is None else passed
        size += len(chunk)
        if content or looked.done:
            return bytes(held)
        if looked.failed:
            raise ErrorAnswerError(looked.error)
        if size > looked.most_held:
            return bytes(held)
    if looked.whole:
        return bytes(held)
    cause = Cause.CUT_ANSWER if size else Cause.EMPTY_ANSWER
    raise AttemptFailedError(Failure(cause, "the stream ended before its first content"))


def _looked_at(held: bytes) -> Whole:
    """Check a whole JSON body."""
    try:
        body = _answer.decode(held)
        if not held.isascii():
            held.decode()  # what the decoder skips may not be UTF-8
        is_error, counts = _is_error(body), body.usage
        if not is_error and body.choices is not _NULL and held.find(_ERROR) >= 0:  # `in` takes longer
            _look_at_choices(body.choices)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        is_error, counts = _is_error_to_clients(held), _UNTOLD
    if is_error:
        raise ErrorAnswerError(held)
    return Whole(held, len(held), counts)


def _is_error(body: _Answer) -> bool:
    """Return whether the body reports an error and nothing else; a failed response may have some output as well."""
    if body.error is None or not (_is_empty(body.choices) and _is_empty(body.data)):
        return False
    return bool(body.error) or _is_empty(body.output)


def _is_empty(told: msgspec.Raw) -> bool:
    return bytes(told).strip(b"[] \t\r\n") in {b"", bytes(_NULL)}


def _look_at_choices(told: msgspec.Raw) -> None:
    """Raise if all choices failed: OpenRouter reports errors there, with a success status."""
    try:
        choices = _failed.decode(told) if told != _NULL else []
    except msgspec.ValidationError:  # of an unknown shape
        return
    errors = [choice.failure for choice in choices]
    if choices and all(errors):
        raise ErrorAnswerError(msgspec.json.encode({"error": errors[0]}))


def _is_error_to_clients(held: bytes) -> bool:
    """Return whether a body that clients decode, though msgspec does not (NaN, a lone surrogate), is an error."""
    if not held.strip():
        raise AttemptFailedError(Failure(Cause.EMPTY_ANSWER, "the body is empty"))
    try:
        fields = json.loads(held)
    except (ValueError, RecursionError):
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the body is cut short or not JSON")) from None
    if not isinstance(fields, dict):
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the body is not a JSON object"))
    return fields.get("error") is not None and not fields.get("choices") and not fields.get("data")


async def _gathered(answer: Answer, came: Callable[[], None]) -> bytes:
    """Read to the end, or until more has come than is held back and there is more to come."""
    held: list[bytes] = []
    size = 0
    while chunk := await answer.chunk():
        if not answer.is_over():
            came()
        held.append(chunk)
        size += len(chunk)
        if size > LARGEST and not answer.is_over():
            break
    return b"".join(held)
