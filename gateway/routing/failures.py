"""Why an attempt failed, and what to do about it.

A failure is a value: a cause, and what is known beside it. The table says what follows from each cause while nothing
of an answer has gone to the client. After that point there is no table: what was begun can only be finished or broken
off.

'We erred' and 'the endpoint erred' are different causes: `LOCAL_FAULT` blames nobody and is not tried elsewhere,
because the next endpoint would need the same file descriptor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final


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
    STATUS = "status"
    LOCAL_FAULT = "local_fault"
    BROKEN = "broken"


class Verdict(Enum):
    """What the executor does after a failure, while nothing has gone to the client."""

    RETRY_HERE = "retry here"
    NEXT = "next deployment"
    CLIENT = "tell the client"


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt's failure.

    `status` is the upstream's HTTP status where one came. `stale` tells that a pooled connection turned out to be
    closed before a byte of an answer arrived: nobody's fault, and safe to repeat on a fresh one. `detail` is for the
    log: no URL, no key.
    """

    cause: Cause
    detail: str = ""
    status: int | None = None
    stale: bool = False


VERDICTS: Final[Mapping[Cause, Verdict]] = MappingProxyType(
    {
        Cause.CONNECT_REFUSED: Verdict.NEXT,
        Cause.CONNECT_RESET: Verdict.NEXT,
        Cause.CONNECT_TIMEOUT: Verdict.NEXT,
        Cause.UNREACHABLE: Verdict.NEXT,
        Cause.DNS: Verdict.NEXT,
        Cause.TLS: Verdict.NEXT,
        Cause.DISCONNECTED: Verdict.NEXT,
        Cause.MALFORMED_ANSWER: Verdict.NEXT,
        Cause.REDIRECTED: Verdict.NEXT,
        Cause.STATUS: Verdict.NEXT,
        Cause.LOCAL_FAULT: Verdict.CLIENT,
        Cause.BROKEN: Verdict.NEXT,
    }
)

TRANSIENT_CLIENT_STATUSES: Final = frozenset({408, 425, 429})


def status_failure(status: int) -> Failure | None:
    """Give the failure that an upstream's status means, if it means one.

    408, 425, 429 and 5xx may succeed elsewhere (RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4, RFC 9110 15.6). A redirect
    is never followed: it would carry the key to where the configuration did not send it. Every other status is the
    client's answer.
    """
    if status >= 500 or status in TRANSIENT_CLIENT_STATUSES:  # noqa: PLR2004 - RFC 9110 15: the class's first number
        return Failure(Cause.STATUS, f"status {status}", status=status)
    if 300 <= status < 400:  # noqa: PLR2004 - as above
        return Failure(Cause.REDIRECTED, f"status {status}: check the base URL", status=status)
    return None


def verdict(failure: Failure) -> Verdict:
    """Say what follows from a failure before the commit point."""
    return Verdict.RETRY_HERE if failure.stale else VERDICTS[failure.cause]


def status_for_client(failures: tuple[Failure, ...]) -> int:
    """Give the status for a client when every attempt has failed.

    503 when the fault was ours or nothing could be tried, 504 when every attempt ran out of time, 502 otherwise
    (RFC 9110 15.6.3-15.6.5).
    """
    if not failures or failures[-1].cause is Cause.LOCAL_FAULT:
        return 503
    return 504 if all(failure.cause is Cause.CONNECT_TIMEOUT for failure in failures) else 502
