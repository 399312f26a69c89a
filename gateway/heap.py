"""Settings of the garbage collector for large configurations: very many objects that live until the next one.

From time to time the collector looks for cycles among all objects that it tracks, and nothing else runs meanwhile:
10,000 models cost a quarter of a second each time. So the objects that are alive when a configuration has been built
are hidden from it (`gc.freeze`): reference counts still free them, and only cycles among them would stay. Those are
looked for when the gateway is idle. A gateway that is never idle looks for them once there are more of them than of
all else: that may hold the loop for a second where there are 10,000 models.

Before a configuration is built, garbage is collected among what is young: what failing requests have left would be
hidden else. While it is built in a thread, nothing is collected: the new objects are alive, and would be traversed
again and again. The thread also yields to the event loop after a hundredth of Python's default switch interval: the
loop releases the GIL at each system call, of which a request makes about ten, and has to wait to get it back.

A request makes about a hundred objects that die with it, and Python would look for cycles after every 700: with
hundreds of requests in flight it would find them all alive each time. So the threshold is raised.
"""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SWITCH: Final = 0.00005
_YOUNG: Final = 20_000
_MIDDLE: Final = 1
"""A generation of the collector's; what has survived two collections, such as long streams, is beyond it."""
_one: Final = threading.Lock()


class _Hidden:
    """Counts of objects: hidden after garbage was last looked for, made since by one build at most, young before it."""

    most = 0
    made = 0
    before = 0


_hidden: Final = _Hidden()


@contextmanager
def building() -> Iterator[None]:
    """Suspend collection and shorten the switch interval; one builder per process at a time. Blocking."""
    with _one:
        turn, collects = sys.getswitchinterval(), gc.isenabled()
        if collects:
            gc.collect(_MIDDLE)
        gc.disable()
        _hidden.before = gc.get_count()[0]
        sys.setswitchinterval(min(turn, _SWITCH))
        try:
            yield
        finally:
            sys.setswitchinterval(turn)
            if collects:
                gc.enable()


def settle(*, idle: bool) -> None:
    """Hide all objects that are alive now from the collector; only for a process that is the gateway's own.

    When `idle`, or when many more are hidden than after the last time, collect garbage first, among the hidden objects
    too. What a build has made is allowed for, and so is the configuration before it.
    """
    _hidden.made = max(_hidden.made, gc.get_count()[0] - _hidden.before)
    thorough = idle or gc.get_freeze_count() > 2 * (_hidden.most + _hidden.made)
    if thorough:
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    if thorough or not _hidden.most:
        _hidden.most, _hidden.made = gc.get_freeze_count(), 0
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
