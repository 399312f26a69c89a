"""Time that goes on by leaps: clocks run out at once, and no stall of the machine is taken for one.

A test sets its clocks to RUNS_OUT, which real time does not come near, and lets time leap there.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.fakes.connection import PATIENCE, Connection
from tests.fakes.upstream import Step

RUNS_OUT = 0.4 * PATIENCE  # a wait of the test's that began before lasts longer
_LEAP = RUNS_OUT / 10
_REST = 0.005
_MOST = 100


class _Time:
    """A loop's time, so much ahead of what it was."""

    def __init__(self, time: Callable[[], float]) -> None:
        self.ahead = 0.0
        self._time = time

    def __call__(self) -> float:
        return self._time() + self.ahead


def leaping() -> _Time:
    """Make the running loop's time one that can leap; what keeps its `time` is to be made afterwards."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop.time, _Time):
        loop.time = _Time(loop.time)  # type: ignore[method-assign] # the loop itself reads it there
    assert isinstance(loop.time, _Time)
    return loop.time


def leap(seconds: float) -> None:
    """Let so much of the running loop's time pass at once."""
    leaping().ahead += seconds


@dataclass(frozen=True, slots=True)
class Drip(Step):
    """Write the pieces one by one, a tenth of RUNS_OUT apart, until the peer is gone."""

    pieces: Iterable[bytes]

    async def run(self, connection: Connection) -> None:
        for number, piece in enumerate(self.pieces):
            if connection.ended:
                return
            assert number < _MOST, "nobody gave up waiting"
            await connection.write(piece)
            await asyncio.sleep(_REST)  # it arrives
            leap(_LEAP)


SILENCE = Drip(itertools.repeat(b""))
"""Nothing more is said, and time passes."""
