"""Why an attempt failed, and what to do about it.

A failure is a value: a cause, and what else is known. `TABLE` says what follows from each cause before the commit
point, and for the attempts to rescue a stream that broke after it.

'We erred' and 'the endpoint erred' are different causes: `LOCAL_FAULT` blames nobody and is not tried elsewhere,
because the next endpoint would need the same file descriptor.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from gateway.routing.wordings import (
    code_of,
    says_gone,
    says_incapable,
    says_key,
    says_loading,
    says_missing,
    says_policy,
    says_too_long,
    says_unexpected,
    says_unserved,
)


class Cause(Enum):
    """What went wrong with an attempt."""

    CONNECT_REFUSED = "connect_refused"
    CONNECT_RESET = "connect_reset"
    CONNECT_TIMEOUT = "connect_timeout"
    UNREACHABLE = "unreachable"
    DNS = "dns"
    TLS = "tls"
    DISCONNECTED = "disconnected"
    MALFORMED_ANSWER = "malformed_answer"
    REDIRECTED = "redirected"
    RATE_LIMITED = "rate_limited"
    SEND_AGAIN = "send_again"
    SERVER_ERROR = "server_error"
    GATEWAY_TIMEOUT = "gateway_timeout"
    LOADING = "loading"
    KEY_REFUSED = "key_refused"
    MODEL_MISSING = "model_missing"
    NOT_SERVED = "not_served"
    CONTEXT_LENGTH = "context_length"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a clock's name
    TOTAL_TIMEOUT = "total_timeout"
    STALLED = "stalled"
    ERROR_ANSWER = "error_answer"
    EMPTY_ANSWER = "empty_answer"
    CUT_ANSWER = "cut_answer"
    WRONG_TYPE = "wrong_content_type"
    LOCAL_FAULT = "local_fault"
    RESCUE_REFUSED = "rescue_refused"
    REPLAY_DIFFERS = "replay_differs"


class Verdict(Enum):
    """What follows from a failure before the commit point."""

    RETRY_HERE = "once more on a fresh connection"
    NEXT = "next deployment"
    LARGER = "next deployment with a larger context"
    CLIENT = "tell the client"


class Failure(Struct, frozen=True):
    """One attempt's failure.

    `status` is the upstream's HTTP status if one came, or the 4xx that an error object sent with a 2xx stands for.
    `retry_after` is the seconds it asked to wait. `stale` means that a pooled connection turned out to be closed before
    a byte of an answer arrived: nobody's fault, and safe to repeat on a fresh one. `detail` is for the log and contains
    no URL and no key. `said` is the upstream's own message, our key masked: for the client alone, as it may quote the
    prompt.
    """

    cause: Cause
    detail: str = ""
    status: int | None = None
    retry_after: float | None = None
    stale: bool = False
    said: str = ""

    def __repr__(self) -> str:
        return f"<{self.cause.value}{f': {self.detail}' if self.detail else ''}>"


class Rule(Struct, frozen=True):
    """What follows from a cause.

    `passes`: it may be over in a moment, so its deployment gets one more try before its tier is left. `blames`: it
    counts against the deployment's breaker. `out`: its breaker opens at once, for that many seconds.
    """

    verdict: Verdict = Verdict.NEXT
    passes: bool = False
    blames: bool = True
    out: float | None = None


KEY_OUT: Final = 600.0
MODEL_OUT: Final = 60.0

TABLE: Final[Mapping[Cause, Rule]] = MappingProxyType(
    {
        Cause.CONNECT_REFUSED: Rule(),
        Cause.CONNECT_RESET: Rule(passes=True),
        Cause.CONNECT_TIMEOUT: Rule(),
        Cause.UNREACHABLE: Rule(),
        Cause.DNS: Rule(),
        Cause.TLS: Rule(),
        Cause.DISCONNECTED: Rule(passes=True),
        Cause.MALFORMED_ANSWER: Rule(),
        Cause.REDIRECTED: Rule(),
        Cause.RATE_LIMITED: Rule(passes=True),
        Cause.SEND_AGAIN: Rule(passes=True),
        Cause.SERVER_ERROR: Rule(passes=True),
        Cause.GATEWAY_TIMEOUT: Rule(),
        Cause.LOADING: Rule(blames=False),
        Cause.KEY_REFUSED: Rule(out=KEY_OUT),
        Cause.MODEL_MISSING: Rule(out=MODEL_OUT),
        Cause.NOT_SERVED: Rule(blames=False),
        Cause.CONTEXT_LENGTH: Rule(Verdict.LARGER, blames=False),
        Cause.FIRST_TOKEN_TIMEOUT: Rule(),
        Cause.TOTAL_TIMEOUT: Rule(Verdict.CLIENT, blames=False),
        Cause.STALLED: Rule(),
        Cause.ERROR_ANSWER: Rule(),
        Cause.EMPTY_ANSWER: Rule(),
        Cause.CUT_ANSWER: Rule(),
        Cause.WRONG_TYPE: Rule(),
        Cause.LOCAL_FAULT: Rule(Verdict.CLIENT, blames=False),
        Cause.RESCUE_REFUSED: Rule(blames=False),
        Cause.REPLAY_DIFFERS: Rule(Verdict.CLIENT, blames=False),
    }
)

_BY_STATUS: Final[Mapping[int, Cause]] = MappingProxyType(
    {401: Cause.KEY_REFUSED, 408: Cause.SEND_AGAIN, 425: Cause.SEND_AGAIN, 429: Cause.RATE_LIMITED}
)
_CONTEXT_STATUSES: Final = frozenset({400, 413, 422, 500})
_CLIENTS: Final = range(400, 500)
_SILENT: Final = frozenset(
    {Cause.CONNECT_TIMEOUT, Cause.GATEWAY_TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, Cause.TOTAL_TIMEOUT, Cause.STALLED}
)
_OURS: Final = frozenset({Cause.LOCAL_FAULT, Cause.LOADING})


def status_failure(status: int, body: bytes = b"", retry_after: float | None = None, model: str = "") -> Failure | None:
    """Return the failure that an upstream's status means, or None if the answer is to go to the client.

    - 3xx: never followed, because that would carry the key to a host that the configuration does not name.
    - 400: the client's error, unless it is about the key (treated like 401), about a model that does not exist (like
      404) or was unloaded (like 500), or about a prompt that does not fit (413, 422 and 500 may say that too).
    - 401: the gateway's own key was refused. 402 and 403 mean the same, unless they are about the content of the
      request, or about what the deployment can do (like 501).
    - 404: the deployment's model if the body says so, else its address or what it can do. So are 405, 407, 421 and 426,
      and any other 4xx but 401 and 402 with an HTML page, which comes from a proxy in front of the box.
    - 408, 425, 429: may succeed in a moment (RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4); a 429 that says that the
      credit is spent, and not when to ask again, is treated like 401.
    - 501: the deployment cannot do this. The same goes for a 500 that is about the request.
    - other 5xx: may succeed elsewhere (RFC 9110 15.6).

    `body` is the beginning of the answer's body, `retry_after` the seconds it asks to wait, `model` the name that the
    upstream was asked for.
    """
    told = body.lower()
    cause = _cause_of(status, told, model)
    if cause is None:
        return None
    if cause is Cause.KEY_REFUSED and status in _BY_STATUS and retry_after is not None:
        cause = _BY_STATUS[status]  # a credit that is back in a moment is a rate
    advice = _ADVICE.get(cause)
    return Failure(cause, f"status {status}: {advice}" if advice else f"status {status}", status, retry_after)


_ADVICE: Final[Mapping[Cause, str]] = MappingProxyType(
    {
        Cause.REDIRECTED: "check the base URL",
        Cause.KEY_REFUSED: "check the deployment's key",
        Cause.MODEL_MISSING: "check provider_model_id",
        Cause.NOT_SERVED: "check the base URL, and what the endpoint can do",
        Cause.CONTEXT_LENGTH: "the prompt does not fit",
        Cause.LOADING: "it is loading its model",
    }
)


def _cause_of(status: int, told: bytes, model: str = "") -> Cause | None:
    if status in _BY_STATUS:
        return Cause.KEY_REFUSED if says_key(status, told) else _BY_STATUS[status]
    incapable = says_incapable(status, told)
    match status:
        case _ if says_missing(status, told, model) and not incapable:
            return Cause.MODEL_MISSING
        case _ if says_unserved(status, told):
            return Cause.NOT_SERVED
        case 503 if says_loading(told):
            return Cause.LOADING
        case _ if status in _CONTEXT_STATUSES and says_too_long(told):
            return Cause.CONTEXT_LENGTH
        case _ if says_key(status, told) and not says_policy(told):
            return Cause.NOT_SERVED if incapable else Cause.KEY_REFUSED
        case 504 | 524:  # from a proxy that timed out; 524 is Cloudflare's
            return Cause.GATEWAY_TIMEOUT
        case _ if status >= 500 or (status == 400 and says_gone(told)):  # noqa: PLR2004 - RFC 9110 15.5.1, 15.6
            return Cause.SERVER_ERROR
        case _ if 300 <= status < 400:  # noqa: PLR2004 - as above
            return Cause.REDIRECTED
    return None


def error_failure(error: bytes) -> Failure:
    """Return the failure that an error object sent with a 2xx means, as the whole answer or as its first event.

    SGLang and vLLM send the head of a stream before they check the request, and report what is wrong with it in an
    event with the code 400. That is nobody's fault. The request is tried elsewhere all the same: vLLM reported every
    exception in this way, even that of an engine that had died. LM Studio answers 200 for a path that it does not know.
    """
    told, code = error.lower(), code_of(error)
    if says_unexpected(told):
        return Failure(Cause.NOT_SERVED, f"an error in place of an answer: {_ADVICE[Cause.NOT_SERVED]}", 404)
    if says_too_long(told):
        return Failure(Cause.CONTEXT_LENGTH, _ADVICE[Cause.CONTEXT_LENGTH], code if code in _CLIENTS else 400)
    if code in _CLIENTS and _cause_of(code, told) is None:
        return Failure(Cause.NOT_SERVED, f"an error object with the code {code} in place of an answer", code)
    return Failure(Cause.ERROR_ANSWER, "an error object in place of an answer")


def verdict(failure: Failure) -> Verdict:
    """Return what follows from a failure before the commit point."""
    return Verdict.RETRY_HERE if failure.stale else TABLE[failure.cause].verdict


_TELLING: Final = (Cause.CONTEXT_LENGTH, Cause.LOCAL_FAULT, Cause.TOTAL_TIMEOUT, Cause.RATE_LIMITED)


def most_telling(failures: Sequence[Failure]) -> Failure | None:
    """Choose the failure to report to the client: its own 4xx, what ended the request, a rate limit, or the first."""
    for cause in _TELLING:
        for failure in failures:
            if failure.cause is cause:
                return failure
    return failures[0] if failures else None


def status_for_client(failure: Failure | None) -> int:
    """Return the status for a client whose request failed like this.

    400 for a prompt that does not fit; 429 for a rate limit (RFC 6585 4); 503 when the fault was ours, the box is
    loading, or nothing could be tried; 504 when time ran out; 502 otherwise (RFC 9110 15.6.3-15.6.5).
    """
    if failure is None or failure.cause in _OURS:
        return 503
    if failure.cause is Cause.RATE_LIMITED:
        return 429
    if failure.cause is Cause.CONTEXT_LENGTH:
        return 400
    return 504 if failure.cause in _SILENT else 502
