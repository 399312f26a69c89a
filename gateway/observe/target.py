"""One output of the log: whole lines into a file, a FIFO or one of the process's own streams.

The file belongs to the operator as much as to us: it may be renamed, truncated or removed, and its disk may fill up.
The rules:

- Before each batch, the path is compared with the open file. If the path names another file, that file is opened at
  once. If it names nothing, the file is created again: at once if our file was removed, after a grace period if it was
  only renamed, because logrotate renames first and creates second, and mistakes a file that it finds in between for a
  stranger's.
- With O_APPEND, writing goes on correctly after a truncation (logrotate's `copytruncate`); lines written between the
  copy and the truncation are written again (`copytruncate`).
- When the disk fills up in the middle of a line, the file stays open and the line is completed when there is space
  again. If the line's first half is gone by then (the file was truncated or removed, or a pipe's reader left), the line
  is written again from its start. A file that does not end with a newline when it is opened gets one first, so that a
  line that another process left incomplete spoils none of ours.
- No write waits in the kernel. A file of ours is opened with O_NONBLOCK; on a stream, which other processes share, we
  must not set the flag, so it is polled for room and given at most PIPE_BUF bytes at a time. A reader that does not
  read thus looks like a full disk: an error, and a later attempt.
"""

import errno
import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway.observe.copytruncate import Tail

STREAMS = {"stdout": 1, "stderr": 2}

_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})
_PLAIN = {
    errno.EISDIR: "is a folder",
    errno.EEXIST: "a part of its path is not a folder",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.EAGAIN: "nobody reads it",
    errno.ENXIO: "nobody reads it",
    errno.EPIPE: "its reader has gone",
    errno.EINVAL: "not a file name",
}


class Lines:
    """Rendered lines to be written: the first `sent` bytes of `data` have been written."""

    __slots__ = ("data", "sent")

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.sent = 0

    @property
    def left(self) -> int:
        """The number of lines that are not completely written."""
        return self.data.count(b"\n", self.sent)

    @property
    def torn(self) -> bool:
        """Whether a line is partly written."""
        return self.sent != self._line_start()

    def insert(self, lines: bytes) -> None:
        """Put other lines first; no line may be partly written."""
        self.data = self.data[: self.sent] + lines + self.data[self.sent :]

    def rewind(self) -> None:
        """Go back to the start of the line that is partly written."""
        self.sent = self._line_start()

    def line_end(self) -> int:
        """Return where the line being sent ends."""
        return self.data.index(b"\n", self.sent) + 1

    def _line_start(self) -> int:
        return self.data.rfind(b"\n", 0, self.sent) + 1


class Target:
    """The output called `name`: `stdout`, `stderr` or a path, relative to the working directory.

    `pause` (seconds) is how long a reader may keep us waiting and how long a renamed file may lack a successor.
    Not thread-safe: it belongs to the writer thread.
    """

    def __init__(self, name: str, *, pause: float, clock: Callable[[], float]) -> None:
        self.name = name
        self._pause = pause
        self._clock = clock
        self._fd = -1
        self._identity = (0, 0)
        self._tail: Tail | None = None  # of a regular file
        self._missing_since: float | None = None

    def write(self, lines: Lines) -> None:
        """Write what is left of `lines`; if nothing is left, only check the file.

        Raises OSError, after which `lines` knows how far it got; call again with the same `lines` to continue.
        """
        try:
            if lines.torn:
                self._mend(lines)
            self._refresh(lines)
            self._push(lines, len(lines.data))
        except OSError as error:
            if error.errno not in _PASSING:
                self.close()
                lines.rewind()
            raise

    def close(self) -> None:
        """Close what is open; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._missing_since = None

    def _mend(self, lines: Lines) -> None:
        now = os.fstat(self._fd)
        if self._tail and (now.st_nlink == 0 or now.st_size != self._tail.size):
            self.close()
            lines.rewind()
        else:
            self._push(lines, lines.line_end())

    def _refresh(self, lines: Lines) -> None:
        if self._fd >= 0 and self.name not in STREAMS and self._superseded():
            self.close()
        if self._fd < 0:
            self._open()
        elif self._tail and (now := os.fstat(self._fd)).st_size < self._tail.size:
            lines.insert(self._tail.shrink(Path(self.name), now))

    def _superseded(self) -> bool:
        try:
            now = Path(self.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return self._abandoned()
        self._missing_since = None
        return (now.st_dev, now.st_ino) != self._identity

    def _abandoned(self) -> bool:
        if os.fstat(self._fd).st_nlink == 0:
            return True
        if self._missing_since is None:
            self._missing_since = self._clock()
        return self._clock() - self._missing_since >= self._pause

    def _open(self) -> None:
        fd = open_for_append(self.name)
        try:
            now = os.fstat(fd)
            regular = self.name not in STREAMS and stat.S_ISREG(now.st_mode)
            added = os.write(fd, b"\n") if regular and _ends_broken(self.name, now.st_size) else 0
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        self._identity = (now.st_dev, now.st_ino)
        self._tail = Tail(now.st_size + added) if regular else None

    def _push(self, lines: Lines, end: int) -> None:
        while lines.sent < end:
            stop = end
            if self.name in STREAMS and end - lines.sent > select.PIPE_BUF:
                limit = lines.sent + select.PIPE_BUF
                stop = lines.data.rfind(b"\n", lines.sent, limit) + 1 or limit
            if not has_room(self._fd, self._pause):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            piece = lines.data[lines.sent : stop]
            sent = os.write(self._fd, piece)
            lines.sent += sent
            if self._tail:
                self._tail.add(piece[:sent])


def open_for_append(name: str) -> int:
    """Open the output called `name` and return a descriptor of our own. A missing folder is created.

    Raises OSError; ENXIO for a FIFO that nobody reads.
    """
    if name in STREAMS:
        if (sys.__stdout__ if name == "stdout" else sys.__stderr__) is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.dup(STREAMS[name])
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        return os.open(name, _OPEN_FLAGS, 0o640)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def has_room(fd: int, seconds: float) -> bool:
    """Wait up to `seconds` until a write to `fd` would not block; return whether that is so."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def reason(name: str, error: OSError) -> str:
    """Return in plain words why the output called `name` cannot be written: `logs/x: permission denied`."""
    number = error.errno or 0
    return f"{name}: {_PLAIN.get(number) or os.strerror(number).lower()}"


def _ends_broken(name: str, size: int) -> bool:
    """Return whether a file of `size` bytes ends in the middle of a line; False if it may not be read."""
    with suppress(OSError), open(name, "rb", buffering=0, opener=_open_nonblocking) as file:
        return size > 0 and os.pread(file.fileno(), 1, size - 1) not in {b"", b"\n"}
    return False


def _open_nonblocking(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)
