import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.observe.copytruncate import Tail
from gateway.observe.target import Lines, Target, open_for_append, reason

GRACE = 1.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "output.log"


@pytest.fixture
def target(path: Path, clock: Clock) -> Iterator[Target]:
    made = Target(str(path), pause=GRACE, clock=clock)
    yield made
    made.close()


def test_the_folder_is_created_and_the_file_is_not_for_everybody(target: Target, path: Path) -> None:
    target.write(Lines())
    assert path.read_bytes() == b""
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0


def test_lines_are_appended_to_what_is_there(target: Target, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"before\n")
    target.write(Lines(b"a\nb\n"))
    target.write(Lines(b"c\n"))
    assert path.read_bytes() == b"before\na\nb\nc\n"


def test_a_line_that_another_process_left_broken_spoils_none_of_ours(target: Target, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"half":')
    target.write(Lines(b"a\n"))
    assert path.read_bytes() == b'{"half":\na\n'


def test_a_new_file_under_the_path_is_taken_at_once(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n"))
    rotated = path.rename(path.with_suffix(".1"))
    path.touch()
    target.write(Lines(b"b\n"))
    assert (rotated.read_bytes(), path.read_bytes()) == (b"a\n", b"b\n")


def test_a_renamed_file_is_written_until_its_successor_comes(target: Target, path: Path, clock: Clock) -> None:
    target.write(Lines(b"a\n"))
    rotated = path.rename(path.with_suffix(".1"))
    target.write(Lines(b"b\n"))
    clock.now += GRACE / 2
    target.write(Lines(b"c\n"))
    assert not path.exists()
    path.touch()
    target.write(Lines(b"d\n"))
    assert (rotated.read_bytes(), path.read_bytes()) == (b"a\nb\nc\n", b"d\n")


def test_a_renamed_file_that_gets_no_successor_is_given_one(target: Target, path: Path, clock: Clock) -> None:
    target.write(Lines(b"a\n"))
    path.rename(path.with_suffix(".1"))
    target.write(Lines())
    clock.now += GRACE
    target.write(Lines())
    assert path.read_bytes() == b""


def test_a_file_that_came_back_starts_the_grace_anew(target: Target, path: Path, clock: Clock) -> None:
    target.write(Lines(b"a\n"))
    aside = path.with_suffix(".1")
    path.rename(aside)
    target.write(Lines())
    aside.rename(path)
    target.write(Lines())
    clock.now += GRACE
    path.rename(aside)
    target.write(Lines(b"b\n"))
    assert aside.read_bytes() == b"a\nb\n"
    assert not path.exists()


def test_a_removed_file_is_made_again_at_once(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n"))
    path.unlink()
    target.write(Lines(b"b\n"))
    assert path.read_bytes() == b"b\n"


def test_a_removed_folder_is_made_again(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n"))
    path.unlink()
    path.parent.rmdir()
    target.write(Lines(b"b\n"))
    assert path.read_bytes() == b"b\n"


def test_a_folder_that_became_a_file_is_an_error_until_it_is_one_again(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n"))
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    lines = Lines(b"b\n")
    with pytest.raises(FileExistsError):
        target.write(lines)
    assert lines.left == 1
    path.parent.unlink()
    target.write(lines)
    assert path.read_bytes() == b"b\n"


def test_a_truncated_file_goes_on_from_its_start(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n" * 100))
    os.truncate(path, 0)
    target.write(Lines(b"b\n"))
    assert path.read_bytes() == b"b\n"


def test_lines_between_copy_and_truncation_are_written_again(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n" * 3000))
    copy = Path(shutil.copy(path, path.with_suffix(".1")))
    target.write(Lines(b"b\nc\n"))
    os.truncate(path, 0)
    target.write(Lines(b"d\n"))
    target.write(Lines(b"e\n"))
    assert (copy.read_bytes(), path.read_bytes()) == (b"a\n" * 3000, b"b\nc\nd\ne\n")


def test_lines_are_written_again_though_others_follow_none(target: Target, path: Path) -> None:
    target.write(Lines(b"a\n"))
    shutil.copy(path, path.with_suffix(".1"))
    target.write(Lines(b"b\n"))
    os.truncate(path, 0)
    target.write(Lines())
    assert path.read_bytes() == b"b\n"


def test_a_line_that_was_copied_in_part_is_written_again_whole(target: Target, path: Path) -> None:
    target.write(Lines(b"aaa\nbbb\nccc\n"))
    path.with_suffix(".1").write_bytes(b"aaa\nbb")
    os.truncate(path, 0)
    target.write(Lines(b"ddd\n"))
    assert path.read_bytes() == b"bbb\nccc\nddd\n"


def test_a_copy_made_after_the_last_line_lacks_nothing(target: Target, path: Path) -> None:
    target.write(Lines(b"a\nb\n"))
    shutil.copy(path, path.with_suffix(".1"))
    os.truncate(path, 0)
    target.write(Lines(b"c\n"))
    assert path.read_bytes() == b"c\n"


@pytest.mark.parametrize("other", [b"", b"x\n", b"a\nb\nc\nd\ne\n"])
def test_a_file_emptied_on_purpose_stays_so(target: Target, path: Path, other: bytes) -> None:
    target.write(Lines(b"a\nb\nc\n"))
    path.with_suffix(".1").write_bytes(other)
    (path.parent / "folder").mkdir()
    old = Path(shutil.copy(path, path.with_suffix(".2")))
    os.truncate(old, 2)
    os.utime(old, (0, 0))
    os.truncate(path, 0)
    target.write(Lines(b"d\n"))
    assert path.read_bytes() == b"d\n"


def test_a_copy_that_may_not_be_read_is_none(unprivileged: Path, clock: Clock) -> None:
    path = unprivileged / "output.log"
    target = Target("output.log", pause=GRACE, clock=clock)
    target.write(Lines(b"a\n"))
    Path(shutil.copy(path, "copy")).chmod(0)
    target.write(Lines(b"b\n"))
    os.truncate(path, 0)
    target.write(Lines(b"c\n"))
    target.close()
    assert path.read_bytes() == b"c\n"


def remembering(size: int, *lines: bytes) -> Tail:
    tail = Tail(size)
    for line in lines:
        tail.add(line)
    return tail


@pytest.fixture
def truncated(path: Path) -> Path:
    """Return a log that was copied after its first line and truncated later."""
    path.parent.mkdir()
    path.touch()
    path.with_suffix(".1").write_bytes(b"first\n")
    return path


@pytest.mark.parametrize(
    ("tail", "lost"),
    [
        (remembering(0, b"first\n"), b""),
        (remembering(0, b"first\n", b"second\n"), b"second\n"),
        (remembering(6, b"second\n"), b"second\n"),
        (remembering(5, b"second\n"), b""),
        (remembering(0, b"other\n", b"second\n"), b""),
        (remembering(0, b"first\n", b"x" * 2_000_000), b""),
    ],
)
def test_what_followed_the_copy_is_lost(truncated: Path, tail: Tail, lost: bytes) -> None:
    assert tail.shrink(truncated, truncated.stat()) == lost


def test_what_was_written_unaware_of_the_truncation_is_not_lost(truncated: Path) -> None:
    truncated.write_bytes(b"third\n")
    tail = remembering(0, b"first\n", b"second\n", b"third\n")
    assert tail.shrink(truncated, truncated.stat()) == b"second\n"


@pytest.mark.parametrize(("latest", "lost"), [(b"first\nsecond\n", b"third\n"), (b"first\nsecond\nthird\n", b"")])
def test_of_several_copies_the_latest_counts(truncated: Path, latest: bytes, lost: bytes) -> None:
    truncated.with_suffix(".2").write_bytes(latest)
    tail = remembering(0, b"first\n", b"second\n", b"third\n")
    assert tail.shrink(truncated, truncated.stat()) == lost


def test_no_more_than_a_mib_is_remembered() -> None:
    tail = remembering(0, *[b"x" * (1 << 16)] * 40)
    assert (sum(map(len, tail._pieces)), tail.size) == (1 << 20, 40 << 16)


def test_a_second_truncation_finds_a_copy_of_what_was_written_unaware_of_the_first(truncated: Path) -> None:
    truncated.write_bytes(b"third\n")
    tail = remembering(0, b"first\n", b"second\n", b"third\n")
    again = tail.shrink(truncated, truncated.stat())
    truncated.with_suffix(".1").write_bytes(b"third\n")
    tail.add(again)
    os.truncate(truncated, 0)
    assert tail.shrink(truncated, truncated.stat()) == b"second\n"


def test_a_log_whose_folder_went_finds_no_copy(truncated: Path) -> None:
    now = truncated.stat()
    shutil.rmtree(truncated.parent)
    assert remembering(0, b"first\n", b"second\n").shrink(truncated, now) == b""


def test_a_full_pipe_keeps_the_rest_of_a_line_for_its_reader(fifo: Path, clock: Clock) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    target = Target(str(fifo), pause=0, clock=clock)
    data = b"".join(b"%07d\n" % n for n in range(20_000))
    lines = Lines(data + b"x" * 100_000 + b"\n")
    seen = bytearray()
    while lines.left:
        try:
            target.write(lines)
        except BlockingIOError:
            seen += os.read(reader, 10_001)
    target.close()
    while piece := os.read(reader, 100_000):
        seen += piece
    os.close(reader)
    assert seen == lines.data


def test_a_line_whose_reader_left_is_written_again_for_the_next_one(fifo: Path, clock: Clock) -> None:
    first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    target = Target(str(fifo), pause=0, clock=clock)
    lines = Lines(b"x" * 100_000 + b"\nlast\n")
    with pytest.raises(BlockingIOError):
        target.write(lines)
    assert lines.sent == 65_536
    os.close(first)
    with pytest.raises(BrokenPipeError):
        target.write(lines)
    assert lines.sent == 0
    with pytest.raises(OSError, match="No such device") as raised:
        target.write(lines)
    assert reason("fifo", raised.value) == "fifo: nobody reads it"
    second = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        target.write(lines)
    assert os.read(second, 65_536) == b"x" * 65_536
    target.write(lines)
    assert os.read(second, 65_536) == b"x" * 34_464 + b"\nlast\n"
    target.close()
    os.close(second)


def test_a_file_that_may_not_be_read_back_is_taken_as_whole(unprivileged: Path, clock: Clock) -> None:
    path = unprivileged / "output.log"
    path.write_bytes(b"half")
    path.chmod(0o200)
    target = Target("output.log", pause=GRACE, clock=clock)
    target.write(Lines(b"a\n"))
    target.close()
    path.chmod(0o600)
    assert path.read_bytes() == b"halfa\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "logs/x: permission denied"),
        (errno.EISDIR, "logs/x: is a folder"),
        (errno.ENOSPC, "logs/x: no space left on device"),
        (errno.EROFS, "logs/x: read-only file system"),
        (errno.ENXIO, "logs/x: nobody reads it"),
        (errno.EPIPE, "logs/x: its reader has gone"),
    ],
)
def test_reasons_are_plain(number: int, text: str) -> None:
    assert reason("logs/x", OSError(number, "whatever")) == text


def test_a_name_with_a_nul_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="null") as raised:
        open_for_append("a\0b")
    assert reason("x", raised.value) == "x: not a file name"
