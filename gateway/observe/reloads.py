"""The results of reading the configuration: the last one, and the last twenty.

A reading is what the reloader built from the files, good or bad. One that changes nothing (SIGHUP, a touched file) is
not kept: it would push out those that matter.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Final, Literal

from msgspec import Struct, field

from gateway.config.faults import Fault
from gateway.observe.render import rfc3339

KEPT: Final = 20


class Reading(Struct, frozen=True, dict=True):
    """One reading: when it was made, in seconds since the epoch, and its result.

    `generation` is the one in force after it, 0 before the first. `digest` identifies the files' content, if it was
    accepted. `changes` are those of the `config.reloaded` log event.
    """

    at: float
    result: Literal["accepted", "rejected"]
    generation: int
    digest: str | None = None
    changes: Mapping[str, object] | None = None
    faults: tuple[Fault, ...] = ()

    @cached_property
    def told(self) -> Mapping[str, object]:
        """The reading, JSON-ready; fields without a value are left out."""
        told: dict[str, object] = {"at": rfc3339(self.at), "result": self.result, "generation": self.generation}
        faults = [fault.as_dict() for fault in self.faults]
        more = {"hash": self.digest, "changes": self.changes, "faults": faults}
        return told | {name: value for name, value in more.items() if value}


class ReloadState(Struct):
    """The result of the last reading of the configuration; `faults` stand until a good one is read.

    Mutable: all of it. `accepted` and `rejected` are seconds since the epoch: when a configuration with a new meaning
    was last accepted, and when the present faults were found; `last` is when either last happened, and is never reset.
    `history` holds the last readings, oldest first.
    """

    accepted: float | None = None
    rejected: float | None = None
    last: float | None = None
    faults: tuple[Fault, ...] = ()
    notices: tuple[Fault, ...] = ()
    history: deque[Reading] = field(default_factory=lambda: deque(maxlen=KEPT))
    _told: Mapping[str, object] | None = None

    def accept(
        self,
        at: float,
        generation: int,
        digest: str,
        notices: Iterable[Fault],
        changes: Mapping[str, object] | None = None,
    ) -> None:
        """Record a good reading; without `changes`, it means the same as the last good one, or is the first."""
        last = self.history[-1] if self.history else None
        if last is None or last.generation != generation:
            self.accepted = self.last = at
        if last is None or (last.digest, last.generation) != (digest, generation):  # a rejection has no digest
            self.history.append(Reading(at, "accepted", generation, digest, changes))
        self.rejected, self.faults, self.notices, self._told = None, (), tuple(notices), None

    def reject(self, at: float, generation: int, faults: Iterable[Fault]) -> bool:
        """Record a bad reading; return whether it is news: with the same faults as the last reading, it is not."""
        faults = tuple(faults)
        if self.rejected is not None and self.faults == faults:
            return False
        self.rejected, self.faults, self._told = at, faults, None
        self.last = at
        self.history.append(Reading(at, "rejected", generation, faults=self.faults))
        return True

    def as_dict(self) -> Mapping[str, object]:
        """Return the state JSON-ready, newest reading first; cached, because the page asks for it every second."""
        if self._told is None:
            self._told = self._written()
        return self._told

    def _written(self) -> Mapping[str, object]:
        return {
            "accepted_at": None if self.accepted is None else rfc3339(self.accepted),
            "rejected_at": None if self.rejected is None else rfc3339(self.rejected),
            "faults": [fault.as_dict() for fault in self.faults],
            "warnings": [notice.as_dict() for notice in self.notices],
            "history": [reading.told for reading in reversed(self.history)],
        }
