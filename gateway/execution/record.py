"""A request under way: what was asked, what has happened so far, and what to say when no deployment answers."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.execution.completions import CompletionStream
from gateway.execution.deadline import Deadline
from gateway.execution.hold import Whole
from gateway.execution.outcome import Attempt, Outcome
from gateway.execution.refusal import Refusal
from gateway.execution.relay import Passing, Stream
from gateway.execution.rescue import BrokenStream
from gateway.execution.responses import ResponseStream
from gateway.execution.takeover import Rescue
from gateway.execution.trace import Trace
from gateway.execution.upstream import Call
from gateway.routing.failures import Cause, Failure
from gateway.routing.itinerary import Step
from gateway.routing.snapshot import Clocks, Deployment, Route, Snapshot

CLIENT_LEFT: Final = 499
_NONE: Final[Mapping[Cause, Refusal]] = MappingProxyType({})


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a client asked for.

    `adds_usage`: the upstream is asked for the usage of the stream, which the client did not ask for. `trace`: set if
    requests are traced. `choices`: how many a stream will have, 0 if that is not known. `client_name`: whose key was
    sent, if keys are needed.
    """

    request_id: str
    model: str
    stream: bool
    call: Call
    adds_usage: bool = False
    trace: Trace | None = None
    choices: int = 1
    client_name: str | None = None


class Unanswered(msgspec.Struct, frozen=True):
    """No deployment answered: what to report to the client.

    `refusal` is an upstream's own 4xx, if there was one; `said` is the message, and nothing else, that an upstream gave
    for its failure.
    """

    status: int
    tried: int
    local_fault: bool = False
    refusal: Refusal | None = None
    retry_after: int = 1
    said: str = ""

    def __repr__(self) -> str:
        return f"<{self.status} after {self.tried}>"


class Try(msgspec.Struct, gc=False):
    """An attempt under way: what its Attempt will say.

    `rescue`: how it is to take over a broken stream, if it is. `offset` is in seconds since the request's arrival.
    `content` is when its first content came.
    """

    deployment: Deployment
    clocks: Clocks
    began: float
    rescue: Rescue | None = None
    offset: float = 0.0
    span_id: int | None = None
    status: int | None = None
    failure: str | None = None
    detail: str | None = None
    content: float | None = None

    def attempt(self, now: float) -> Attempt:
        """Return the finished attempt; `now` is monotonic, in seconds."""
        deployment = self.deployment
        return Attempt(  # by position: by name it takes three times as long
            deployment.model,
            deployment.name,
            deployment.group,
            (now - self.began) * 1000,
            self.status,
            self.failure,
            self.detail,
            self.rescue,
            self.offset * 1000,
            self.span_id,
        )


class Record(msgspec.Struct):
    """A request under way: what its Outcome will say. Filled by the executor, read once.

    `deadline` limits its attempts, one after the other; `clock` is monotonic, in seconds.
    """

    ask: Ask
    snapshot: Snapshot
    route: Route
    began: float
    deadline: Deadline
    clock: Callable[[], float]
    attempts: tuple[Attempt, ...] = ()
    failures: tuple[Failure, ...] = ()
    refusals: Mapping[Cause, Refusal] = _NONE
    all_out: bool = False
    drawn: Deployment | None = None
    served: Deployment | None = None
    status: int = CLIENT_LEFT
    size: int = 0
    failure: str | None = None
    passing: Passing | Whole | None = None
    broken: BrokenStream | None = None
    total: asyncio.Timeout | None = None

    @property
    def out_of_time(self) -> bool:
        """Whether the clock `total` has run out."""
        return self.total is not None and self.total.expired()

    @property
    def is_said(self) -> bool:
        """Whether a stream's last event has been passed on: a client that leaves then, and was not full, has it all."""
        return isinstance(self.passing, Stream) and self.passing.done and not self.out_of_time

    @property
    def came_in_time(self) -> bool:
        """Whether a stream was complete when the clock `total` ran out, while more might have followed."""
        return self.out_of_time and isinstance(self.passing, Stream) and self.passing.complete

    @property
    def may_try(self) -> bool:
        """Whether one more attempt is allowed: a rescue may make two on one deployment."""
        return len(self.attempts) < self.snapshot.settings.bounds.attempts

    def starts(self, step: Step) -> None:
        """Note the next step."""
        if self.drawn is None:
            self.drawn = step.deployment
        if step.anyway and not self.attempts:
            self.all_out = True

    def refused(self, cause: Cause, refusal: Refusal) -> None:
        """Keep the first refusal of each cause: it may be sent to the client."""
        self.refusals = {cause: refusal, **self.refusals}

    def passes(self) -> Stream:
        """Begin an event stream, of which nobody has seen anything yet."""
        ask = self.ask
        stream: Stream
        if ask.call.operation == "responses":
            stream = ResponseStream(self.clock)
        else:
            keeps = self.route.rescue != "off" and ask.call.operation != "embeddings"
            stream = CompletionStream(self.clock, hides_usage=ask.adds_usage, keeps=keeps, choices=ask.choices)
        self.passing = stream
        return stream

    def breaks(self, failure: Failure) -> bool:
        """Note that an answer already begun broke off; return whether it can be carried on."""
        if self.broken is None and isinstance(self.passing, CompletionStream):
            self.broken = BrokenStream(self.route.rescue, self.ask.call, self.passing, failure)
        return self.broken is not None and self.broken.can_be_rescued

    def ends(self, status: int, failure: str) -> None:
        """Note why the client got no whole answer."""
        self.status, self.failure = status, failure

    def outcome(self, now: float) -> Outcome:
        """Return what the observers are given; `now` is monotonic, in seconds."""
        passing, served = self.passing, self.served
        if passing is None:
            passing = Whole(b"", self.size)
        content = passing.first_content
        return Outcome(  # by position: by name it takes three times as long
            self.ask.request_id,
            self.ask.call.operation,
            self.ask.model,
            None if served is None else served.model,
            self.snapshot.generation,
            self.ask.stream,
            self.status,
            self.attempts,
            served is not None and served is not self.drawn,
            (now - self.began) * 1000,
            passing.size,
            None if content is None else (content - self.began) * 1000,
            passing.usage,
            self.failure,
            self.route.model,
            passing.lost,
            passing.malformed,
            self.ask.trace,
            self.ask.client_name,
        )
