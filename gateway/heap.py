"""What a large configuration is to Python's memory: very many objects that live until the next one.

The collector looks for cycles among all objects that it knows, now and then, and nothing else runs meanwhile: 10,000
models cost a quarter second each time. So what has lasted until a configuration is built is taken out of its sight
(`gc.freeze`): reference counts still free it, and only a cycle that was alive at that moment would stay. Those are
looked for when nobody waits.

While a configuration is built in a thread, nothing is collected: what is new is alive, and would be gone through again
and again. And the thread gives way to the event loop after a moment, hundred times sooner than at Python's own pace:
the loop gives the GIL away at each system call, of which a request makes some ten, and waits for it anew.

A request makes some hundred objects that end with it, and Python would look for cycles after every 700: with hundreds
of requests in flight it finds them all alive each time. So it looks later.
"""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SWITCH: Final = 0.00005
_YOUNG: Final = 20_000
_one: Final = threading.Lock()


@contextmanager
def building() -> Iterator[None]:
    """Put collections off, and let the threads take shorter turns; one in a process at a time. Blocking."""
    with _one:
        turn, collects = sys.getswitchinterval(), gc.isenabled()
        gc.disable()
        sys.setswitchinterval(min(turn, _SWITCH))
        try:
            yield
        finally:
            sys.setswitchinterval(turn)
            if collects:
                gc.enable()


def settle(*, idle: bool) -> None:
    """Take all that lives now out of the collector's sight, for a process of our own.

    When `idle`, garbage is looked for first, in what was out of sight too.
    """
    if idle:
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
