"""Deletes old rows: a few thousand at a time, so that new rows do not wait long, and hourly once none are left."""

from collections.abc import Callable
from typing import Final

from gateway.observe.ledger.store import RefusedError, Store, UnavailableError
from gateway.observe.log import Log

_MOST: Final = 5_000
_DAY: Final = 86_400.0
_HOUR: Final = 3_600.0
_MINUTE: Final = 60.0


class Retention:
    """Deletes old rows, for one thread. Mutable: when it is due, and whether the last try failed.

    `clock` is monotonic, `wall` in seconds since the epoch.
    """

    def __init__(self, log: Log, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._wall = wall
        self._due = 0.0
        self._failing = False

    def hurry(self) -> None:
        """Be due at once: the ledger or its retention has changed."""
        self._due = 0.0

    def prune(self, store: Store, ledger: str, days: float) -> None:
        """Delete some of the rows that are older than so many days (0: delete none), if it is due.

        After a failure, it is due again in a minute; only the first in a row is logged, with `ledger` as the name.
        """
        if not days or self._clock() < self._due:
            return
        try:
            deleted = store.prune(self._wall() - days * _DAY, _MOST)
        except (UnavailableError, RefusedError) as error:
            self._fail(ledger, str(error))
            return
        except Exception as error:  # noqa: BLE001 - a driver may raise anything, and new rows must not be lost by it
            self._fail(ledger, type(error).__name__)
            return
        self._failing = False
        if deleted < _MOST:
            self._due = self._clock() + _HOUR

    def _fail(self, ledger: str, reason: str) -> None:
        if not self._failing:
            self._log.warning("ledger.unpruned", ledger=ledger, reason=reason)
        self._failing, self._due = True, self._clock() + _MINUTE
