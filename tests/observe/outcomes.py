"""Outcomes as tests need them."""

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.live import Live


def attempt(deployment: str = "a", failure: str | None = None, model: str = "m") -> Attempt:
    return Attempt(model, deployment, "local", 5.0, 200 if failure is None else None, failure)


def ended(
    *attempts: Attempt,
    model: str = "m",
    status: int = 200,
    failure: str | None = None,
    first: float | None = None,
    tokens: int | None = None,
    stream: bool = True,
) -> Outcome:
    """Make an Outcome of these attempts; one that has none was answered by `a`."""
    made = attempts or (attempt(),)
    return Outcome(
        request_id="r-1",
        operation="chat/completions",
        model=model,
        served_model="m" if made[-1].failure is None else None,
        generation=1,
        stream=stream,
        status=status,
        attempts=made,
        fallback=len(made) > 1,
        duration=10.0,
        first_content=first,
        usage=None if tokens is None else Usage(3, tokens),
        failure=failure,
        model_id="m",
    )


def count(live: Live, outcome: Outcome) -> None:
    """Let a request end now."""
    live.take(Batch([live._clock()], [outcome]))
