"""What a large configuration is to Python's memory: very many objects that live until the next one.

The collector looks for cycles among all objects that it knows, now and then, and nothing else runs meanwhile: 10,000
models cost a quarter second each time. So what has lasted until a configuration is in force is taken out of its sight
(`gc.freeze`): reference counts still free it, and only a cycle that was alive at that moment would stay. Those are
looked for when nobody waits.

While a configuration is built in a thread, full collections are put off: what is new would be gone through again and
again. And the thread gives way to the event loop after half a millisecond, ten times sooner than Python's own pace:
the loop gives the GIL away at each system call, and waits for it anew.

A request makes some hundred objects that end with it, and Python would look for cycles after every 700: with hundreds
of requests in flight it finds them all alive each time. So it looks later.
"""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SWITCH: Final = 0.0005
_YOUNG: Final = 20_000
_NEVER: Final = 1 << 30
_one: Final = threading.Lock()


@contextmanager
def building() -> Iterator[None]:
    """Put full collections off, and let the threads take shorter turns; one in a process at a time. Blocking."""
    with _one:
        young, middle, old = gc.get_threshold()
        turn = sys.getswitchinterval()
        gc.set_threshold(young, middle, _NEVER)
        sys.setswitchinterval(min(turn, _SWITCH))
        try:
            yield
        finally:
            sys.setswitchinterval(turn)
            gc.set_threshold(young, middle, old)


def settle(*, idle: bool) -> None:
    """Take all that lives now out of the collector's sight, for a process of our own.

    When `idle`, garbage is looked for first, in what was out of sight too.
    """
    if idle:
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
