"""Watches folders, and detects what a watch cannot see. It knows nothing about the contents of the files.

Theory. A watch follows an inode, never a name. A file saved by renaming another over it has a new inode, so a watch on
the file misses everything after the first save: the folder is watched instead. A replaced, remounted or removed folder
does the same to the folder's watch: `identities` shows when a new watch is needed. A single file mounted into a
container keeps its inode for ever: `pinned` finds such files.

watchfiles blocks while it arms, waits and closes, so each watch has a thread.
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import watchfiles
from watchfiles import Change

_PATIENCE: Final = 5.0
Identities = Mapping[Path, tuple[int, int] | None]


def identities(names: Iterable[Path]) -> Identities:
    """Return the folders to watch for `names`, with their device and inode; None for a missing folder. Blocking.

    They are the folders that hold the names and, where a name is a symbolic link, the folder of the real file.
    """
    names = tuple(names)
    links = (name for name in names if os.path.islink(name))  # noqa: PTH114 - is_symlink raises where access is denied
    real = [Path(os.path.realpath(link)) for link in links]
    return {file.parent: _identity(file.parent) for file in (*names, *real)}


def _identity(folder: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None


def mount_points(mountinfo: str) -> frozenset[str]:
    r"""Return the mount points of a /proc/[pid]/mountinfo text: each line's fifth field, `\040` decoded (proc(5))."""
    fields = (line.split(" ") for line in mountinfo.splitlines())
    return frozenset(_decoded(point) for line in fields for point in line[4:5])


def _decoded(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def own_mount_points(mountinfo: Path = Path("/proc/self/mountinfo")) -> frozenset[str]:
    """Return this process's mount points; none where the system has no such file. Blocking."""
    with suppress(OSError):
        return mount_points(mountinfo.read_text("utf-8", errors="surrogateescape"))
    return frozenset()


def pinned(files: Iterable[Path], mounts: frozenset[str] = frozenset()) -> tuple[Path, ...]:
    """Return those of `files` that no save can reach: mount points, or files without a name left. Blocking."""
    return tuple(file for file in files if _nameless(file) or (mounts and os.path.realpath(file) in mounts))


def _nameless(file: Path) -> bool:
    with suppress(OSError):
        return file.stat().st_nlink == 0
    return False


class Watch:
    """Watches folders by events, or by polling where events are not available (inotify limits, no permission).

    `stir` is called on the loop once the watch is armed, at each event and at the end. `refused` says why there are no
    events; when polling is refused too, `stir` is called at the end only. The watch is `over` when another one should
    be armed: one of its folders is gone (a new one may get the old inode), or it broke, and `failure` says why.

    It is its own stop event: watchfiles calls `is_set` at every step, and only of a watch that is armed.
    Mutable, and set once: `over`, `refused`, `failure`, `_armed` by the thread, `_closing` by the loop.
    """

    def __init__(self, folders: Iterable[Path], stir: Callable[[], None], threads: Executor) -> None:
        self.over = False
        self.refused: str | None = None
        self.failure: str | None = None
        self._armed = False
        self._closing = False
        self._folders = frozenset(str(folder.absolute()) for folder in folders)  # as events name them
        loop = asyncio.get_running_loop()
        self._stir = partial(loop.call_soon_threadsafe, stir)
        self._ended = loop.run_in_executor(threads, self._run)
        self._ended.add_done_callback(lambda _: stir())

    def is_set(self) -> bool:
        """Return whether watchfiles is to stop."""
        if not self._armed:
            self._armed = True
            self._stir()
        return self._closing

    async def close(self) -> None:
        """End the watch, which takes one step of watchfiles. If it hangs (a dead mount), leave it to its thread."""
        self._closing = True
        await asyncio.wait({self._ended}, timeout=_PATIENCE)

    def _run(self) -> None:
        self.over = self._follow(polling=None) or self._follow(polling=True)

    def _follow(self, *, polling: bool | None) -> bool:
        """Follow the folders until closed, gone or broken; return False if the watch could not be armed."""
        try:
            self._pass_on(polling=polling)
        except FileNotFoundError:
            return True
        except BaseException as error:  # noqa: BLE001 - a panic in watchfiles' Rust code is no Exception
            if not self._armed:
                self.refused = self.refused or str(error)
                return False
            self.failure = str(error)
        return True

    def _pass_on(self, *, polling: bool | None) -> None:
        batches = watchfiles.watch(
            *self._folders,
            watch_filter=None,
            debounce=100,
            step=20,
            stop_event=self,
            rust_timeout=0,  # never: an event that arrives in the moment of a timeout is dropped
            force_polling=polling,
            recursive=False,
        )
        for batch in batches:
            self._stir()
            if any(change is Change.deleted and path in self._folders for change, path in batch):
                return
