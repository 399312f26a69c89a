"""What logrotate's `copytruncate` loses, and where it is found again.

logrotate copies the file, brings the copy to the disk, which may take long, and truncates the file. Lines written in
between are in neither. So the last bytes written are remembered. A file that is shorter than it should be was
truncated; the copy beside it is a beginning of what was written, and its size tells where it ends. What follows there,
up to what is in the file by now, is what was lost. Where there is no such copy, the file was emptied on purpose, and
nothing comes back.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

_KEPT = 1 << 20
_COMPARED = 1 << 12
_SAME_ROTATION = 60.0


class Recent:
    """The last bytes written to a file, and the `size` that it should have. For one writer with O_APPEND."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._bytes = bytearray()

    def add(self, written: bytes) -> None:
        """Remember what was appended."""
        self.size += len(written)
        self._bytes += written
        del self._bytes[:-_KEPT]

    def shrink(self, path: Path, now: os.stat_result) -> bytes:
        """Take note that `path`, whose status is `now`, was truncated; return the lines that were lost. Blocking."""
        left = max(0, len(self._bytes) - now.st_size)
        ends = [end for other in _neighbours(path) if (end := self._end_of_copy(other, now)) is not None]
        lost = bytes(self._bytes[self._bytes.rfind(b"\n", 0, max(ends)) + 1 : left]) if ends else b""
        self.size = now.st_size
        del self._bytes[:left]
        return lost

    def _end_of_copy(self, other: Path, now: os.stat_result) -> int | None:
        """Return where among the bytes the copy `other` ends, if it is one and may be read."""
        with suppress(OSError):
            status = other.lstat()
            ended = status.st_size - self.size + len(self._bytes)
            same_rotation = abs(status.st_mtime - now.st_mtime) < _SAME_ROTATION and status.st_ino != now.st_ino
            within = status.st_size > 0 and 0 <= ended <= len(self._bytes)
            if stat.S_ISREG(status.st_mode) and same_rotation and within:
                compared = min(ended, _COMPARED)
                with other.open("rb") as file:
                    tail = os.pread(file.fileno(), compared, status.st_size - compared)
                return ended if tail == self._bytes[ended - compared : ended] else None
        return None


def _neighbours(path: Path) -> list[Path]:
    with suppress(OSError):
        return list(path.parent.iterdir())
    return []
