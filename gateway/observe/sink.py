"""The log's output: a bounded queue, and one thread that renders records and writes them.

Emitting only appends to the queue; rendering, redaction, opening and writing happen in the writer thread. The queue is
a SimpleQueue because its `put` takes no lock that a garbage collection or a signal handler could need when it
interrupts it.

The writer wakes for the first record, waits briefly for others, and writes them as one batch: a wake-up per record
would cost the event loop more than the record. Requests come gathered, and are written at once, while they are in the
processor's cache. A batch that its target refuses is kept and retried after a pause;
meanwhile the queue fills, and once it is full new records are dropped and counted. After a batch has been written, the
next one reports the count in a `log.dropped` record.

Retargeting goes through the queue, so that earlier records go to the earlier target. Only a target that refuses its
batch is left at once, and what it has not taken goes to the newest one: a full disk would block the log for ever.
"""

import errno
import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from msgspec import Struct, field

from gateway.observe.render import Record, Secrets, render_all
from gateway.observe.request import Requests
from gateway.observe.target import STREAMS, Lines, Target, has_room, open_for_append, reason

_BATCH = 256

Told = dict[str, object] | Requests
"""What is emitted: a record's fields, in the order of its line; or requests that ended, each of which is a record."""


class _Message(Struct, frozen=True):
    """An instruction to the writer, queued among the records."""


class _Retarget(_Message, frozen=True):
    name: str


class _Flush(_Message, frozen=True):
    done: threading.Event = field(default_factory=threading.Event)


class _Stop(_Message, frozen=True):
    pass


class LogSink:
    """Writes records as JSON lines to `target`: `stdout`, `stderr` or a file, from one daemon thread.

    `capacity` bounds the records that wait. `pause` (seconds) is the time between two attempts at a failing target and
    between two checks of an idle one; `gather` (seconds) is how long records are collected for one write.
    """

    def __init__(
        self,
        target: str = "stdout",
        *,
        capacity: int = 10_000,
        pause: float = 1.0,
        gather: float = 0.05,
    ) -> None:
        self._queue: SimpleQueue[Told | _Message] = SimpleQueue()
        self._packed = 0  # how many records were put in the queue beyond one in each item
        self._limit = capacity  # 0 once closed
        self._pause = pause
        self._gather = gather
        self._known: frozenset[str] = frozenset()
        self._secrets = Secrets()
        self._spelled = self._known, self._secrets
        self._wanted = target  # the newest target asked for
        self._hurry = threading.Event()  # ends the writer's pauses
        self._closing = False
        self._drop_lock = threading.RLock()  # reentrant: a garbage collection may emit while this thread holds it
        self._dropped = 0
        self._told = 0  # how many of those dropped a `log.dropped` record has reported
        # The rest belongs to the writer thread.
        self._unpacked = 0  # how many of `_packed` have been taken
        self._target = Target(target, pause=pause, clock=time.monotonic)
        self._left: set[str] = set()  # targets that refused their batch, until the queue reaches the newest one
        self._lines = Lines()
        self._drops = 0  # how many drops the last of `_lines` reports
        self._reason: str | None = None  # why the last write failed, until the next batch is composed
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    @property
    def target(self) -> str:
        """The newest target asked for."""
        return self._wanted

    @property
    def dropped(self) -> int:
        """How many records were never written, since the start."""
        return self._dropped

    def start(self) -> None:
        """Start the writer, which opens the target; records emitted before are written first."""
        self._thread.start()

    def emit(self, told: Told) -> None:
        """Hand over a record, which the sink owns from now on. From any thread; never blocks, never raises.

        Requests, many records in one, come from one thread only.
        """
        size, room = _size(told), max(self._limit - self._waiting, 0)
        if size > room:
            with self._drop_lock:
                self._dropped += size - room
        if room:
            if isinstance(told, Requests):
                told = told.first(room)
                self._packed += len(told) - 1
            self._queue.put(told)

    @property
    def _waiting(self) -> int:
        """How many records are in the queue; a message counts as one."""
        return self._queue.qsize() + self._packed - self._unpacked

    def prepare_secrets(self, secrets: frozenset[str]) -> None:
        """Prepare, in any thread, what `set_secrets` will mask: a thousand keys take milliseconds."""
        known = self._known | secrets
        if known != self._spelled[0]:
            self._spelled = known, Secrets.of(known)

    def set_secrets(self, secrets: frozenset[str]) -> None:
        """Mask these texts in every line from now on, and keep masking those given before.

        A request in flight, or a queued record, may still hold a key that the configuration no longer has.
        """
        self.prepare_secrets(secrets)
        self._known, self._secrets = self._spelled

    @staticmethod
    def check(target: str) -> None:
        """Open `target` for appending and close it again. Blocking.

        Raises OSError, whose text is the reason: `logs/x: permission denied`. A FIFO that nobody reads yet is fine.
        """
        try:
            os.close(open_for_append(target))
        except OSError as error:
            if error.errno != errno.ENXIO or not Path(target).is_fifo():
                raise OSError(reason(target, error)) from error

    def retarget(self, target: str) -> None:
        """Write the records emitted from now on to `target`. From any thread."""
        self._wanted = target
        self._queue.put(_Retarget(target))
        self._hurry.set()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until what was emitted before is written; return whether it is."""
        message = _Flush()
        self._queue.put(message)
        self._hurry.set()
        return message.done.wait(timeout)

    def close(self, timeout: float) -> None:
        """Write what can be written within `timeout` seconds and stop; report on stderr what was lost. Blocking.

        A failing target gets one last attempt.
        """
        if self._closing:
            return
        self._limit = 0
        self._closing = True
        self._queue.put(_Stop())
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._count_lost()

    def _count_lost(self) -> None:
        lost = self._lines.left - (1 if self._lines.left and self._drops else 0)
        with suppress(Empty):
            while True:
                lost += _size(self._queue.get_nowait())
        self._queue.put(_Stop())
        self._dropped += lost
        if untold := self._dropped - self._told:
            self._tell(f"{untold} log records lost: {self._reason or 'closed before they were written'}")

    def _run(self) -> None:
        message: _Message | None = None
        while self._deliver() and not isinstance(message, _Stop):
            if isinstance(message, _Retarget):
                self._follow(message.name)
            elif isinstance(message, _Flush):
                message.done.set()
            records, message = self._take()
            self._compose(records)
        self._target.close()

    def _take(self) -> tuple[list[Record], _Message | None]:
        """Wait for records; return them up to a message or a full batch, or none if none came within a pause."""
        try:
            item = self._queue.get(timeout=self._pause)
        except Empty:
            return [], None
        if isinstance(item, _Message):
            return [], item
        if not isinstance(item, Requests) and self._waiting < _BATCH:  # requests have been gathered before
            self._rest(self._gather)
        records: list[Record] = []
        while True:
            records += self._unpack(item)
            if len(records) >= _BATCH or not self._queue.qsize():
                return records, None
            item = self._queue.get_nowait()
            if isinstance(item, _Message):
                return records, item

    def _unpack(self, told: Told) -> Iterable[Record]:
        if not isinstance(told, Requests):
            return (told,)
        self._unpacked += len(told) - 1
        return told.ended()

    def _compose(self, records: list[Record]) -> None:
        """Render the next batch, whose last line reports what was dropped by then."""
        self._drops = self._dropped - self._told
        if self._drops:
            lead = {"time": time.time(), "level": "warning", "event": "log.dropped"}
            records.append(lead | {"count": self._drops, "reason": self._reason or "the writer fell behind"})
        self._reason = None
        self._lines = Lines(render_all(records, self._secrets))

    def _deliver(self) -> bool:
        """Write the batch, retrying until it succeeds; with none, check the target. False: closed before that."""
        while True:
            last = self._closing
            try:
                self._target.write(self._lines)
            except OSError as error:
                self._fail(reason(self._target.name, error))
            else:
                self._failing = False
                self._told += self._drops
                self._drops = 0
                return True
            if self._wanted != self._target.name:
                self._left.add(self._target.name)
                self._turn_to(self._wanted)
            elif last:
                return False
            else:
                self._rest(self._pause)

    def _fail(self, why: str) -> None:
        self._reason = why
        if not self._failing:
            self._tell(f"cannot log: {why}; records are kept until the queue is full, then dropped and counted")
        self._failing = True

    def _follow(self, name: str) -> None:
        """Switch to the target that the queue has reached; if it refused a batch and was left, to the newest."""
        newest = self._wanted
        if name == newest:
            self._left.clear()
        self._turn_to(newest if name in self._left else name)

    def _turn_to(self, name: str) -> None:
        if name != self._target.name:
            self._target.close()
            self._target = Target(name, pause=self._pause, clock=time.monotonic)
            self._lines.rewind()

    def _rest(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()

    def _tell(self, text: str) -> None:
        """Write `text` to stderr, unless stderr is closed or stuck."""
        line = f"gateway: {self._secrets.redact(text)}\n".encode(errors="backslashreplace")
        with suppress(OSError):
            if sys.__stderr__ is not None and has_room(STREAMS["stderr"], 0):
                os.write(STREAMS["stderr"], line)


def _size(item: Told | _Message) -> int:
    """Return how many records an item of the queue is."""
    if isinstance(item, _Message):
        return 0
    return len(item) if isinstance(item, Requests) else 1
