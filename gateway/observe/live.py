"""The last ten minutes second by second, and the last fifty requests: counted from Outcomes, for whoever watches.

Counting happens on the event loop and does as little as possible: numbers go into the current second, the Outcome
itself into a queue. Seconds without a request take no memory. Rates and percentiles are worked out by the readers.

Times to the first content are kept in buckets of equal ratio, sixteen per doubling, so that any seconds can be merged
and a percentile is at most 2.2 % off.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, islice
from math import ceil, log2
from typing import Final, Literal

from msgspec.structs import replace

from gateway.execution.outcome import Outcome
from gateway.observe.batch import Batch, Columns
from gateway.observe.traffic import NOBODYS
from gateway.routing.snapshot import Identity

KEPT: Final = 600
"""Seconds that are kept, of those that had a request."""
BACK: Final = 10
"""Seconds by which the clock may go back before the seconds that are kept are discarded."""
REQUESTS: Final = 50
_STEPS: Final = 16
_LONGEST_NAME: Final = 200
Counts = Counter[Identity]


class ByDeployment:
    """Attempts by deployment: `answers`, `failures`, and `cut` (ended early through no fault of the deployment).

    Of the answers, `stood_in` went to requests that were drawn for another deployment, `late` to requests drawn under
    an earlier configuration.
    """

    __slots__ = ("answers", "cut", "failures", "late", "stood_in")

    def __init__(self) -> None:
        """Start at zero."""
        self.forget()

    def forget(self) -> None:
        """Start at zero again."""
        self.answers: Counts = Counter()
        self.failures: Counts = Counter()
        self.cut: Counts = Counter()
        self.stood_in: Counts = Counter()
        self.late: Counts = Counter()

    def add(self, others: "ByDeployment", sign: Literal[1, -1] = 1) -> None:
        """Add other counts, or subtract them again; a count that becomes zero takes no memory."""
        for name in ByDeployment.__slots__:
            counts: Counts = getattr(self, name)
            more: Counts = getattr(others, name)
            if not counts:
                counts.update(more)  # as a dict does, which is faster
                continue
            for identity, number in more.items():
                counts[identity] += sign * number
                if not counts[identity]:
                    del counts[identity]

    @property
    def met(self) -> set[Identity]:
        """The deployments for which anything is counted."""
        return {*self.answers, *self.failures, *self.cut}


class Second(ByDeployment):
    """What ended within one second.

    `at` is in whole seconds since the epoch. `errors` counts requests that got no whole answer through no fault of the
    client (`Outcome.is_error`), `tokens` the completion tokens of the answers that ended. `first` counts times to the
    first content of streams by bucket.
    """

    __slots__ = ("at", "errors", "fallbacks", "first", "requests", "tokens")

    def __init__(self, at: int) -> None:
        """Start at zero."""
        super().__init__()
        self.at = at
        self.requests = self.errors = self.fallbacks = self.tokens = 0
        self.first: dict[int, int] = {}


class Live:
    """Counts what ended.

    Mutable: `number`, how many requests have ended; `seconds`, oldest first, the last one still counting; `requests`,
    each with its number, its end in seconds since the epoch, and its Outcome; `generation`, the configuration whose
    answers are counted by deployment, 0 before the first; `since`, when that counting began (for the first
    configuration, when the process did: there was nothing before); `began`, the second when the process did, and
    `first`, the first second that is kept; `steps`, how often the clock was set back, each time discarding `seconds`.
    """

    def __init__(self, clock: Callable[[], float] = time.time, settle: Callable[[], None] = lambda: None) -> None:
        """`clock` returns seconds since the epoch. `settle` delivers the requests that wait: call it before reading."""
        self._clock = clock
        self.settle = settle
        self.number = 0
        self._second = Second(0)
        self._latest = self.since = clock()
        self.began = self.first = int(self.since)
        self.steps = 0
        self.seconds: deque[Second] = deque(maxlen=KEPT)
        self.requests: deque[tuple[int, float, Outcome]] = deque(maxlen=REQUESTS)
        self.generation = 0

    def take(self, batch: Batch) -> None:
        """Count requests that ended within one second."""
        second = self._second_of(batch.at[0])
        for alike in batch.alike:
            self._count_plain(second, alike)
            self._count_answers(second, (alike.model, alike.deployment), len(alike.places), alike.first)
        for mixed in batch.mixed:
            self._count_plain(second, mixed)
            second.answers.update(mixed.identities)
            if mixed.first.generation < self.generation:
                second.late.update(mixed.identities)
        for _, outcome in batch.odd:
            self._count(second, outcome)
        left_out = max(len(batch.at) - REQUESTS, 0)
        self.number += left_out
        for now, outcome in islice(zip(batch.at, batch.outcomes, strict=True), left_out, None):
            self._keep(now, outcome)

    def look(self, now: float) -> None:
        """Note the time, in seconds since the epoch; call this before reading the seconds that are over."""
        if now < self._latest - BACK:
            self._latest = self.since = now
            self.began, self.first = min(self.began, int(now)), int(now)
            self.steps += 1
            self._second = Second(0)
            self.seconds.clear()
        self._latest = max(self._latest, now)

    def _second_of(self, now: float) -> Second:
        if not 0 <= now - self._second.at < 1:
            self.look(now)
            if now >= self._second.at + 1:
                self._second = Second(int(now))
                self.seconds.append(self._second)
        return self._second

    def _count(self, second: Second, outcome: Outcome) -> None:
        second.requests += 1
        if outcome.fallback:
            second.fallbacks += 1
        if outcome.is_error:
            second.errors += 1
        if outcome.usage is not None:
            second.tokens += outcome.usage.completion_tokens or 0
        if outcome.stream:
            _count_first(second.first, (outcome.first_content,))
        for attempt in outcome.attempts:
            identity = (attempt.model, attempt.deployment)
            if attempt.failure is None:
                self._count_answers(second, identity, 1, outcome)
            else:
                _add(second.cut if attempt.failure in NOBODYS else second.failures, identity, 1)

    def _count_plain(self, second: Second, plain: Columns) -> None:
        second.requests += len(plain.places)
        second.tokens += sum(filter(None, plain.completion))
        if plain.stream:
            _count_first(second.first, plain.contents)

    def _count_answers(self, second: Second, identity: Identity, number: int, outcome: Outcome) -> None:
        """Count a deployment's answers to requests like this one."""
        _add(second.answers, identity, number)
        if outcome.fallback:
            _add(second.stood_in, identity, number)
        if outcome.generation < self.generation:
            _add(second.late, identity, number)

    def _keep(self, now: float, outcome: Outcome) -> None:
        if len(outcome.model) > _LONGEST_NAME:  # the client chose it, at any length
            outcome = replace(outcome, model=outcome.model[:_LONGEST_NAME] + "...")
        self.number += 1
        self.requests.append((self.number, now, outcome))

    def rebase(self, generation: int) -> None:
        """Start counting by deployment anew: another configuration is in force."""
        if self.generation:
            self.since = self._clock()
        self.generation = generation
        for second in self.seconds:
            second.forget()


def _add(counts: Counts, identity: Identity, number: int) -> None:
    counts[identity] = counts.get(identity, 0) + number


def _count_first(counts: dict[int, int], times: Iterable[float | None]) -> None:
    buckets = [int(log2(time) * _STEPS) if time > 1 else 0 for time in times if time is not None]
    for bucket, number in Counter(buckets).items():
        counts[bucket] = counts.get(bucket, 0) + number


def percentiles(counts: Iterable[Mapping[int, int]], *parts: float) -> list[float] | None:
    """Return percentiles, in milliseconds, of what several seconds counted in `first`; None if they counted nothing.

    `parts` are from 0 to 1.
    """
    merged: dict[int, int] = {}
    for each in counts:
        for bucket, number in each.items():
            merged[bucket] = merged.get(bucket, 0) + number
    total = sum(merged.values())
    return [_value(merged, max(1, ceil(part * total))) for part in parts] if total else None


def _value(counts: Mapping[int, int], rank: int) -> float:
    """Return the middle of the bucket that holds the value of this rank, counted from 1."""
    buckets = sorted(counts)
    passed = accumulate(counts[bucket] for bucket in buckets)
    bucket = next(bucket for bucket, number in zip(buckets, passed, strict=True) if number >= rank)
    return round(2 ** ((bucket + 0.5) / _STEPS), 1)
