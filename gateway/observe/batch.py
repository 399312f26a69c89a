"""Finished requests, a few hundred at a time, sorted once for all the observers that count them.

Most requests are plain: one attempt was made, and it answered. Those that asked in the same way, and that the same
deployment answered with the same status, are counted together: each field in which they differ is a column, so that a
counter needs one addition instead of one per request, and the ledger can make rows without looking at each Outcome.

With many deployments, few of several hundred requests are alike. Those are put into columns too, with the deployment
that answered as one more: each has to be counted where it belongs, but costs next to nothing besides.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

from msgspec.structs import astuple

from gateway.execution.outcome import Outcome, Usage

if TYPE_CHECKING:
    from gateway.observe.cost import Cost

_FEW: Final = 12
"""Fewer requests that are alike are not worth columns of their own."""
_LEAST: Final = 3
"""Fewer requests are not worth columns."""
_SHARED: Final = slice(5, None)
"""The part of the key in `_kinds` that the requests of a `Mixed` have in common."""
_UNTOLD: Final = Usage()

Column = Sequence[int | None]


class Columns:
    """Plain requests, with a column for each field in which they differ.

    `first` is one of them: they share its `operation`, `generation`, `status`, `stream` and client. `places` are their
    positions in the batch. The columns are in the same order: `ids`; `durations` and `contents` (the times to the first
    content), in milliseconds; token counts as in `Usage`.
    Mutable: `spent` and `avoided`, each request's in nanodollars, once they are worked out; None if unknown.
    """

    __slots__ = (
        "avoided",
        "cached",
        "completion",
        "contents",
        "durations",
        "first",
        "ids",
        "places",
        "prompt",
        "reasoning",
        "spent",
        "status",
        "stream",
    )

    ids: Sequence[str]
    durations: Sequence[float]
    contents: Sequence[float | None]
    prompt: Column
    completion: Column
    cached: Column
    reasoning: Column
    spent: Column
    avoided: Column

    def __init__(self, outcomes: Sequence[Outcome], places: Sequence[int]) -> None:
        """Make columns of at least one request."""
        self.first = first = outcomes[0]
        self.status, self.stream = first.status, first.stream
        self.places = places
        self.ids = [outcome.request_id for outcome in outcomes]
        self.durations = [outcome.duration for outcome in outcomes]
        self.contents = [outcome.first_content for outcome in outcomes]
        used = [_UNTOLD if (usage := outcome.usage) is None else usage for outcome in outcomes]
        self.prompt, self.completion, self.cached, self.reasoning = zip(*map(astuple, used), strict=True)
        self.spent = self.avoided = (None,) * len(places)

    @property
    def is_sane(self) -> bool:
        """Whether no count of tokens exceeds the one that it is a part of."""
        return _parts(self.cached, self.prompt) and _parts(self.reasoning, self.completion)

    @property
    def used(self) -> tuple[Sequence[int], Sequence[int], Column, Column] | None:
        """The columns of tokens, if prompt and completion are known for every request."""
        prompt, completion = _whole(self.prompt), _whole(self.completion)
        return None if prompt is None or completion is None else (prompt, completion, self.cached, self.reasoning)


class Alike(Columns):
    """Requests that asked in the same way, and that the same deployment answered."""

    __slots__ = ("deployment", "group", "model")

    def __init__(self, outcomes: Sequence[Outcome], places: Sequence[int]) -> None:
        """Make columns of at least one request; all are alike."""
        super().__init__(outcomes, places)
        attempt = self.first.attempts[0]
        self.model, self.deployment, self.group = attempt.model, attempt.deployment, attempt.group


class Mixed(Columns):
    """Requests of which few are alike: with many deployments, that is most requests.

    Three more columns: the `outcomes`, their `attempts`, and the `identities` of the deployments that answered.
    """

    __slots__ = ("attempts", "identities", "outcomes")

    def __init__(self, outcomes: Sequence[Outcome], places: Sequence[int]) -> None:
        """Make columns of at least one request."""
        super().__init__(outcomes, places)
        self.outcomes = outcomes
        self.attempts = [outcome.attempts[0] for outcome in outcomes]
        self.identities = [(attempt.model, attempt.deployment) for attempt in self.attempts]


class Batch:
    """Requests that ended within one second, in that order; `at` is when each ended, in seconds since the epoch.

    Each is in one of `alike`, in one of `mixed`, or in `odd` with its position. Mutable: `odd_costs`, what the odd ones
    cost, once that is worked out.
    """

    __slots__ = ("alike", "at", "mixed", "odd", "odd_costs", "outcomes")

    def __init__(self, at: Sequence[float], outcomes: Sequence[Outcome]) -> None:
        """Sort the requests."""
        self.at, self.outcomes = at, outcomes
        self.alike: list[Alike] = []
        self.mixed: list[Mixed] = []
        self.odd: list[tuple[int, Outcome]] = []
        rare: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for key, places in self._kinds().items():
            if len(places) < _FEW:
                rare[key[_SHARED]] += places
            elif (alike := Alike(self._those_at(places), places)).is_sane:
                self.alike.append(alike)
            else:
                self.odd += zip(places, self._those_at(places), strict=True)
        for places in rare.values():
            if len(places) >= _LEAST and (mixed := Mixed(self._those_at(places), places)).is_sane:
                self.mixed.append(mixed)
            else:
                self.odd += zip(places, self._those_at(places), strict=True)
        self.odd_costs: Sequence[Cost | None] = (None,) * len(self.odd)

    def _kinds(self) -> Mapping[tuple[object, ...], list[int]]:
        """Group the plain requests that are alike; put the others into `odd`."""
        kinds: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, outcome in enumerate(self.outcomes):
            attempts = outcome.attempts
            if (
                len(attempts) != 1
                or outcome.served_model is None
                or outcome.failure is not None
                or outcome.lost is not None
                or outcome.fallback
                or outcome.malformed_events
                or attempts[0].failure is not None
                or attempts[0].rescue is not None
            ):
                self.odd.append((place, outcome))
                continue
            attempt = attempts[0]
            kinds[
                attempt.deployment,
                attempt.model,
                outcome.model,
                outcome.model_id,
                attempt.group,
                outcome.status,
                outcome.stream,
                outcome.operation,
                outcome.generation,
                outcome.client_name,
            ].append(place)
        return kinds

    def _those_at(self, places: Sequence[int]) -> list[Outcome]:
        outcomes = self.outcomes
        return [outcomes[place] for place in places]


def _whole(tokens: Column) -> Sequence[int] | None:
    return None if None in tokens else cast("Sequence[int]", tokens)


def _parts(some: Column, whole: Column) -> bool:
    if not any(some):
        return True
    return all((part or 0) <= (number or 0) for part, number in zip(some, whole, strict=True))
