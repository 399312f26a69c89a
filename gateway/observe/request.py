"""The `request` record: there is one for each finished request, so its cost matters.

The event loop hands over batches of Outcomes as they are (`Requests`). The writer thread makes a line of each: a struct
that msgspec encodes in the order of its fields, leaving out those that have their default, which means no value.

Times are rounded to one decimal by way of whole numbers: `round(x, 1)` takes three times as long, to be exact within a
rounding error of the midpoint.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

from gateway.execution.outcome import Attempt, Outcome, Usage

_LONGEST_NAME: Final = 256
_UNTOLD: Final = Usage()


class Ended(Struct, frozen=True, gc=False):
    """A request that ended: when, in seconds since the epoch; the level of its record; and its Outcome."""

    at: float
    level: str
    outcome: Outcome


class Requests(Struct, frozen=True):
    """Requests that ended: when each did, in seconds since the epoch, and their Outcomes."""

    at: Sequence[float]
    outcomes: Sequence[Outcome]

    def __len__(self) -> int:
        return len(self.at)

    def first(self, number: int) -> "Requests":
        """Return the first ones."""
        return Requests(self.at[:number], self.outcomes[:number])

    def ended(self) -> Iterator[Ended]:
        """Yield the record of each: at warning if it is an error, else at info."""
        for at, outcome in zip(self.at, self.outcomes, strict=True):
            yield Ended(at, "info" if outcome.failure is None or not outcome.is_error else "warning", outcome)


class AttemptLine(Struct, gc=False, omit_defaults=True):
    """What is logged of an attempt; times are in milliseconds. `model` is set if it is not the one asked for."""

    model: str | None = None
    deployment: str | None = None
    group: str | None = None
    rescue: str | None = None
    ms: float | None = None
    status: int | None = None
    failure: str | None = None
    detail: str | None = None


class RequestLine(Struct, gc=False, omit_defaults=True):
    """What is logged of a request; times are in milliseconds."""

    time: str
    level: str
    event: str
    request_id: str
    operation: str
    client: str | None = None
    model: str | None = None
    served_model: str | None = None
    status: int | None = None
    failure: str | None = None
    generation: int | None = None
    stream: bool | None = None
    fallback: bool | None = None
    ms: float | None = None
    first_content_ms: float | None = None
    bytes: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    lost_prompt_tokens: int | None = None
    lost_completion_tokens: int | None = None
    malformed_events: int | None = None
    rescue: str | None = None
    deployment: str | None = None
    attempts: list[AttemptLine] | None = None


def request_line(ended: Ended, time: str) -> RequestLine:
    """Make the line of a request; `time` is when it ended, already formatted.

    Arguments are positional: by name they take msgspec eight times as long.
    """
    outcome = ended.outcome
    served, content, attempts, asked = outcome.served_model, outcome.first_content, outcome.attempts, outcome.model_id
    used, lost = outcome.usage or _UNTOLD, outcome.lost or _UNTOLD
    if len(attempts) == 1:  # most requests
        [only] = attempts
        lines = [_attempt(only, asked)]
        answered = None if served is None else only
        rescue = only.rescue if only.failure is None else None
    else:
        lines = [_attempt(attempt, asked) for attempt in attempts]
        answered, rescue = outcome.answered, outcome.rescue
    return RequestLine(
        time,
        ended.level,
        "request",
        outcome.request_id,
        outcome.operation,
        outcome.client_name,
        outcome.model[:_LONGEST_NAME] or None,
        None if served == outcome.model else served,
        outcome.status,
        outcome.failure,
        outcome.generation or None,
        outcome.stream,
        outcome.fallback,
        round(outcome.duration * 10) / 10,
        None if content is None else round(content * 10) / 10,
        outcome.bytes_out,
        used.prompt_tokens,
        used.completion_tokens,
        used.cached_tokens,
        used.reasoning_tokens,
        lost.prompt_tokens,
        lost.completion_tokens,
        outcome.malformed_events or None,
        rescue,
        None if answered is None else answered.deployment,
        lines,
    )


def _attempt(attempt: Attempt, asked: str | None) -> AttemptLine:
    return AttemptLine(
        None if attempt.model == asked else attempt.model,
        attempt.deployment,
        attempt.group,
        attempt.rescue,
        round(attempt.milliseconds * 10) / 10,
        attempt.status,
        attempt.failure,
        attempt.detail,
    )
