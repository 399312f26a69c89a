"""logrotate in both modes while several threads log: every line is somewhere, whole, once."""

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from gateway.observe.sink import LogSink

PATIENCE = 20.0
THREADS = 4
ROTATIONS = 8

MakeSink = Callable[..., LogSink]
Read = Callable[[Path], list[dict[str, Any]]]
Until = Callable[[Callable[[], bool]], None]


class Emitters:
    """Threads that emit numbered records until they are stopped, never more than the queue holds."""

    def __init__(self, sink: LogSink) -> None:
        self._gate = threading.Lock()
        self.emitted: Counter[tuple[int, int]] = Counter()
        self._sink = sink
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._emit, args=(number,)) for number in range(THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._sink.flush(PATIENCE)

    def _emit(self, thread: int) -> None:
        n = 0
        while not self._stop.is_set():
            with self._gate:
                self._sink.emit({"thread": thread, "n": n})
                self.emitted[thread, n] += 1
            n += 1
            if n % 50 == 0:
                self._sink.flush(PATIENCE)


def written(folder: Path, read: Read) -> Counter[tuple[int, int]]:
    return Counter((record["thread"], record["n"]) for path in folder.iterdir() for record in read(path))


def grown(path: Path, beyond: int) -> Callable[[], bool]:
    return lambda: path.exists() and path.stat().st_size > beyond


def drop_half_line(path: Path) -> None:
    """Do away with the end of a copy that was made while a line was written; the line is in the next file."""
    data = path.read_bytes()
    os.truncate(path, data.rfind(b"\n") + 1)


def test_renamed_and_created(tmp_path: Path, make_sink: MakeSink, read: Read, until: Until) -> None:
    path = tmp_path / "output.log"
    with Emitters(make_sink(path)) as emitters:
        for rotation in range(ROTATIONS):
            until(grown(path, 1000))
            path.rename(tmp_path / f"output.log.{rotation}")
            with suppress(FileExistsError):
                path.touch(exist_ok=False)
    assert written(tmp_path, read) == emitters.emitted


def test_renamed_only(tmp_path: Path, make_sink: MakeSink, read: Read, until: Until) -> None:
    path = tmp_path / "output.log"
    with Emitters(make_sink(path)) as emitters:
        for rotation in range(ROTATIONS):
            until(grown(path, 1000))
            path.rename(tmp_path / f"output.log.{rotation}")
    assert written(tmp_path, read) == emitters.emitted


def test_copied_and_truncated(tmp_path: Path, make_sink: MakeSink, read: Read, until: Until) -> None:
    path = tmp_path / "output.log"
    with Emitters(make_sink(path)) as emitters:
        for rotation in range(ROTATIONS):
            until(grown(path, 1000))
            copy = tmp_path / f"output.log.{rotation}"
            shutil.copyfile(path, copy)
            until(grown(path, copy.stat().st_size))
            os.truncate(path, 0)
    for copy in tmp_path.glob("*.log.*"):
        drop_half_line(copy)
    assert written(tmp_path, read) == emitters.emitted


def test_an_idle_log_follows_its_path(tmp_path: Path, make_sink: MakeSink, until: Until) -> None:
    path = tmp_path / "logs" / "output.log"
    make_sink(path)
    until(path.exists)
    path.unlink()
    until(path.exists)
    path.rename(tmp_path / "output.log.1")
    until(path.exists)
    path.parent.rename(tmp_path / "aside")
    until(path.exists)
