"""What is worth committing to.

Until then nothing goes to the client, so that failing over is still possible:

- An event stream is held back up to its first content: text, reasoning, a refusal or a tool call. Heads, comments,
  role-only and empty chunks are none. A stream that ends well without any (a finish reason, `[DONE]`) is an answer too.
- Any other body is held back whole if it is JSON of at most a MiB, and checked: not empty, not cut short, no error
  object under a 200. A larger one is committed to at the limit.

Each of the failures found here is one that another deployment may not have.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.execution.answer import Answer, AttemptFailedError
from gateway.execution.chunks import MalformedError, is_done, read
from gateway.execution.sse import EventScanner
from gateway.routing.failures import Cause, Failure, error_failure

LARGEST: Final = 1 << 20
EVENT_STREAM: Final = "text/event-stream"
_BODILESS: Final = frozenset({204, 205})
_ERROR: Final = 4096
_JSON: Final = ("application/json", "+json")


class _Answer(msgspec.Struct):
    error: object = None
    choices: object = None
    data: object = None


_answer: Final = msgspec.json.Decoder(_Answer)


async def hold(answer: Answer, came: Callable[[], None]) -> bytes:
    """Read an answer's beginning until it is worth committing to, and give it; nothing else has been read then.

    `came` is called with each part of a JSON body but the last: its first byte is its content, and what follows is only
    slow.

    Raises:
        AttemptFailedError: it is not an answer.

    """
    if answer.status in _BODILESS:
        return await answer.chunk()
    if answer.encoded:
        return await _something(answer)
    if answer.content_type == EVENT_STREAM:
        return await _first_content(answer)
    if not is_json(answer):
        raise AttemptFailedError(Failure(Cause.WRONG_TYPE, f"content-type {answer.content_type[:100]}"))
    return await _whole_json(answer, came)


def is_json(answer: Answer) -> bool:
    """Tell whether an answer should be a JSON object that can be looked at."""
    return answer.status not in _BODILESS and not answer.encoded and answer.content_type.endswith(_JSON)


async def _something(answer: Answer) -> bytes:
    first = await answer.chunk()
    if not first:
        raise AttemptFailedError(Failure(Cause.EMPTY_ANSWER, "the body is empty"))
    return first


async def _first_content(answer: Answer) -> bytes:
    held = bytearray()
    scanner = EventScanner()
    while chunk := await answer.chunk():
        held += chunk
        if any(_is_worth_it(event.data) for event in scanner.feed(chunk) if event.data):
            return bytes(held)
        if len(held) > LARGEST:
            return bytes(held)
    cause = Cause.CUT_ANSWER if held else Cause.EMPTY_ANSWER
    raise AttemptFailedError(Failure(cause, "the stream ended before its first content"))


def _is_worth_it(data: bytes) -> bool:
    """Tell whether an event is content, or the end of an answer."""
    if is_done(data):
        return True
    try:
        chunk = read(data)
    except MalformedError:
        return False
    if chunk is not None and chunk.error is not None:
        raise AttemptFailedError(error_failure(data))
    return chunk is not None and (chunk.content or chunk.finished)


async def _whole_json(answer: Answer, came: Callable[[], None]) -> bytes:
    held = bytearray()
    while chunk := await answer.chunk():
        if not answer.over:
            came()
        held += chunk
        if len(held) > LARGEST:
            return bytes(held)
    if not held.strip():
        raise AttemptFailedError(Failure(Cause.EMPTY_ANSWER, "the body is empty"))
    try:
        body = _answer.decode(held)
    except msgspec.ValidationError:
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the body is not a JSON object")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the body is cut short or not JSON")) from None
    if body.error is not None and body.choices is None and body.data is None:
        raise AttemptFailedError(error_failure(bytes(held[:_ERROR])))
    return bytes(held)
