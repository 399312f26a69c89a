"""Follows models.yaml, routing.yaml and .env: watch, read, compare, build, swap.

Theory. An event only means "look again": it may name another file, come twice, or not come at all. What counts is
whether the contents differ from those last looked at. Three questions then cover every way a file changes.

What triggers a look?
- A save by rename (most editors, `sed -i`), a write in place (`>`, `cp`), a file deleted and created: events in the
  folder that holds the name.
- A ConfigMap: the name is a link through `..data`, and only `..data` is swapped; it is in that folder too.
- A link to a file elsewhere: events in the real file's folder.
- A folder replaced or remounted: it is another one (`watch.identities`), so a new watch is armed, and the files are
  looked at after that, because earlier changes raised no event. While there is no folder, ticks look for it.
- No event (NFS, a link further up that is swapped, polling, which misses a second write within a second, .env, whose
  folder is a busy working directory and not watched): a tick. Without inotify: polling; without polling: ticks alone.
- SIGHUP: `Reloader.request`.

Is the file complete? Half of a file may be valid YAML, so a change counts when two readings in a row agree. A file that
is gone may come back (`git checkout`, editors that delete first), so nothing happens during a grace period. Files that
keep changing, or stay missing, are taken as they are.

Was it looked at before? Then nothing happens, whether it was good or bad: a touched bad file is not reported twice.
Contents that return to those in force differ from the bad ones in between: they are built again, which clears the
fault.

Reading and building happen in a thread. It may hang for ever, in a strategy or on a disk that is gone; it is not joined
when the process ends. A busy loop releases the GIL for moments too short for the thread to take it, and a look of 30
system calls then takes seconds (measured). So the loop blocks for the start of each job: a look needs 0.1 ms, and a
disk that hangs costs `_HEAD_START` per tick.
"""

import asyncio
import enum
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from gateway.config.faults import ConfigError, Fault
from gateway.config.sources import ConfigFiles, Sources, read
from gateway.threads import DaemonThreads
from gateway.watch import Identities, Watch, identities, own_mount_points, pinned

T = TypeVar("T")
R = TypeVar("R")
Reading: TypeAlias = Sources | ConfigError

_HEAD_START = 0.002
_FOLDER_ADVICE = "saves never reach a file that is mounted alone; mount the folder that holds it"


class Pace(Struct, frozen=True):
    """How fast the files are followed, in seconds.

    `tick`: the longest time between two looks. `settle`: the pause between two readings that must agree. `patience`:
    how long contents may keep changing before they are taken as they are. `grace`: how long a file may be missing
    before it counts as removed.
    """

    tick: float = 1.0
    settle: float = 0.03
    patience: float = 2.0
    grace: float = 2.0


class Verdict(enum.Enum):
    """What to do with a reading: nothing, read again after `Pace.settle`, or build from it."""

    REST = enum.auto()
    SETTLE = enum.auto()
    BUILD = enum.auto()


class Comparison:
    """Compares readings with the one last looked at. No I/O and no clock: `now` is any monotonic time in seconds.

    Mutable: the contents last looked at and those of the latest reading, since when they have not settled, which files
    existed, and since when they have been missing.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._looked_at: object = None
        self._latest: object = None
        self._unsettled_since: float | None = None
        self._there: frozenset[str] = frozenset()
        self._missing_since: dict[str, float] = {}

    def judge(self, reading: Reading, now: float, *, asked: bool = False) -> Verdict:
        """Return what to do with a reading made at `now`; `asked`: build even if nothing changed or a file is gone."""
        content = _content(reading)
        agreed, self._latest = content == self._latest, content
        known = content == self._looked_at
        missing = self._missing(reading, now)
        if (known or missing) and not asked:
            self._unsettled_since = None
            return Verdict.REST
        return Verdict.BUILD if known or agreed or self._out_of_patience(now) else Verdict.SETTLE

    def looked_at(self, reading: Reading) -> None:
        """Record a build: from now on only other contents are a change."""
        self._looked_at = self._latest = _content(reading)
        self._unsettled_since = None
        if isinstance(reading, Sources):
            self._there = _there(reading)

    def _missing(self, reading: Reading, now: float) -> bool:
        """Return whether a file is missing that may still come back."""
        gone = self._there - _there(reading) if isinstance(reading, Sources) else ()
        self._missing_since = {name: self._missing_since.get(name, now) for name in gone}
        return any(now - since < self._pace.grace for since in self._missing_since.values())

    def _out_of_patience(self, now: float) -> bool:
        if self._unsettled_since is None:
            self._unsettled_since = now
        return now - self._unsettled_since >= self._pace.patience


def _content(reading: Reading) -> object:
    return reading if isinstance(reading, Sources) else reading.faults


def _there(sources: Sources) -> frozenset[str]:
    return frozenset(name for name in ("models", "routing", "env") if getattr(sources, name) is not None)


class _Sight(Struct, frozen=True):
    """The result of one look."""

    reading: Reading
    folders: Identities
    nameless: tuple[Path, ...]


class Reloader(Generic[T]):
    """Reads the files, and follows them: `build` makes a T of their contents, `adopt` swaps it in.

    `build` runs in a thread and raises ConfigError for bad contents, which is passed to `reject` once. `adopt`,
    `reject` and `notice` run on the loop. Notices: `reload.polling` (reason), `reload.pinned_file` (file, advice),
    `reload.failed` (error). `clock` and `sleep` can be replaced in tests.

    Mutable: the `Comparison`, the folders last seen, whether a reload was requested, and what was noticed before.
    """

    def __init__(
        self,
        files: ConfigFiles,
        *,
        build: Callable[[Sources], T],
        adopt: Callable[[T], None],
        reject: Callable[[ConfigError], None],
        notice: Callable[[str, Mapping[str, object]], None],
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._files = files
        self._names = (files.models, files.routing)
        self._build, self._adopt, self._reject, self._notice = build, adopt, reject, notice
        self._pace = pace or Pace()
        self._clock, self._sleep = clock, sleep
        self._comparison = Comparison(self._pace)
        self._threads = DaemonThreads("gateway-reload")  # at most two: one reads or builds, one watches
        self._stir = asyncio.Event()
        self._asked = False
        self._folders: Identities = {}
        self._failure: str | None = None
        self._noticed: set[object] = set()

    async def load(self) -> None:
        """Read and build for the first time: `adopt` or `reject` has been called when this returns."""
        sight = await self._in_thread(self._see)
        await self._rebuild(sight.reading)

    async def run(self) -> None:
        """Follow the files until cancelled."""
        while True:
            try:
                await self._look()
                await self._follow(self._folders)
            except Exception as error:  # noqa: BLE001 - whatever it is, keep following the files
                await self._failed(_described(error))

    def request(self) -> None:
        """Read and build now, changed or not; several requests before the next reading count as one."""
        self._asked = True
        self._stir.set()

    async def _follow(self, folders: Identities) -> None:
        """Look at each event and each tick, until the folders are replaced or the watch ends."""
        self._notice_pinned(await self._in_thread(lambda: pinned(self._names, own_mount_points())))
        watch = Watch((folder for folder, identity in folders.items() if identity), self._stir.set, self._threads)
        try:
            while self._folders == folders and not watch.over:
                await self._stirred()
                await self._look()
                if watch.refused:
                    self._notice_once("reload.polling", None, {"reason": watch.refused})
        finally:
            await watch.close()
        if watch.failure:
            await self._failed(watch.failure)

    async def _stirred(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.tick):
                await self._stir.wait()
        self._stir.clear()

    async def _look(self) -> None:
        """Read the files, and build from them if they have changed and settled."""
        asked, self._asked = self._asked, False
        while True:
            sight = await self._in_thread(self._see)
            verdict = self._comparison.judge(sight.reading, self._clock(), asked=asked)
            if verdict is not Verdict.SETTLE:
                break
            await self._sleep(self._pace.settle)
        self._folders = sight.folders
        self._notice_pinned(sight.nameless)
        if verdict is Verdict.BUILD:
            await self._rebuild(sight.reading)

    async def _rebuild(self, reading: Reading) -> None:
        self._failure = None
        self._comparison.looked_at(reading)
        built = await self._in_thread(partial(self._try, reading))
        if isinstance(built, ConfigError):
            self._reject(built)
        else:
            self._adopt(built)

    def _try(self, reading: Reading) -> T | ConfigError:
        """Build, in the thread. Raise nothing, and pass on no error's text, because it may contain a key."""
        if isinstance(reading, ConfigError):
            return reading
        try:
            return self._build(reading)
        except ConfigError as error:
            return error.with_traceback(None)  # the traceback would keep alive all that was read
        except BaseException as error:  # noqa: BLE001 - a strategy of the user's own may raise anything, SystemExit too
            message = f"cannot be built: {_described(error)}"
            return ConfigError([Fault.whole(self._files.models, message)])

    def _see(self) -> _Sight:
        """Read the files and their folders, in the thread."""
        reading: Reading
        try:
            reading = read(self._files)
        except ConfigError as error:
            reading = error
        return _Sight(reading, identities(self._names), pinned(self._names))

    async def _in_thread(self, work: Callable[[], R]) -> R:
        job = self._threads.submit(work)
        wait([job], _HEAD_START)
        return job.result() if job.done() else await asyncio.wrap_future(job)

    async def _failed(self, error: str) -> None:
        """Report an error of our own once between two builds, and go on after a tick."""
        if error != self._failure:
            self._failure = error
            with suppress(Exception):
                self._notice("reload.failed", {"error": error})
        await self._sleep(self._pace.tick)

    def _notice_pinned(self, files: Iterable[Path]) -> None:
        for file in files:
            self._notice_once("reload.pinned_file", file, {"file": str(file), "advice": _FOLDER_ADVICE})

    def _notice_once(self, event: str, about: object, fields: Mapping[str, object]) -> None:
        if (event, about) not in self._noticed:
            self._noticed.add((event, about))
            self._notice(event, fields)


def _described(error: BaseException) -> str:
    """Return an error's type and place, never its text."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(frame.f_code.co_filename).name}:{line}"
