"""Targets that do not take what they are given: the emitter goes on, and every record is written or counted."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import gateway
from gateway.observe.request import Requests
from gateway.observe.sink import LogSink
from tests.observe.outcomes import ended

pytestmark = pytest.mark.usefixtures("watched")

PATIENCE = 20.0
CANARY = "sk-canary-0123456789"

MakeSink = Callable[..., LogSink]
Read = Callable[[Path], list[dict[str, Any]]]
Until = Callable[[Callable[[], bool]], None]


def emit(sink: LogSink, numbers: range, **fields: object) -> None:
    for n in numbers:
        sink.emit({"event": "n", "n": n} | fields)


def accounted(records: list[dict[str, Any]]) -> tuple[list[int], int]:
    """Return the numbers written and how many are told to be dropped."""
    dropped = sum(record["count"] for record in records if record["event"] == "log.dropped")
    return [record["n"] for record in records if record["event"] == "n"], dropped


def read_fifo(path: Path, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    with path.open("rb") as file:
        while not enough(records):
            records.append(json.loads(file.readline()))
    return records


def run(script: str, **options: Any) -> subprocess.Popen[str]:
    root = str(Path(gateway.__file__).parents[1])
    environ = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen([sys.executable, "-c", script], text=True, env=environ, **options)  # noqa: S603 - our own script


def test_records_from_before_the_start_are_written_in_order(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "output.log"
    sink = LogSink(str(path))
    emit(sink, range(300))
    sink.start()
    emit(sink, range(300, 600))
    sink.close(PATIENCE)
    assert accounted(read(path)) == (list(range(600)), 0)
    assert (sink.dropped, sink.target) == (0, str(path))


def test_the_file_is_there_before_the_first_record(tmp_path: Path, make_sink: MakeSink, until: Until) -> None:
    make_sink(tmp_path / "logs" / "output.log")
    until((tmp_path / "logs" / "output.log").exists)


def test_stdout_and_stderr_are_targets(make_sink: MakeSink, capfd: pytest.CaptureFixture[str]) -> None:
    sink = make_sink("stdout")
    sink.emit({"event": "first"})
    sink.retarget("stderr")
    sink.emit({"event": "second"})
    assert sink.flush(PATIENCE)
    sink.close(PATIENCE)
    assert capfd.readouterr() == ('{"event":"first"}\n', '{"event":"second"}\n')


def test_a_full_disk_drops_what_the_queue_cannot_hold_and_tells_the_count(
    tmp_path: Path, make_sink: MakeSink, read: Read, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = make_sink("/dev/full", capacity=10)
    sink.set_secrets(frozenset({CANARY}))
    sink.emit({"event": "n", "n": 0})
    until(lambda: sink._failing)
    emit(sink, range(1, 31))
    assert sink.dropped == 20
    assert not sink.flush(0.05)
    sink.retarget(str(tmp_path / "output.log"))
    assert sink.flush(PATIENCE)
    records = read(tmp_path / "output.log")
    assert accounted(records) == (list(range(11)), 20)
    assert records[-1] == {
        "time": records[-1]["time"],
        "level": "warning",
        "event": "log.dropped",
        "count": 20,
        "reason": "/dev/full: no space left on device",
    }
    told = capfd.readouterr().err
    assert told.startswith("gateway: cannot log: /dev/full: no space left on device")
    assert told.count("\n") == 1


def test_a_recovered_target_that_fails_again_is_told_again(
    tmp_path: Path, make_sink: MakeSink, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = make_sink("/dev/full")
    for n in range(2):
        sink.emit({"n": n})
        until(lambda: sink._failing)
        sink.retarget(str(tmp_path / "output.log"))
        assert sink.flush(PATIENCE)
        sink.retarget("/dev/full")
        assert sink.flush(PATIENCE)
    assert capfd.readouterr().err.count("cannot log") == 2


def test_a_burst_beyond_the_queue_is_told_as_one(tmp_path: Path, read: Read) -> None:
    sink = LogSink(str(tmp_path / "output.log"), capacity=5)
    emit(sink, range(8))
    sink.start()
    sink.close(PATIENCE)
    records = read(tmp_path / "output.log")
    assert accounted(records) == ([0, 1, 2, 3, 4], 3)
    assert records[-1]["reason"] == "the writer fell behind"


def requests(*names: str) -> Requests:
    return Requests([float(place) for place, _ in enumerate(names)], [replace(ended(), request_id=n) for n in names])


def test_requests_that_come_together_are_counted_and_written_one_by_one(tmp_path: Path, read: Read) -> None:
    sink = LogSink(str(tmp_path / "output.log"), capacity=5)
    sink.emit(requests("a"))
    sink.emit({"event": "other"})
    for names in ("bc", "def", "gh"):
        sink.emit(requests(*names))
    assert sink.dropped == 4
    sink.start()
    assert sink.flush(PATIENCE)
    sink.emit(requests(*"ijklmn"))
    sink.close(PATIENCE)
    records = read(tmp_path / "output.log")
    written = [record.get("request_id", record["event"]) for record in records]
    assert written == ["a", "other", "b", "c", "d", "log.dropped", "i", "j", "k", "l", "m", "log.dropped"]
    assert [record["count"] for record in records if record["event"] == "log.dropped"] == [4, 1]
    assert [record["time"][17:19] for record in records[6:9]] == ["00", "01", "02"]


def test_requests_that_were_never_written_are_counted_one_by_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = LogSink(str(tmp_path / "output.log"))
    sink.emit(requests(*"abc"))
    sink.emit({"event": "other"})
    sink.close(PATIENCE)
    sink.emit(requests(*"de"))
    assert sink.dropped == 6
    assert capfd.readouterr().err == "gateway: 4 log records lost: closed before they were written\n"


def test_a_fifo_without_a_reader_waits_for_one(
    fifo: Path, make_sink: MakeSink, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = make_sink(fifo, capacity=5)
    until(lambda: sink._failing)
    emit(sink, range(8))
    records = read_fifo(fifo, lambda records: len(records) == 6)
    assert accounted(records) == ([0, 1, 2, 3, 4], 3)
    assert records[-1]["reason"] == f"{fifo}: nobody reads it"
    assert f"cannot log: {fifo}: nobody reads it" in capfd.readouterr().err


def test_an_unread_fifo_holds_nobody_up_and_every_record_is_written_or_counted(fifo: Path, make_sink: MakeSink) -> None:
    idle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = make_sink(fifo, capacity=50)
    emitted = 0
    while not sink._failing:
        emit(sink, range(emitted, emitted + 1), pad="x" * 1000)
        emitted += 1
    emit(sink, range(emitted, emitted + 500), pad="x" * 1000)
    emitted += 500
    assert sink.dropped >= 450
    records = read_fifo(fifo, lambda records: len((seen := accounted(records))[0]) + seen[1] == emitted)
    os.close(idle)
    numbers, dropped = accounted(records)
    assert numbers == sorted(set(numbers))
    assert dropped == sink.dropped


def test_closing_gives_a_stuck_target_one_chance_and_tells_what_was_lost(
    fifo: Path, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = LogSink(str(fifo), capacity=50, pause=0.01, gather=0)
    sink.start()
    until(lambda: sink._failing)
    emit(sink, range(60))
    sink.close(PATIENCE)
    assert not sink._thread.is_alive()
    assert sink.dropped == 60
    assert f"gateway: 60 log records lost: {fifo}: nobody reads it\n" in capfd.readouterr().err
    emit(sink, range(5))
    sink.close(PATIENCE)
    assert sink.dropped == 65
    assert capfd.readouterr().err == ""


def test_lost_records_include_those_that_an_unsent_count_told(until: Until, capfd: pytest.CaptureFixture[str]) -> None:
    sink = LogSink("/dev/full", capacity=5, pause=0.01, gather=0)
    emit(sink, range(7))
    sink.start()
    until(lambda: sink._failing)
    sink.close(PATIENCE)
    assert sink.dropped == 7
    assert "gateway: 7 log records lost: /dev/full: no space left on device\n" in capfd.readouterr().err


def test_closing_does_not_wait_longer_than_it_is_told(
    fifo: Path, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    idle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = LogSink(str(fifo), pause=PATIENCE, gather=0)
    emit(sink, range(100), pad="x" * 1000)
    sink.start()
    until(lambda: sink._lines.sent > 0)  # the FIFO is full, and waited for
    sink.close(0)
    assert sink._thread.is_alive()
    assert "log records lost: closed before they were written" in capfd.readouterr().err
    os.close(idle)
    sink._thread.join(PATIENCE)
    assert not sink._thread.is_alive()


def test_a_sink_that_never_started_tells_what_it_held(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sink = LogSink(str(tmp_path / "output.log"))
    emit(sink, range(3))
    sink.close(PATIENCE)
    assert capfd.readouterr().err == "gateway: 3 log records lost: closed before they were written\n"


def test_a_new_target_takes_what_comes_after_it(tmp_path: Path, make_sink: MakeSink, read: Read) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    sink = make_sink(first)
    emit(sink, range(200))
    sink.retarget(str(second))
    emit(sink, range(200, 400))
    sink.retarget(str(first))
    emit(sink, range(400, 500))
    sink.retarget(str(first))
    emit(sink, range(500, 600))
    assert sink.flush(PATIENCE)
    assert accounted(read(first))[0] == [*range(200), *range(400, 600)]
    assert accounted(read(second))[0] == [*range(200, 400)]


def test_a_new_target_takes_what_a_failing_one_left(
    fifo: Path, tmp_path: Path, make_sink: MakeSink, read: Read, until: Until
) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = make_sink(fifo)
    emit(sink, range(200), pad="x" * 1000)
    until(lambda: sink._failing)
    sink.retarget(str(tmp_path / "output.log"))
    assert sink.flush(PATIENCE)
    whole, _, torn = os.read(reader, 1_000_000).rpartition(b"\n")
    assert os.read(reader, 1) == b"", "it is closed"
    os.close(reader)
    assert torn
    through_fifo = [json.loads(line)["n"] for line in whole.splitlines()]
    assert through_fifo + accounted(read(tmp_path / "output.log"))[0] == list(range(200))


def test_a_target_that_was_left_is_not_turned_back_to(
    fifo: Path, make_sink: MakeSink, read: Read, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    output = fifo.with_name("output.log")
    sink = make_sink("/dev/full")
    emit(sink, range(10))
    until(lambda: sink._failing)
    sink.retarget(str(fifo))
    emit(sink, range(10, 20))
    until(lambda: str(fifo) in (sink._reason or ""))
    sink.retarget(str(output))
    emit(sink, range(20, 30))
    assert sink.flush(PATIENCE)
    assert accounted(read(output)) == (list(range(30)), 0)
    assert re.findall("cannot log: (.*?):", capfd.readouterr().err) == ["/dev/full"]
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for number, target in enumerate((fifo, output), 30):
        sink.retarget(str(target))
        emit(sink, range(number, number + 1))
    assert sink.flush(PATIENCE)
    assert json.loads(os.read(reader, 1_000))["n"] == 30
    os.close(reader)
    assert accounted(read(output)) == ([*range(30), 31], 0)


def test_closing_right_after_leaving_a_failing_target_loses_nothing(tmp_path: Path, read: Read, until: Until) -> None:
    sink = LogSink("/dev/full", pause=0.01, gather=0)
    sink.start()
    emit(sink, range(10))
    until(lambda: sink._failing)
    sink.retarget(str(tmp_path / "output.log"))
    sink.close(PATIENCE)
    assert accounted(read(tmp_path / "output.log")) == (list(range(10)), 0)


def test_many_threads_lose_nothing(tmp_path: Path, make_sink: MakeSink, read: Read) -> None:
    sink = make_sink(tmp_path / "output.log")
    threads = [threading.Thread(target=emit, args=(sink, range(n, 4000, 4))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.flush(PATIENCE)
    numbers, _ = accounted(read(tmp_path / "output.log"))
    assert sorted(numbers) == list(range(4000))
    assert [n for n in numbers if n % 4 == 0] == list(range(0, 4000, 4))


def test_no_secret_reaches_a_line_or_stderr_even_after_the_configuration_lost_it(
    tmp_path: Path, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / CANARY / "output.log"
    path.parent.touch()
    sink = LogSink(str(path), pause=0.01, gather=0)
    sink.set_secrets(frozenset({CANARY}))
    sink.set_secrets(frozenset({"another-secret"}))
    sink.start()
    until(lambda: sink._failing)
    sink.emit({"event": "x", "detail": f"Bearer {CANARY}", "nested": [{"a": "another-secret"}]})
    path.parent.unlink()
    assert sink.flush(PATIENCE)
    sink.close(PATIENCE)
    assert path.read_text() == '{"event":"x","detail":"Bearer ***","nested":[{"a":"***"}]}\n'
    told = capfd.readouterr().err
    assert "***/output.log: a part of its path is not a folder" in told
    assert CANARY not in told


def test_a_target_is_checked_before_it_is_taken(tmp_path: Path, fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = LogSink()
    (tmp_path / "file").touch()
    for fine in ("stdout", "stderr", "logs/deep/output.log", "/dev/full", str(fifo)):
        sink.check(fine)
    assert Path("logs/deep/output.log").exists()
    for bad, why in (
        ("logs", "logs: is a folder"),
        ("file/x", "file/x: a part of its path is not a folder"),
        ("file/x/y", "file/x/y: a part of its path is not a folder"),
        ("", ": no such file or directory"),
        ("a\0b", "a\0b: not a file name"),
    ):
        with pytest.raises(OSError, match=f"^{re.escape(why)}$"):
            sink.check(bad)


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_a_target_that_may_not_be_written_is_told(unprivileged: Path, kind: str) -> None:
    path = unprivileged / "x"
    path.touch() if kind == "file" else os.mkfifo(path)
    path.chmod(0o400)
    with pytest.raises(OSError, match=r"^x: permission denied$"):
        LogSink().check("x")


def test_an_unread_stdout_holds_nobody_up() -> None:
    child = run(
        """
import sys, time
from gateway.observe.sink import LogSink
sink = LogSink("stdout", capacity=100, pause=0.01, gather=0)
sink.start()
n = 0
while not sink._failing:
    sink.emit({"event": "n", "n": n, "pad": "x" * 6000})
    n += 1
for _ in range(300):
    sink.emit({"event": "n", "n": n, "pad": "x" * 100})
    n += 1
print(n, file=sys.stderr, flush=True)
sys.stdin.read()
assert sink.flush(20)
sink.close(20)
""",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin
    assert child.stdout
    assert child.stderr
    assert "cannot log: stdout: nobody reads it" in child.stderr.readline()
    emitted = int(child.stderr.readline())
    child.stdin.close()
    records = [json.loads(line) for line in child.stdout]
    assert child.wait(PATIENCE) == 0
    child.stdout.close()
    child.stderr.close()
    numbers, dropped = accounted(records)
    assert numbers == sorted(set(numbers))
    assert dropped >= 200
    assert len(numbers) + dropped == emitted


def test_a_closed_stdout_ends_nothing() -> None:
    child = run(
        """
import sys
from gateway.observe.sink import LogSink
sink = LogSink("stdout", pause=0.01, gather=0)
sink.start()
sys.stdin.read()
for n in range(3):
    sink.emit({"n": n})
sink.close(20)
""",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout
    child.stdout.close()
    _, told = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    assert "gateway: cannot log: stdout: its reader has gone; " in told
    assert "gateway: 3 log records lost: stdout: its reader has gone\n" in told


def test_streams_that_were_never_open_are_an_error_and_no_other_file() -> None:
    child = run(
        """
import os, sys
from gateway.observe.sink import LogSink
lent = os.open("/dev/null", os.O_RDWR)
sink = LogSink("stderr", pause=0.01, gather=0)
sink.start()
sink.emit({"n": 1})
sink.close(20)
try:
    sink.check("stdout")
except OSError as error:
    sys.exit(7 if str(error) == "stdout: bad file descriptor" and sink.dropped == 1 else 8)
""",
        preexec_fn=lambda: os.closerange(1, 3),
    )
    assert child.wait(PATIENCE) == 7


@pytest.mark.parametrize("event", ["space", "truncated", "removed", "renamed"])
def test_a_line_cut_by_a_full_disk_is_completed_or_written_again(tmp_path: Path, read: Read, event: str) -> None:
    """RLIMIT_FSIZE makes a write fall short and the next one fail, as a disk does that fills in its middle."""
    path, rotated = tmp_path / "output.log", tmp_path / "output.log.1"
    child = run(
        f"""
import os, resource, time
from gateway.observe.sink import LogSink
path, rotated = {str(path)!r}, {str(rotated)!r}
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
sink = LogSink(path, pause=0.01, gather=0)
for n in range(30):
    sink.emit({{"event": "n", "n": n, "pad": "x" * 30}})
sink.start()
while not sink._failing:
    time.sleep(0.001)
assert os.stat(path).st_size == 1000
with open(path) as file:
    assert file.read()[-1] != "\\n"
match {event!r}:
    case "truncated":
        os.truncate(path, 0)
    case "removed":
        os.unlink(path)
    case "renamed":
        os.rename(path, rotated)
        open(path, "x").close()
if {event!r} != "removed":
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert sink.flush(20)
sink.close(20)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
""",
        stderr=subprocess.PIPE,
    )
    _, told = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, told
    assert told.startswith(f"gateway: cannot log: {path}: file too large")
    numbers = accounted(read(path))[0]
    if event == "renamed":
        numbers = accounted(read(rotated))[0] + numbers
    first = 0 if event in {"space", "renamed"} else 16  # the sixteen lines that fit went with the file
    assert numbers == list(range(first, 30))


def test_a_broken_end_is_closed_off_when_the_disk_has_room_for_it(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(b"half")
    child = run(
        f"""
import resource, time
from gateway.observe.sink import LogSink
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4, most))
sink = LogSink({str(path)!r}, pause=0.01, gather=0)
sink.emit({{"n": 1}})
sink.start()
while not sink._failing:
    time.sleep(0.001)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert sink.flush(20)
sink.close(20)
""",
        stderr=subprocess.PIPE,
    )
    _, told = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, told
    assert path.read_bytes() == b'half\n{"n":1}\n'


def test_secrets_spelled_out_beforehand_are_masked_once_they_are_set(
    tmp_path: Path, make_sink: MakeSink, read: Read
) -> None:
    sink = make_sink(str(tmp_path / "output.log"))
    sink.prepare_secrets(frozenset({CANARY}))
    sink.emit({"event": "before", "key": CANARY})
    assert sink.flush(PATIENCE)
    sink.set_secrets(frozenset({CANARY}))
    sink.emit({"event": "after", "key": CANARY})
    assert sink.flush(PATIENCE)
    assert [record["key"] for record in read(tmp_path / "output.log")] == [CANARY, "***"]
