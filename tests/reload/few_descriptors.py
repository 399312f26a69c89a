"""Follow a config folder with too few file descriptors for inotify: `python few_descriptors.py FOLDER`.

An inotify watch takes three; reading and polling make do with two. Prints the notice, and what polling found.
It is a process of its own, so that none is closed meanwhile that another test has opened.
"""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path

from tests.reload.following import EVENTS, follow


def leave(count: int) -> None:
    """Leave this process only so many file descriptors to open."""
    taken = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    last = max(os.open(os.devnull, os.O_RDONLY) for _ in range(max(taken) + 2 - len(taken)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


async def main(parent: Path) -> None:
    """Follow until a save is adopted."""
    new = parent / "new.yaml"
    new.write_text("models: polled")
    os.utime(new, (4e9, 4e9))  # polling compares whole seconds
    leave(2)
    async with follow(parent, EVENTS) as following:
        await following.until(lambda: following.notices)
        new.replace(following.files.models)
        await following.adopts("models: polled")
        sys.stdout.write(json.dumps(following.notices))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
