"""An upstream's own error, made safe to pass on: upstreams echo the key that they refuse."""

import asyncio
import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from pydantic import SecretStr

from gateway.execution.answer import Answer, AttemptFailedError
from gateway.routing.failures import Cause, Failure
from gateway.routing.snapshot import Deployment
from gateway.routing.wordings import message_of

_LIMIT: Final = 1 << 20
_SHORTEST_KEY: Final = 4
_LONGEST_WORDS: Final = 300
_MASK: Final = b"***"
_WITHHELD: Final = (
    b'{"error":{"message":"the upstream\'s error could not be read safely","type":"upstream_error",'
    b'"param":null,"code":"error_withheld"}}'
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An upstream's own error answer, read whole, with the deployment's key masked."""

    deployment: str
    status: int
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)


async def read_refusal(answer: Answer, deployment: Deployment, seconds: float) -> Refusal:
    """Read an upstream's error within `seconds` and mask our key in it; what cannot be read safely is withheld.

    Raises:
        AttemptFailedError: the error's body broke off or stalled.

    """
    try:
        async with asyncio.timeout(seconds):
            body = await answer.read(_LIMIT)
    except TimeoutError as error:
        raise AttemptFailedError(Failure(Cause.CUT_ANSWER, "the error's body stalled", answer.status)) from error
    if body is None or answer.facts.encoded:
        return Refusal(deployment.name, answer.status, _json_fields(answer, deployment), _WITHHELD)
    return Refusal(deployment.name, answer.status, safe_fields(answer, deployment), _masked(body, deployment.key))


def told_refusal(answer: Answer, deployment: Deployment, status: int, error: bytes) -> Refusal:
    """Turn a JSON error that an upstream sent with a success status into the error answer that it means."""
    return Refusal(deployment.name, status, _json_fields(answer, deployment), _masked(error, deployment.key))


def words(error: bytes, deployment: Deployment) -> str:
    """Return an upstream's own error message, as one line, cut; empty if there is none that may be shown.

    Our key is masked in it twice: a proxy puts the JSON of the upstream that it asked into a message of its own.
    """
    if error is _WITHHELD:
        return ""
    told = _masked(message_of(_masked(error, deployment.key)).encode(), deployment.key).decode()
    return " ".join(told[:_LONGEST_WORDS].split()) + "..." * (len(told) > _LONGEST_WORDS)


def _json_fields(answer: Answer, deployment: Deployment) -> list[tuple[str, str]]:
    fields = safe_fields(answer, deployment)
    kept = [(name, value) for name, value in fields if not name.lower().startswith("content-")]
    return [*kept, ("Content-Type", "application/json")]


def safe_fields(answer: Answer, deployment: Deployment) -> list[tuple[str, str]]:
    """Return an answer's header fields, except those that echo our key."""
    spellings = _spellings(deployment.key)
    if not spellings:
        return answer.facts.headers
    return [(name, value) for name, value in answer.facts.headers if not any(form in value for form in spellings)]


@lru_cache(maxsize=1024)
def _spellings(secret: SecretStr | None) -> frozenset[str]:
    """Return the forms in which a deployment's key may appear: as it is, in JSON (RFC 8259 7), and in a URL."""
    key = secret.get_secret_value() if secret else ""
    if len(key) < _SHORTEST_KEY:
        return frozenset()
    quoted = json.dumps(key)[1:-1]
    return frozenset({key, quoted, quoted.replace("/", "\\/"), quote(key, safe="")})


def _masked(body: bytes, secret: SecretStr | None) -> bytes:
    spellings = _spellings(secret)
    for form in spellings:
        body = body.replace(form.encode(), _MASK)
    if secret is not None and spellings and b"\\u" in body:
        body = _escaped(secret).sub(_MASK, body)
    return body


@lru_cache(maxsize=1024)
def _escaped(secret: SecretStr) -> re.Pattern[bytes]:
    """Return a pattern that finds a key any of whose characters may be written as JSON's escapes of their codes."""
    return re.compile(b"".join(map(_escapable, secret.get_secret_value())))


def _escapable(character: str) -> bytes:
    plain, code = re.escape(character.encode()), character.encode("utf-16-be").hex()
    escaped = "".join(rf"\\u(?i:{code[at : at + 4]})" for at in range(0, len(code), 4)).encode()
    short = rb"\\?" if character == "/" else rb"\\" if character in '"\\' else b""
    return b"(?:" + short + plain + b"|" + escaped + b")"


def retry_after(headers: Iterable[tuple[str, str]]) -> float | None:
    """Return how many seconds an answer asks to wait (RFC 9110 10.2.3; OpenAI's `retry-after-ms`)."""
    named = {name.lower(): value for name, value in headers}
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with suppress(ValueError):
            seconds = float(named.get(name, "")) / unit
            if 0 <= seconds < math.inf:
                return seconds
    with suppress(ValueError, TypeError, OverflowError):  # OverflowError: a time zone out of range
        date = parsedate_to_datetime(named.get("retry-after", ""))
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return None
