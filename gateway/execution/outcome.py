"""What a finished request leaves behind: one frozen record, handed to every observer.

msgspec's structs are created in a quarter of the time of frozen dataclasses. These cannot be part of a reference cycle,
so the garbage collector need not track them. `msgspec.structs.replace` copies one with changes.
"""

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from gateway.execution.trace import Trace

MOST_TOKENS: Final = 10**10
"""More than any request has: a larger count is an upstream's error, and must not make a sum overflow."""


class Attempt(Struct, frozen=True, gc=False):
    """One try on one deployment.

    `deployment` is its name, unique within the model; `model` is the model it belongs to. `failure` is the failure's
    name (`routing.failures`), absent if the attempt answered the client. `status` is the upstream's HTTP status, absent
    if none arrived. `milliseconds` run from the attempt's start to its end, the relayed body included. `rescue` is set
    if the attempt took over a stream that had broken: `continue` or `replay`. `offset` is the time from the request's
    arrival to the attempt's start, in milliseconds; `span_id` is that of the attempt's span.
    """

    model: str
    deployment: str
    group: str
    milliseconds: float
    status: int | None = None
    failure: str | None = None
    detail: str | None = None
    rescue: str | None = None
    offset: float = 0.0
    span_id: int | None = None


class Usage(Struct, frozen=True, gc=False):
    """Tokens as the upstream counted them; impossible counts, below 0 or above `MOST_TOKENS`, are treated as absent.

    `cached_tokens` are part of the prompt's, `reasoning_tokens` of the completion's.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Outcome(Struct, frozen=True, gc=False):
    """One finished request.

    `model` is the name that the client asked for, `model_id` the model's id if there is such a model, `served_model`
    the id of the model that answered. `status` is what the client got; 499 stands for a client that left (nginx's
    convention). `failure` is why the client got no whole answer. `fallback` is whether the deployment that answered is
    not the one drawn first. Times are in milliseconds: `first_content` from the request's arrival to the answer's first
    content. `usage` is what the client's answer took; `lost` is what broken streams took on top of it.
    `malformed_events` counts the events that were left out of a stream. `trace` is the request's place in a trace, if
    requests are traced. `client_name` is the client's, if clients need a key.
    """

    request_id: str
    operation: str
    model: str
    served_model: str | None
    generation: int
    stream: bool
    status: int
    attempts: tuple[Attempt, ...]
    fallback: bool
    duration: float
    bytes_out: int = 0
    first_content: float | None = None
    usage: Usage | None = None
    failure: str | None = None
    model_id: str | None = None
    lost: Usage | None = None
    malformed_events: int = 0
    trace: Trace | None = None
    client_name: str | None = None

    @property
    def is_error(self) -> bool:
        """Whether there was no whole answer, though the request was not at fault and the client stayed.

        That is a 5xx, a 429 (RFC 6585 4), or an answer that broke off.
        """
        status = self.status
        return self.failure is not None and (status < _BAD or status == _TOO_MANY or status > _LEFT)

    @property
    def answered(self) -> Attempt | None:
        """The attempt whose answer the client got to its end; if the answer broke off, the attempt that began it."""
        if self.served_model is None:
            return None
        last = self.attempts[-1]
        if last.failure is None:
            return last
        whole = (attempt for attempt in reversed(self.attempts) if attempt.failure is None)
        begun = (attempt for attempt in reversed(self.attempts) if attempt.rescue is None)
        return next(whole, None) or next(begun, None) or last

    @property
    def rescue(self) -> str | None:
        """How a broken stream was carried on to its end; None if it broke off all the same."""
        last = self.attempts[-1] if self.attempts else None
        return last.rescue if last is not None and last.failure is None else None


_BAD: Final = 400
_TOO_MANY: Final = 429
_LEFT: Final = 499
"""nginx's status for a client that left."""
Observer = Callable[[Outcome], None]
