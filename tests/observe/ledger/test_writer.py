"""The queue and the thread behind it: no row is lost to a database that comes and goes; no request waits for one."""

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.ledger_place import Place
from gateway.observe.batch import Batch
from gateway.observe.ledger.rows import Rows, Value
from gateway.observe.ledger.sqlite import SqliteStore
from gateway.observe.ledger.store import RefusedError, UnavailableError
from gateway.observe.ledger.writer import Ledger
from gateway.observe.sink import LogSink
from gateway.routing.snapshot import LedgerSettings
from tests.observe.ledger.conftest import PATIENCE, MakeLedger
from tests.observe.ledger.outcomes import ANSWERED, PLAIN, batch, outcome, sqlite_at

HERE, THERE, YONDER = (LedgerSettings(Place.of(f"sqlite:///{name}.db"), 0.0) for name in ("here", "there", "yonder"))


class Memory:
    """A database in memory, which does what it is told: it refuses while `down`, waits while `held`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Value]] = []
        self.down: str | None = None
        self.error: Exception | None = None
        self.refuses: str | None = None
        self.tried = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.batches: list[int] = []
        self.pruned: list[tuple[float, int]] = []
        self.old: list[int | Exception] = []
        self.closed = 0

    def write(self, rows: Sequence[Rows]) -> None:
        self.tried.release()
        assert self.free.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        if self.down is not None:
            raise UnavailableError(self.down)
        found = [row for each in rows for row in each.whole]
        if any(row["request_id"] == self.refuses for row in found):
            raise RefusedError("a number out of range")
        self.batches.append(len(found))
        self.rows += found

    def prune(self, before: float, most: int) -> int:
        self.pruned.append((before, most))
        found = self.old.pop(0) if self.old else 0
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        self.closed += 1

    @property
    def requests(self) -> list[object]:
        return [row["request_id"] for row in self.rows]

    def wait_for_a_try(self) -> None:
        assert self.tried.acquire(timeout=PATIENCE)

    def wait_for_a_new_try(self) -> None:
        """Wait for a try that began after this call."""
        while self.tried.acquire(blocking=False):
            pass
        self.wait_for_a_try()
        self.wait_for_a_try()


class Stores(dict[str, Memory]):
    """Databases by the name of their place."""

    def __missing__(self, name: str) -> Memory:
        self[name] = Memory()
        return self[name]

    def at(self, place: Place) -> Memory:
        return self[place.path.removesuffix(".db")]


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture
def make(make_ledger: MakeLedger, stores: Stores) -> Callable[..., Ledger]:
    """Make a ledger upon databases in memory."""
    return lambda **options: make_ledger(make_store=stores.at, **options)


def ids(*numbers: int) -> list[str]:
    return [f"r-{number}" for number in numbers]


def keep(ledger: Ledger, *numbers: int) -> None:
    for number in numbers:
        ledger.take(batch(number, at=42.5))


def logged(records: LogSink) -> list[dict[str, Any]]:
    """Take what was logged, without its time."""
    found = []
    while not records._queue.empty():
        record = records._queue.get()
        assert isinstance(record, dict)
        found.append({name: value for name, value in record.items() if name != "time"})
    return found


def test_nothing_is_kept_while_there_is_no_ledger(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make()
    keep(ledger, 1)
    ledger.close(PATIENCE)
    assert (ledger.waiting, ledger.dropped, ledger.place, ledger._thread, stores) == (0, 0, None, None, {})
    assert ledger.as_dict() == {
        "url": None,
        "retention_days": 30.0,
        "problem": None,
        "written": 0,
        "waiting": 0,
        "dropped": 0,
    }


def test_rows_are_written_in_their_order_with_what_they_cost(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make()
    ledger.move(HERE)
    ledger.take(batch(0, 1, at=41.5))
    keep(ledger, 2)
    assert ledger.flush(PATIENCE)
    store = stores["here"]
    assert store.requests == ids(0, 1, 2)
    assert [(row["seq"], row["time"]) for row in store.rows] == [(1, 41.5), (2, 41.5), (3, 42.5)]
    assert [(row.get("cost_nusd"), row.get("avoided_nusd")) for row in store.rows] == [(None, None), (5, 7), (5, 7)]
    assert len({row["run"] for row in store.rows}) == 1
    assert (ledger.as_dict()["written"], ledger.waiting, ledger.dropped) == (3, 0, 0)


def test_a_batch_is_taken_where_there_is_room(make: Callable[..., Ledger], stores: Stores) -> None:
    asked: list[int] = []
    ledger = make(capacity=3, settle=lambda: asked.append(1))
    ledger.take(batch(1, 2))
    stores["here"].free.clear()
    ledger.move(HERE)
    stores["here"].wait_for_a_try()
    ledger.take(batch(1, 2))
    ledger.take(batch(3, 4))
    ledger.take(batch(5))
    assert (ledger.as_dict()["waiting"], ledger.dropped, asked) == (3, 2, [1])
    stores["here"].free.set()
    assert ledger.flush(PATIENCE)
    store = stores["here"]
    assert store.requests == ids(1, 2, 5)
    assert [row["seq"] for row in store.rows] == [1, 2, 3]


def test_each_row_of_a_batch_is_found_that_a_database_refuses(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make()
    stores["here"].refuses = "r-5"
    ledger.move(HERE)
    ledger.take(batch(*range(7)))
    assert ledger.flush(PATIENCE)
    assert stores["here"].requests == ids(0, 1, 2, 3, 4, 6)
    assert (ledger.dropped, ledger.as_dict()["written"], ledger.waiting) == (1, 6, 0)


def test_what_gathers_is_written_in_batches(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make()
    stores["here"].free.clear()
    ledger.move(HERE)
    stores["here"].wait_for_a_try()
    keep(ledger, *range(2_500))
    assert ledger.waiting == 2_500
    stores["here"].free.set()
    assert ledger.flush(PATIENCE)
    assert [size for size in stores["here"].batches if size] == [1_000, 1_000, 500]


def test_a_full_batch_is_not_waited_with(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make(gather=3_600.0)
    ledger.move(HERE)
    ends = time.monotonic() + PATIENCE
    while not ledger._gathers or ledger._hurry.is_set():
        assert time.monotonic() < ends
        time.sleep(0.001)
    keep(ledger, *range(1_000))
    while stores["here"].requests != ids(*range(1_000)):
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_a_close_writes_everything(make: Callable[..., Ledger], stores: Stores, records: LogSink) -> None:
    ledger = make(gather=3_600.0)
    ledger.move(HERE)
    keep(ledger, *range(3_000))
    ledger.close(PATIENCE)
    keep(ledger, 9_999)
    assert stores["here"].requests == ids(*range(3_000))
    assert (stores["here"].closed, ledger.waiting, ledger.dropped, logged(records)) == (1, 0, 0, [])


def test_a_close_writes_what_came_while_the_writer_ended_a_round(make: Callable[..., Ledger], stores: Stores) -> None:
    """As a round ends with old rows, the clock that these are looked at by is where it can be caught."""
    begun = threading.Event()

    def wall() -> float:
        if not begun.is_set():
            keep(ledger, 1)
            ledger._hurry.clear()
            closing.start()
            begun.set()
            assert ledger._hurry.wait(PATIENCE)
        return 10 * 86_400.0

    ledger = make(wall=wall)
    closing = threading.Thread(target=ledger.close, args=(PATIENCE,))
    ledger.move(replace(HERE, retention_days=3.0))
    assert begun.wait(PATIENCE)
    closing.join(PATIENCE)
    assert (stores["here"].requests, ledger.dropped) == (ids(1), 0)


def test_a_database_that_is_away_holds_up_nobody_and_is_told_of_once(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    store = stores["here"]
    store.down = "database is locked"
    ledger = make(capacity=10)
    ledger.move(HERE)
    store.wait_for_a_new_try()
    keep(ledger, *range(12))
    assert (ledger.waiting, ledger.dropped, ledger.as_dict()["problem"]) == (10, 2, "database is locked")
    assert not ledger.flush(0.0)
    store.wait_for_a_new_try()
    store.down = None
    assert ledger.flush(PATIENCE)
    assert store.requests == ids(*range(10))
    assert (ledger.waiting, ledger.dropped, ledger.as_dict()["problem"]) == (0, 2, None)
    keep(ledger, 12)
    assert ledger.flush(PATIENCE)
    assert store.requests[-1] == "r-12"
    place = "sqlite:///here.db"
    advice = "up to 10 rows wait, further ones are dropped and counted"
    unavailable = {"reason": "database is locked", "advice": advice}
    assert logged(records) == [
        {"level": "warning", "event": "ledger.unavailable", "ledger": place, **unavailable},
        {"level": "info", "event": "ledger.recovered", "ledger": place, "dropped": 2},
    ]


@pytest.mark.parametrize("down", [None, "disk full"])
def test_what_ends_a_pause_ends_no_other(make: Callable[..., Ledger], stores: Stores, down: str | None) -> None:
    """A flush makes the writer look once; it does not go round and round from then on."""
    quiet, store = make(gather=3_600.0, pause=3_600.0), stores["here"]
    store.down = down
    quiet.move(HERE)
    store.wait_for_a_try()
    quiet.flush(0.0)
    busy = make()
    busy.move(THERE)
    for number in range(20):
        keep(busy, number)
        assert busy.flush(PATIENCE)
    tries = 1
    while store.tried.acquire(blocking=False):
        tries += 1
    assert tries <= 4  # the move, the flush, and a wake-up that both may leave behind


def test_an_error_that_nobody_expects_stops_nothing(make: Callable[..., Ledger], stores: Stores) -> None:
    store = stores["here"]
    store.error = ZeroDivisionError("canary")
    ledger = make()
    ledger.move(HERE)
    keep(ledger, 1)
    store.wait_for_a_new_try()
    assert ledger.as_dict()["problem"] == "ZeroDivisionError"
    store.error = None
    assert ledger.flush(PATIENCE)
    assert store.requests == ids(1)


def test_a_row_that_is_refused_takes_no_other_along(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    store = stores["here"]
    store.refuses = "r-3"
    ledger = make()
    store.free.clear()
    ledger.move(HERE)
    store.wait_for_a_try()
    keep(ledger, *range(6))
    store.free.set()
    assert ledger.flush(PATIENCE)
    assert store.requests == ids(0, 1, 2, 4, 5)
    assert ledger.dropped == 1
    told = {"ledger": "sqlite:///here.db", "count": 1, "reason": "a number out of range"}
    assert logged(records) == [{"level": "warning", "event": "ledger.dropped", **told}]


def test_why_rows_were_dropped_once_is_not_why_others_are(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    stores["here"].refuses = "r-1"
    ledger = make(capacity=2)
    ledger.move(HERE)
    keep(ledger, 1)
    assert ledger.flush(PATIENCE)
    ledger.take(batch(2, 3, 4))
    assert ledger.flush(PATIENCE)
    reasons = [(record["count"], record["reason"]) for record in logged(records)]
    assert reasons == [(1, "a number out of range"), (3, "the writer fell behind")]


def test_what_no_row_can_be_made_of_takes_no_other_along(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    unwritable: Any = object()
    attempt = replace(ANSWERED, status=unwritable, failure="server_error")
    ledger = make()
    ledger.move(HERE)
    ledger.take(Batch([42.5] * 3, [outcome(1), replace(PLAIN, attempts=(attempt,)), outcome(2)]))
    keep(ledger, 3)
    assert ledger.flush(PATIENCE)
    assert stores["here"].requests == ids(1, 2, 3)
    assert (ledger.dropped, ledger.waiting) == (1, 0)
    told = {"ledger": "sqlite:///here.db", "count": 1, "reason": "they could not be made into rows: TypeError"}
    assert logged(records) == [{"level": "warning", "event": "ledger.dropped", **told}]


def test_rows_that_a_slow_writer_leaves_no_room_for_are_told_of(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    store = stores["here"]
    store.free.clear()
    ledger = make(capacity=2)
    ledger.move(HERE)
    store.wait_for_a_try()
    keep(ledger, 1, 2, 3)
    store.free.set()
    assert ledger.flush(PATIENCE)
    assert store.requests == ids(1, 2)
    told = {"ledger": "sqlite:///here.db", "count": 1, "reason": "the writer fell behind"}
    assert logged(records) == [{"level": "warning", "event": "ledger.dropped", **told}]


def test_a_move_takes_later_rows_along_and_leaves_earlier_ones(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make(gather=3_600.0)
    ledger.move(HERE)
    keep(ledger, 1)
    ledger.move(THERE)
    keep(ledger, 2)
    ledger.move(THERE)
    ledger.move(LedgerSettings())
    keep(ledger, 3)
    ledger.move(HERE)
    keep(ledger, 4)
    assert ledger.flush(PATIENCE)
    assert (stores["here"].requests, stores["there"].requests) == (ids(1, 4), ids(2))
    assert (stores["here"].closed, stores["there"].closed, ledger.dropped) == (1, 1, 0)


def test_a_move_wakes_a_writer_that_has_no_ledger(make: Callable[..., Ledger], stores: Stores) -> None:
    ledger = make()
    ledger.move(HERE)
    ledger.move(LedgerSettings())
    assert ledger.flush(PATIENCE)
    ledger.move(THERE)
    stores["there"].wait_for_a_try()


def test_rows_that_a_database_does_not_take_go_where_the_next_ones_do(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    stores["here"].down = "disk full"
    ledger = make()
    ledger.move(HERE)
    keep(ledger, 1)
    stores["here"].wait_for_a_new_try()
    ledger.move(THERE)
    keep(ledger, 2)
    assert ledger.flush(PATIENCE)
    assert (stores["here"].requests, stores["there"].requests, ledger.dropped) == ([], ids(1, 2), 0)
    assert [record["event"] for record in logged(records)] == ["ledger.unavailable"]


def test_a_database_that_was_left_is_not_turned_back_to(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    stores["here"].down = stores["there"].down = "is a directory"
    ledger = make()
    ledger.move(HERE)
    keep(ledger, 1)
    stores["here"].wait_for_a_new_try()
    ledger.move(THERE)
    keep(ledger, 2)
    stores["there"].wait_for_a_new_try()
    ledger.move(YONDER)
    keep(ledger, 3)
    assert ledger.flush(PATIENCE)
    assert [stores[name].requests for name in ("here", "there", "yonder")] == [[], [], ids(1, 2, 3)]
    told = [(record["event"], record["ledger"]) for record in logged(records)]
    assert told == [("ledger.unavailable", str(each.place)) for each in (HERE, THERE)]
    stores["there"].down = None
    stores["yonder"].free.clear()
    ledger.move(THERE)
    keep(ledger, 4)
    ledger.move(YONDER)
    keep(ledger, 5)
    stores["yonder"].free.set()
    assert ledger.flush(PATIENCE)
    assert (stores["there"].requests, stores["yonder"].requests) == (ids(4), ids(1, 2, 3, 5))


def test_rows_that_are_not_written_when_the_ledger_is_turned_off_are_dropped_and_counted(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    stores["here"].down = "disk full"
    ledger = make()
    ledger.move(HERE)
    keep(ledger, 1, 2)
    stores["here"].wait_for_a_new_try()
    ledger.move(LedgerSettings())
    assert ledger.flush(PATIENCE)
    assert (ledger.waiting, ledger.dropped, ledger.place) == (0, 2, None)
    ledger.move(THERE)
    keep(ledger, 3)
    assert ledger.flush(PATIENCE)
    assert (stores["there"].requests, ledger.dropped) == (ids(3), 2)
    unavailable, lost = logged(records)
    assert unavailable["event"] == "ledger.unavailable"
    assert lost == {"level": "error", "event": "ledger.lost", "count": 2, "reason": "disk full"}


def test_a_close_gives_up_at_its_deadline_and_counts_what_is_lost(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    stores["here"].down = "disk full"
    ledger = make()
    ledger.move(HERE)
    keep(ledger, *range(1_500))
    stores["here"].wait_for_a_new_try()
    ledger.close(0.0)
    assert (ledger.dropped, ledger.waiting) == (1_500, 0)
    assert logged(records)[-1] == {"level": "error", "event": "ledger.lost", "count": 1_500, "reason": "disk full"}


def test_a_close_with_nothing_to_write_waits_for_no_database(make: Callable[..., Ledger], stores: Stores) -> None:
    stores["here"].down = "disk full"
    ledger = make(pause=3_600.0)
    ledger.move(HERE)
    stores["here"].wait_for_a_try()
    ledger.close(PATIENCE)
    assert ledger._thread is not None
    assert not ledger._thread.is_alive()


def test_a_close_goes_on_trying_until_its_deadline(make: Callable[..., Ledger], stores: Stores) -> None:
    store = stores["here"]
    store.down = "database is locked"
    ledger = make(pause=3_600.0)
    ledger.move(HERE)
    keep(ledger, 1)
    closing = threading.Thread(target=ledger.close, args=(PATIENCE,))
    closing.start()
    store.wait_for_a_new_try()
    store.down = None
    closing.join(PATIENCE)
    assert (store.requests, ledger.dropped) == (ids(1), 0)


def test_a_close_does_not_wait_for_a_database_that_hangs(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    store = stores["here"]
    ledger = make()
    store.free.clear()
    ledger.move(HERE)
    store.wait_for_a_try()
    keep(ledger, 1)
    ledger.close(0.0)
    told = logged(records)
    store.free.set()
    assert ledger.dropped == 1
    assert told[-1]["reason"] == "there was no time to write them"


class Time:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_old_rows_are_deleted_at_once_then_each_hour_and_on_while_there_are_more(
    make: Callable[..., Ledger], stores: Stores
) -> None:
    clock, store = Time(), stores["here"]
    store.old = [5_000, 5_000, 17]
    ledger = make(clock=clock, wall=lambda: 10 * 86_400.0)
    ledger.move(replace(HERE, retention_days=3.0))
    while len(store.pruned) < 3:
        assert ledger.flush(PATIENCE)
    assert ledger.flush(PATIENCE)
    assert ledger.flush(PATIENCE)
    assert store.pruned == [(7 * 86_400.0, 5_000)] * 3
    clock.now += 3_600.0
    while len(store.pruned) < 4:
        assert ledger.flush(PATIENCE)


def test_rows_that_cannot_be_deleted_are_told_of_once_and_tried_again_in_a_minute(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    clock, store = Time(), stores["here"]
    slow = UnavailableError("the query took too long")
    store.old = [slow, slow, 0, slow]
    ledger = make(clock=clock)
    ledger.move(replace(HERE, retention_days=3.0))
    told = {"level": "warning", "event": "ledger.unpruned", "ledger": "sqlite:///here.db", "reason": str(slow)}
    for tries, later, tells in ((1, 60.0, [told]), (2, 60.0, []), (3, 3_600.0, []), (4, 60.0, [told])):
        while len(store.pruned) < tries:
            assert ledger.flush(PATIENCE)
        assert ledger.flush(PATIENCE)  # it knows by now when it is due again
        assert logged(records) == tells
        clock.now += later


def test_rows_are_written_on_whatever_a_driver_raises_when_old_ones_are_to_be_deleted(
    make: Callable[..., Ledger], stores: Stores, records: LogSink
) -> None:
    """It used to end the writer's thread."""
    store = stores["here"]
    store.old = [MemoryError("a driver's own words")]
    ledger = make()
    ledger.move(replace(HERE, retention_days=3.0))
    while not store.pruned:
        assert ledger.flush(PATIENCE)
    keep(ledger, 1)
    assert ledger.flush(PATIENCE)
    assert (store.requests, store.closed) == (ids(1), 0)
    told = {"ledger": "sqlite:///here.db", "reason": "MemoryError"}
    assert logged(records) == [{"level": "warning", "event": "ledger.unpruned", **told}]


def test_a_new_retention_holds_at_once_and_moves_nothing(make: Callable[..., Ledger], stores: Stores) -> None:
    store = stores["here"]
    ledger = make(wall=lambda: 10 * 86_400.0)
    ledger.move(HERE)
    assert ledger.flush(PATIENCE)
    assert store.pruned == []
    for days in (3.0, 1.0):
        store.pruned.clear()
        ledger.move(replace(HERE, retention_days=days))
        assert ledger.flush(PATIENCE)
        assert ledger.flush(PATIENCE)  # the round of the first one has ended
        assert (store.pruned, store.closed) == ([((10.0 - days) * 86_400.0, 5_000)], 0)


def test_a_file_that_is_locked_and_then_removed_costs_no_row_that_comes_later(
    make_ledger: MakeLedger, tmp_path: Path, records: LogSink
) -> None:
    path = tmp_path / "ledger.db"
    ledger = make_ledger()
    ledger.move(sqlite_at(path))
    keep(ledger, 1)
    assert ledger.flush(PATIENCE)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    keep(ledger, 2)
    while ledger.as_dict()["problem"] is None:
        ledger.flush(0.01)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.flush(PATIENCE)
    path.unlink()
    keep(ledger, 3)
    assert ledger.flush(PATIENCE)
    ledger.close(PATIENCE)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT request_id FROM gateway_requests").fetchall() == [("r-3",)]
    connection.close()
    assert [record["event"] for record in logged(records)] == ["ledger.unavailable", "ledger.recovered"]


def test_a_clock_that_was_wrong_for_a_while_leaves_later_rows_in_their_place(
    make_ledger: MakeLedger, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    ledger = make_ledger()
    ledger.move(sqlite_at(path))
    for number, now in enumerate((1_000.0, 9_000_000.0, 1_001.0, 1_001.0)):
        ledger.take(batch(number, at=now))
    assert ledger.flush(PATIENCE)
    ledger.close(PATIENCE)
    store = SqliteStore(str(path))
    assert store.prune(2_000.0, 99) == 3
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT request_id FROM gateway_requests").fetchall() == [("r-1",)]
    connection.close()


def test_a_database_that_says_nothing_is_told_of(make: Callable[..., Ledger], stores: Stores, records: LogSink) -> None:
    """It was told of when rows were dropped at the earliest."""
    now = [100.0]
    ledger = make(clock=lambda: now[0], gather=0.01)
    stores["here"].free.clear()
    ledger.move(HERE)
    stores["here"].wait_for_a_try()
    keep(ledger, 1)
    now[0] += 14.9
    keep(ledger, 2)
    assert (ledger.as_dict()["problem"], logged(records)) == (None, [])
    now[0] += 0.1
    keep(ledger, 3)
    assert ledger.as_dict()["problem"] == "no answer for 15 s"
    assert [(record["event"], record["reason"]) for record in logged(records)] == [
        ("ledger.unavailable", "no answer for 15 s")
    ]
    stores["here"].free.set()
    assert ledger.flush(PATIENCE)
    assert (ledger.as_dict()["problem"], stores["here"].requests) == (None, ids(1, 2, 3))
    assert [record["event"] for record in logged(records)] == ["ledger.recovered"]
