"""The ledger's way to its database: a bounded queue, and one thread that writes its contents in batches.

The observer appends to a deque and is done: it makes no rows, and wakes the thread only when a full batch is waiting.
Otherwise the thread wakes by itself, at most half a second later, makes rows of what has gathered and writes them in
one transaction. Requests wait for up to a tenth of a second before the observer gets them (`observe.feed`), so a row is
less than a second late.

A database that is locked, full, removed or unreachable refuses its batch. The batch is kept and retried after a pause,
for however long that takes; meanwhile the queue fills, and once it is full new rows are dropped and counted. This is
logged once when it begins, and once when it is over.

A database that neither takes a batch nor refuses it, such as one whose disk hangs, is logged in the same way. The
thread waits for it, so it is the event loop that notices.

A move to another database goes through the queue, so that earlier rows go to the earlier one. A database that refuses
its batch is left at once, and what it has not taken goes to the newest.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct, field

from gateway.config.ledger_place import Place
from gateway.observe.batch import Batch
from gateway.observe.ledger.places import store_at
from gateway.observe.ledger.retention import Retention
from gateway.observe.ledger.rows import Rows, id_of, rows
from gateway.observe.ledger.store import RefusedError, Store, UnavailableError
from gateway.observe.log import Log
from gateway.routing.snapshot import LedgerSettings

_BATCH: Final = 1_000
_LAST_TRY: Final = 1.0
_BEHIND: Final = "the writer fell behind"
_PATIENCE: Final = 15.0
"""Seconds without a word from a database: more than it may take for a statement, or a lock."""


class _Move(Struct, frozen=True):
    settings: LedgerSettings


class _Flush(Struct, frozen=True):
    done: threading.Event = field(default_factory=threading.Event)


_Message = _Move | _Flush


class _Taken(NamedTuple):
    """A batch of requests, whose rows are counted from `seq`."""

    batch: Batch
    seq: int


class Ledger:
    """The observer that keeps a row of each request, written by one daemon thread where `move` says.

    `capacity` bounds the rows that wait. `gather` (seconds) is how long rows are collected for one transaction, if they
    do not fill a batch sooner: what waits is memory that cannot be reused meanwhile. `pause` (seconds) is the time
    between two attempts at a database that refuses. `clock` is monotonic, `wall` in seconds since the epoch. `settle`
    delivers the requests that wait for the observer; call it, on the event loop, before `waiting` and `flush`.
    """

    def __init__(
        self,
        log: Log,
        *,
        capacity: int = 50_000,
        gather: float = 0.5,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        make_store: Callable[[Place], Store] = store_at,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._capacity = capacity
        self._gather = gather
        self._pause = pause
        self._clock = clock
        self._wall = wall
        self._make_store = make_store
        self.settle = settle
        # The event loop's: what is wanted, and how many rows may wait (0: none is taken), were taken, and did not fit.
        self._wanted = LedgerSettings()
        self._limit = 0
        self._taken = 0
        self._overflowed = 0
        self._run = secrets.randbits(53)
        # Shared: the queue, the event that ends the writer's pauses, and when to give up while closing.
        self._queue: deque[_Taken | _Message] = deque()
        self._hurry = threading.Event()
        self._gathers = False  # whether the writer waits for more rows, not for the database
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        # The writer thread's.
        self._settings = LedgerSettings()
        self._store: Store | None = None
        self._left: set[Place | None] = set()  # places that refused their batch, until the newest move is reached
        self._rows: list[Rows] = []
        self._written = 0
        self._refused = 0
        self._told = 0
        self._reason: str | None = None  # why the database refuses, while it does
        self._cause = _BEHIND  # why rows are dropped
        self._retention = Retention(log, clock, wall)
        # The writer thread's, and looked at by the event loop: since when it has been waiting for the database.
        self._asked: float | None = None

    def take(self, batch: Batch) -> None:
        """Keep finished requests, with their costs from the batch; nothing is kept while there is no ledger."""
        if not self._limit:
            return
        self._look()
        count = len(batch.at)
        if self.waiting + count <= self._limit:
            self._queue.append(_Taken(batch, self._taken + 1))
            self._taken += count
            if self._gathers and self.waiting >= _BATCH:
                self._hurry.set()
        else:
            self._overflowed += count

    @property
    def place(self) -> Place | None:
        """Where the ledger is, if there is one."""
        return self._wanted.place

    @property
    def dropped(self) -> int:
        """How many rows were never written, since the start."""
        return self._overflowed + self._refused

    @property
    def waiting(self) -> int:
        """How many rows are not written yet."""
        return self._taken - self._written - self._refused

    def as_dict(self) -> Mapping[str, object]:
        """Return its state, ready for JSON, without secrets. For the event loop's thread."""
        self.settle()
        self._look()
        return {
            "url": str(self.place) if self.place else None,
            "retention_days": self._wanted.retention_days,
            "problem": self._reason,
            "written": self._written,
            "waiting": self.waiting,
            "dropped": self.dropped,
        }

    def _look(self) -> None:
        """Say that the database is silent, if it has been for long."""
        asked = self._asked
        if asked is not None and self._reason is None and self._clock() - asked >= _PATIENCE:
            self._fail(f"no answer for {_PATIENCE:g} s")

    def move(self, settings: LedgerSettings) -> None:
        """Keep rows there from now on, or none; for the event loop's thread. Earlier rows go to the earlier place."""
        if settings == self._wanted:
            return
        self._wanted = settings
        self._limit = self._capacity if settings.place else 0
        self._queue.append(_Move(settings))
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name="ledger-writer", daemon=True)
            self._thread.start()
        self._hurry.set()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until the rows so far are written; return whether they are. Blocking."""
        message = _Flush()
        self._queue.append(message)
        self._hurry.set()
        return message.done.wait(timeout)

    def close(self, timeout: float) -> None:
        """Write what can be written within `timeout` seconds, and stop; log what was lost. Blocking."""
        self._limit = 0
        self._deadline = self._clock() + timeout
        self._hurry.set()
        if self._thread is not None:
            self._thread.join(timeout + _LAST_TRY)
        lost = self.waiting
        self._rows = []
        self._queue.clear()
        if lost:
            self._refused += lost
            self._log.error("ledger.lost", count=lost, reason=self._reason or "there was no time to write them")

    def _write_on(self) -> None:
        while (able := self._round()) and self._deadline is None:
            self._gathers = True
            if self.waiting < _BATCH:
                self._hurry.wait(self._gather if self._store else None)
            self._gathers = False
            self._hurry.clear()
        if able:
            self._round()  # what came between the last round and the close
        if self._store is not None:
            self._store.close()

    def _round(self) -> bool:
        """Write what has gathered; False: the ledger is closing, and the rows cannot be written."""
        more = True
        while more:
            message = self._take()
            if not self._deliver():
                return False
            more = bool(self._queue) or isinstance(message, _Move)
            if isinstance(message, _Flush):
                message.done.set()
            elif isinstance(message, _Move):
                self._follow(message.settings)
        if self._store is not None and self._deadline is None:
            self._asked = self._clock()
            self._retention.prune(self._store, str(self._settings.place), self._settings.retention_days)
            self._asked = None
        return True

    def _take(self) -> _Message | None:
        """Make the next rows, up to a full batch or a message, which is returned."""
        queue, count = self._queue, 0
        while queue and count < _BATCH:
            entry = queue.popleft()
            if not isinstance(entry, _Taken):
                return entry
            batch = entry.batch
            self._rows += rows(self._run, entry.seq, batch, id_of(max(batch.at)), self._leave_out)
            count += len(batch.at)
        return None

    def _leave_out(self, number: int, error: Exception) -> None:
        self._refused += number
        self._cause = f"they could not be made into rows: {type(error).__name__}"

    def _deliver(self) -> bool:
        """Write the batch, retrying until it succeeds; with none, check the database. False: closed before that."""
        while self._store is not None and (self._rows or self._deadline is None):
            last = self._deadline is not None and self._clock() >= self._deadline
            self._asked = self._clock()
            try:
                self._write(self._store)
            except UnavailableError as error:
                self._fail(str(error))
            except Exception as error:  # noqa: BLE001 - a driver may raise anything, and rows must not be lost by it
                self._fail(type(error).__name__)
            else:
                self._succeed()
                return True
            finally:
                self._asked = None
            if self._wanted.place != self._settings.place:
                self._left.add(self._settings.place)
                self._turn_to(self._wanted)
            elif last:
                return False
            else:
                self._hurry.wait(self._pause if self._deadline is None else min(self._pause, 0.1))
                self._hurry.clear()
        if lost := _count(self._rows):  # the ledger was turned off
            self._refused += lost
            self._told += lost
            self._rows = []
            self._log.error("ledger.lost", count=lost, reason=self._cause)
        return True

    def _write(self, store: Store) -> None:
        """Write the batch; find the rows that the database refuses by halving, and drop them."""
        refused = self._write_but(store, self._rows)
        self._written += _count(self._rows) - refused
        self._refused += refused
        self._rows = []

    def _write_but(self, store: Store, these: list[Rows]) -> int:
        """Write rows except those that the database refuses; return how many it refuses."""
        try:
            store.write(these)
        except RefusedError as error:
            if _count(these) == 1:
                self._cause = str(error)
                return 1
            halves = (
                (these[: len(these) // 2], these[len(these) // 2 :])
                if len(these) > 1
                else [[half] for half in these[0].halves()]
            )
            return sum(self._write_but(store, half) for half in halves)
        return 0

    def _succeed(self) -> None:
        dropped = self.dropped
        untold, self._told = dropped - self._told, dropped
        if self._reason is not None:
            self._reason = None
            self._log.info("ledger.recovered", ledger=str(self._settings.place), dropped=untold)
        elif untold:
            self._log.warning("ledger.dropped", ledger=str(self._settings.place), count=untold, reason=self._cause)
        self._cause = _BEHIND

    def _fail(self, reason: str) -> None:
        if self._reason is None:
            advice = f"up to {self._capacity} rows wait, further ones are dropped and counted"
            self._log.warning("ledger.unavailable", ledger=str(self._settings.place), reason=reason, advice=advice)
        self._reason = self._cause = reason

    def _follow(self, settings: LedgerSettings) -> None:
        """Switch to where a move says; if that place refused a batch and was left, to the newest."""
        newest = self._wanted
        if settings == newest:
            self._left.clear()
        self._turn_to(newest if settings.place in self._left else settings)

    def _turn_to(self, settings: LedgerSettings) -> None:
        if settings.place != self._settings.place:
            if self._store is not None:
                self._store.close()
            self._store = self._make_store(settings.place) if settings.place else None
            self._reason = None
        self._settings = settings
        self._retention.hurry()


def _count(these: Iterable[Rows]) -> int:
    return sum(len(each.values) for each in these)
