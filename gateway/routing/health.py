"""What is known of an endpoint, as a state machine.

    unknown  --alive-------------------------->  up
    unknown  --dead, unhealthy_after times---->  down
    up       --dead, unhealthy_after times---->  down
    down     --alive, healthy_after times----->  up

Unknown counts as healthy: an endpoint is innocent until probes say otherwise. Only probes in a row count. The machine
knows neither the time nor the network; both are told to it.
"""

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["unknown", "up", "down"]


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes of one endpoint have said.

    `since` is when the state was entered (seconds since the epoch; absent while unknown), `reason` what the last
    failed probe said while it is down, `streak` how many probes in a row have disagreed with the state.
    """

    state: State = "unknown"
    since: float | None = None
    reason: str | None = None
    streak: int = 0

    @property
    def usable(self) -> bool:
        """Whether requests should be sent there first."""
        return self.state != "down"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found: `reason` is absent when the endpoint is alive, and says why it is not otherwise."""

    reason: str | None = None

    @property
    def alive(self) -> bool:
        """Whether any answer below 500 came in time."""
        return self.reason is None


UNKNOWN = Health()


def observe(health: Health, result: ProbeResult, *, now: float, unhealthy_after: int, healthy_after: int) -> Health:
    """Give the state after one more probe; `now` is in seconds since the epoch."""
    other = Health("up" if result.alive else "down", since=now, reason=result.reason)
    if health.state == other.state:
        return replace(health, reason=result.reason, streak=0)
    if result.alive and health.state == "unknown":
        return other
    streak = health.streak + 1
    needed = healthy_after if result.alive else unhealthy_after
    return other if streak >= needed else replace(health, streak=streak)
