"""Sinks that retry fast and are closed at the end, and what it takes to read what they wrote."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.sink import LogSink

PATIENCE = 20.0
NOBODY = 65534

MakeSink = Callable[..., LogSink]
Read = Callable[[Path], list[dict[str, Any]]]
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def make_sink() -> Iterator[MakeSink]:
    """Start a sink: `make_sink(path, capacity=10)`."""
    made: list[LogSink] = []

    def make(target: Path | str, *, capacity: int = 10_000, pause: float = 0.01) -> LogSink:
        made.append(LogSink(str(target), capacity=capacity, pause=pause, gather=0))
        made[-1].start()
        return made[-1]

    yield make
    for sink in made:
        sink.close(PATIENCE)


@pytest.fixture
def read() -> Read:
    """Return a file's records; a torn line fails to parse."""

    def records(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    return records


@pytest.fixture
def until() -> Until:
    """Wait for another thread to make a condition true."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.001)

    return wait


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return a FIFO that nobody has opened."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def unprivileged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder of one's own, as somebody whom permissions bind; use relative paths."""
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:
        os.chown(tmp_path, NOBODY, -1)
        os.seteuid(NOBODY)
    yield Path()
    os.seteuid(user)
