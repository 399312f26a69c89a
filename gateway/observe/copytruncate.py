"""What logrotate's `copytruncate` loses, and how it is recovered.

logrotate copies the file, flushes the copy to disk, which may take long, and truncates the file. Lines written in
between are in neither. So the last bytes written are remembered. A file that is shorter than it should be was
truncated; the copy beside it is a prefix of what was written, and its size shows where it ends. What was written from
there on, up to what the file now holds, was lost. If there is no such copy, the file was emptied on purpose, and
nothing is restored.
"""

import os
import stat
from collections import deque
from contextlib import suppress
from pathlib import Path

_KEPT = 1 << 20
_COMPARED = 1 << 12
_SAME_ROTATION = 60.0


class Tail:
    """The last bytes written to a file, and the `size` that it should have. For one writer with O_APPEND.

    They are kept in the pieces that were written: joining them each time would cost as much as writing them.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pieces: deque[bytes] = deque()
        self._kept = 0

    def add(self, written: bytes) -> None:
        """Remember what was appended."""
        self.size += len(written)
        self._kept += len(written)
        self._pieces.append(written)
        while self._kept - len(self._pieces[0]) >= _KEPT:
            self._kept -= len(self._pieces.popleft())

    def shrink(self, path: Path, now: os.stat_result) -> bytes:
        """Follow the truncation of `path`, whose status is `now`; return the lines that were lost. Blocking."""
        kept = b"".join(self._pieces)[-_KEPT:]
        left = max(0, len(kept) - now.st_size)
        ends = [end for other in _neighbours(path) if (end := self._end_of_copy(other, now, kept)) is not None]
        lost = kept[kept.rfind(b"\n", 0, max(ends)) + 1 : left] if ends else b""
        self.size = now.st_size
        self._pieces, self._kept = deque([kept[left:]]), len(kept) - left
        return lost

    def _end_of_copy(self, other: Path, now: os.stat_result, kept: bytes) -> int | None:
        """Return where in `kept` the copy `other` ends, or None if it is no copy or may not be read."""
        with suppress(OSError):
            status = other.lstat()
            ended = status.st_size - self.size + len(kept)
            same_rotation = abs(status.st_mtime - now.st_mtime) < _SAME_ROTATION and status.st_ino != now.st_ino
            within = status.st_size > 0 and 0 <= ended <= len(kept)
            if stat.S_ISREG(status.st_mode) and same_rotation and within:
                compared = min(ended, _COMPARED)
                with other.open("rb") as file:
                    tail = os.pread(file.fileno(), compared, status.st_size - compared)
                return ended if tail == kept[ended - compared : ended] else None
        return None


def _neighbours(path: Path) -> list[Path]:
    with suppress(OSError):
        return list(path.parent.iterdir())
    return []
