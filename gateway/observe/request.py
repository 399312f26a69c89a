"""The `request` record: one for each finished request, so that what it costs counts.

The event loop hands over the Outcome as it is. The writer's thread makes a line of it: a struct that msgspec encodes in
the order of its fields, and that leaves out those without a value.

Times are rounded to a digit by way of whole numbers: `round(x, 1)` takes three times as long, to be right about what
lies within a rounding error of the middle.
"""

from typing import Final

from msgspec import UNSET, Struct, UnsetType

from gateway.execution.outcome import Attempt, Outcome, Usage

_LONGEST_NAME: Final = 256


class Ended(Struct, frozen=True, gc=False):
    """A request that ended: when, in seconds since the epoch; the level of its record; and what came of it."""

    at: float
    level: str
    outcome: Outcome


class AttemptLine(Struct, gc=False):
    """What is told of an attempt; times are in milliseconds. `model` is set where it is another than was asked for."""

    model: str | UnsetType
    deployment: str
    group: str
    rescue: str | UnsetType
    ms: float
    status: int | UnsetType
    failure: str | UnsetType
    detail: str | UnsetType


class RequestLine(Struct, gc=False):
    """What is told of a request; times are in milliseconds."""

    time: str
    level: str
    event: str
    request_id: str
    operation: str
    model: str
    served_model: str | UnsetType
    status: int
    failure: str | UnsetType
    generation: int
    stream: bool
    fallback: bool
    ms: float
    first_content_ms: float | UnsetType
    bytes: int
    prompt_tokens: int | UnsetType
    completion_tokens: int | UnsetType
    cached_tokens: int | UnsetType
    reasoning_tokens: int | UnsetType
    lost_prompt_tokens: int | UnsetType
    lost_completion_tokens: int | UnsetType
    malformed_events: int | UnsetType
    rescue: str | UnsetType
    deployment: str | UnsetType
    attempts: list[AttemptLine]


def request_line(ended: Ended, time: str) -> RequestLine:
    """Make the line of a request; `time` is when it ended, as it is written.

    Arguments are given in their order: by their names they take msgspec eight times as long.
    """
    outcome = ended.outcome
    served, failure, content, rescue = outcome.served_model, outcome.failure, outcome.first_content, outcome.rescue
    answered = outcome.answered
    prompt, completion, cached, reasoning = _NO_TOKENS if outcome.usage is None else _tokens(outcome.usage)
    lost_prompt, lost_completion, _, _ = _NO_TOKENS if outcome.lost is None else _tokens(outcome.lost)
    return RequestLine(
        time,
        ended.level,
        "request",
        outcome.request_id,
        outcome.operation,
        outcome.model[:_LONGEST_NAME],
        UNSET if served is None or served == outcome.model else served,
        outcome.status,
        UNSET if failure is None else failure,
        outcome.generation,
        outcome.stream,
        outcome.fallback,
        round(outcome.duration * 10) / 10,
        UNSET if content is None else round(content * 10) / 10,
        outcome.bytes_out,
        prompt,
        completion,
        cached,
        reasoning,
        lost_prompt,
        lost_completion,
        outcome.malformed_events or UNSET,
        UNSET if rescue is None else rescue,
        UNSET if answered is None else answered.deployment,
        [_attempt(attempt, outcome.model_id) for attempt in outcome.attempts],
    )


_Tokens = tuple[int | UnsetType, int | UnsetType, int | UnsetType, int | UnsetType]
_NO_TOKENS: Final[_Tokens] = (UNSET, UNSET, UNSET, UNSET)


def _tokens(usage: Usage) -> _Tokens:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
    return (
        UNSET if prompt is None else prompt,
        UNSET if completion is None else completion,
        UNSET if cached is None else cached,
        UNSET if reasoning is None else reasoning,
    )


def _attempt(attempt: Attempt, asked: str | None) -> AttemptLine:
    rescue, status, failure, detail = attempt.rescue, attempt.status, attempt.failure, attempt.detail
    return AttemptLine(
        UNSET if attempt.model == asked else attempt.model,
        attempt.deployment,
        attempt.group,
        UNSET if rescue is None else rescue,
        round(attempt.milliseconds * 10) / 10,
        UNSET if status is None else status,
        UNSET if failure is None else failure,
        UNSET if detail is None else detail,
    )
