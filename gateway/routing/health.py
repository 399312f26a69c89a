"""What is known about an endpoint's health, as a state machine.

    unknown  --alive-------------------------->  up
    unknown  --dead, unhealthy_after times---->  down
    up       --dead, unhealthy_after times---->  down
    down     --alive, healthy_after times----->  up
    any      --says that it is loading-------->  loading
    loading  --alive-------------------------->  up
    loading  --dead, unhealthy_after times---->  down

A box that is loading its model is neither up nor down: it gets no requests, and it is probed again soon. Unknown counts
as healthy until probes say otherwise. Only probes in a row count. The machine has no clock and does no I/O: the time
and the results of probes are passed in.
"""

from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

State = Literal["unknown", "up", "down", "loading"]

LOADING_INTERVAL: Final = 2.0
"""Seconds until a box that is loading is tried again."""


class Health(Struct, frozen=True):
    """What the probes of one endpoint have found.

    `since` is when the state was entered (seconds since the epoch; absent while unknown), `reason` what the last failed
    probe found while the state is down or loading, `streak` how many probes in a row have disagreed with the state.
    """

    state: State = "unknown"
    since: float | None = None
    reason: str | None = None
    streak: int = 0

    @property
    def usable(self) -> bool:
        """Whether requests should be sent there first."""
        return self.state not in {"down", "loading"}


class ProbeResult(Struct, frozen=True):
    """What one probe found: `reason` says why the endpoint is not alive, and is absent when it is.

    `loading` means that it answered, but only to say that it is still loading its model.
    """

    reason: str | None = None
    loading: bool = False

    @property
    def alive(self) -> bool:
        """Whether any answer below 500 came in time."""
        return self.reason is None


UNKNOWN = Health()


def observe(health: Health, result: ProbeResult, *, now: float, unhealthy_after: int, healthy_after: int) -> Health:
    """Return the state after one more probe; `now` is in seconds since the epoch."""
    other = Health(_told(result), since=now, reason=result.reason)
    if health.state == other.state:
        return replace(health, reason=result.reason, streak=0)
    if result.loading or (result.alive and health.state in {"unknown", "loading"}):
        return other
    streak = health.streak + 1
    needed = healthy_after if result.alive else unhealthy_after
    return other if streak >= needed else replace(health, streak=streak)


def _told(result: ProbeResult) -> State:
    if result.loading:
        return "loading"
    return "up" if result.alive else "down"
