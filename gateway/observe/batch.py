"""Finished requests, some hundred at a time, sorted once for all who count them.

Most requests are plain: one attempt was made, and it answered. Of those that the same deployment answered with the same
status, a counter needs one addition, not one each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.execution.outcome import Outcome

if TYPE_CHECKING:
    from gateway.observe.cost import Cost


@dataclass(slots=True)
class Alike:
    """Plain requests that one deployment answered with one status; `places` are theirs in the batch."""

    model: str
    deployment: str
    group: str
    status: int
    outcomes: list[Outcome] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Requests that ended within one second, in their order; `at` is when each did, in seconds since the epoch.

    Each is in one of `alike`, or in `odd` with its place. Mutable: `costs`, what each cost, once that is worked out.
    """

    at: Sequence[float]
    outcomes: Sequence[Outcome]
    alike: Sequence[Alike]
    odd: Sequence[tuple[int, Outcome]]
    costs: "Sequence[Cost | None]" = ()

    @classmethod
    def of(cls, at: Sequence[float], outcomes: Sequence[Outcome]) -> "Batch":
        """Sort requests."""
        kinds: dict[tuple[str, str, str, int], Alike] = {}
        odd: list[tuple[int, Outcome]] = []
        for place, outcome in enumerate(outcomes):
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
                odd.append((place, outcome))
                continue
            attempt = attempts[0]
            key = attempt.model, attempt.deployment, attempt.group, outcome.status
            kind = kinds.get(key)
            if kind is None:
                kind = kinds[key] = Alike(*key)
            kind.outcomes.append(outcome)
            kind.places.append(place)
        return cls(at, outcomes, tuple(kinds.values()), odd)
