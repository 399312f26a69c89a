"""How much each deployment has served: counted from Outcomes, by the deployment's identity."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from gateway.execution.outcome import Outcome
from gateway.observe.batch import Batch
from gateway.routing.snapshot import Identity

NOBODYS: Final = frozenset({"client_left", "cut", "local_fault", "internal_error"})
"""Failures of an attempt for which its deployment is not to blame."""


class Served(Struct, frozen=True):
    """What a deployment has done: its answers and failed attempts since the process began, and its delivered share.

    `share` is its part of its model's answers since the configuration in force was accepted, None while there are none.
    """

    requests: int
    failures: int
    share: float | None


class Traffic:
    """The counters. They live as long as the process; each new configuration resets the base of the shares."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        """Start at zero. `settle` is called before the counters are read: it delivers the requests that still wait."""
        self._settle = settle
        self._answers = Counter[Identity]()
        self._failures = Counter[Identity]()
        self._base = Counter[Identity]()

    def __call__(self, outcome: Outcome) -> None:
        """Count a finished request."""
        for attempt in outcome.attempts:
            identity = (attempt.model, attempt.deployment)
            if attempt.failure is None:
                self._answers[identity] += 1
            elif attempt.failure not in NOBODYS:
                self._failures[identity] += 1

    def take(self, batch: Batch) -> None:
        """Count finished requests."""
        for alike in batch.alike:
            self._answers[alike.model, alike.deployment] += len(alike.places)
        for mixed in batch.mixed:
            self._answers.update(mixed.identities)
        for _, outcome in batch.odd:
            self(outcome)

    def rebase(self) -> None:
        """Start counting the shares anew."""
        self._base = self._answers.copy()

    def served(self, model: str, names: tuple[str, ...]) -> Mapping[str, Served]:
        """Return what a model's deployments have done, by name."""
        self._settle()
        since = {name: self._answers[model, name] - self._base[model, name] for name in names}
        total = sum(since.values())
        return {
            name: Served(
                requests=self._answers[model, name],
                failures=self._failures[model, name],
                share=since[name] / total if total else None,
            )
            for name in names
        }
