"""A request under way: what was asked, what has come of it so far, and what to say when nothing answers."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from gateway.execution.outcome import Attempt, Outcome
from gateway.execution.refusal import Refusal
from gateway.execution.relay import Watch
from gateway.execution.upstream import Call
from gateway.routing.failures import Cause, Failure
from gateway.routing.itinerary import Step
from gateway.routing.snapshot import Clocks, Deployment, Snapshot

CLIENT_LEFT: Final = 499


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asked for."""

    request_id: str
    model: str
    stream: bool
    call: Call


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No deployment answered: what to tell the client. `refusal` is an upstream's own 4xx, where there was one."""

    status: int
    tried: int
    local_fault: bool = False
    refusal: Refusal | None = None
    retry_after: int = 1


@dataclass(slots=True)
class Try:
    """An attempt under way: what its Attempt will say."""

    step: Step
    clocks: Clocks
    began: float
    status: int | None = None
    failure: str | None = None
    detail: str | None = None

    @property
    def deployment(self) -> Deployment:
        """Where it is made."""
        return self.step.deployment

    def attempt(self, now: float) -> Attempt:
        """Give the finished attempt; `now` is monotonic, in seconds."""
        return Attempt(
            model=self.deployment.model,
            deployment=self.deployment.name,
            group=self.deployment.group,
            milliseconds=(now - self.began) * 1000,
            status=self.status,
            failure=self.failure,
            detail=self.detail,
        )


@dataclass(slots=True)
class Record:
    """A request under way: what its Outcome will say. Filled by the executor, read once."""

    ask: Ask
    snapshot: Snapshot
    began: float
    clocks: Clocks
    model_id: str
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    refusals: dict[Cause, Refusal] = field(default_factory=dict)
    all_out: bool = False
    drawn: Deployment | None = None
    served: Deployment | None = None
    status: int = CLIENT_LEFT
    size: int = 0
    failure: str | None = None
    watch: Watch | None = None
    total: asyncio.Timeout | None = None

    @property
    def out_of_time(self) -> bool:
        """Whether the clock `total` has run out."""
        return self.total is not None and self.total.expired()

    def starts(self, step: Step) -> None:
        """Note the next step."""
        self.drawn = self.drawn or step.deployment
        self.all_out = self.all_out or (step.anyway and not self.attempts)

    def ends(self, status: int, failure: str) -> None:
        """Note why the client got no whole answer."""
        self.status, self.failure = status, failure

    def outcome(self, now: float) -> Outcome:
        """Give what the observers are told; `now` is monotonic, in seconds."""
        watch = self.watch
        content = watch.first_content if watch else None
        return Outcome(
            request_id=self.ask.request_id,
            operation=self.ask.call.operation,
            model=self.ask.model,
            served_model=self.served.model if self.served else None,
            generation=self.snapshot.generation,
            stream=self.ask.stream,
            status=self.status,
            attempts=tuple(self.attempts),
            fallback=self.served is not None and self.served is not self.drawn,
            duration=(now - self.began) * 1000,
            bytes_out=watch.size if watch else self.size,
            first_content=None if content is None else (content - self.began) * 1000,
            usage=watch.usage if watch else None,
            failure=self.failure,
            model_id=self.model_id,
        )
