"""What changes while a configuration is in force: the health of endpoints, and the breakers of deployments.

When one changes, requests are drawn from the manager's newest snapshot, and the change is logged. Deployments that come
back get their weight step by step, once a second.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

from gateway.execution.probe import Prober
from gateway.execution.upstream import Upstream
from gateway.observe.log import Log
from gateway.routing.health import ProbeResult
from gateway.routing.manager import BreakerChange, Change, HealthChange, RoutingManager
from gateway.routing.selector import Selector
from gateway.routing.snapshot import Snapshot

_RAMP_SECONDS: Final = 1.0


class Changes:
    """Probes endpoints, and acts on the changes that probes and requests cause.

    Mutable: the task that advances slow starts, while there are any.
    """

    def __init__(
        self,
        *,
        manager: RoutingManager,
        selector: Selector,
        upstream: Upstream,
        log: Log,
        probed: Callable[[str, ProbeResult], None],
        settle: Callable[[], None],
    ) -> None:
        """Start without probes.

        `probed` counts the result of each probe of an endpoint. `settle` delivers the requests that wait for the log:
        those that ended before a change are logged before it.
        """
        self._manager = manager
        self._selector = selector
        self._log = log
        self._count = probed
        self._settle = settle
        self.prober = Prober(upstream, self.probed, random.random)
        self._ramp: asyncio.Task[None] | None = None

    def adopt(self, snapshot: Snapshot) -> None:
        """Draw from a new configuration's snapshot, and probe its endpoints."""
        self._selector.adopt(snapshot)
        self.prober.follow(snapshot)

    def probed(self, endpoint: str, result: ProbeResult) -> None:
        """Record the result of a probe of an endpoint."""
        self._count(endpoint, result)
        change = self._manager.probed(endpoint, result, time.time())
        if change is not None:
            self.follow(change)

    def follow(self, change: Change) -> None:
        """Draw from the snapshot after a change, and log the change."""
        self._settle()
        snapshot = self._manager.snapshot
        revision = snapshot.revision if snapshot else 0
        if snapshot is not None:
            self._selector.adopt(snapshot)
        if isinstance(change, HealthChange):
            self._tell_health(change, revision)
            if change.new.state == "loading":
                self.prober.hurry(change.endpoint)
        else:
            self._tell_breaker(change, revision)
        if self._manager.ramping and self._ramp is None:
            self._ramp = asyncio.create_task(self._ramped(), name="slow start")

    async def close(self) -> None:
        """Stop probes and slow starts."""
        await self.prober.close()  # a probe's result may start a slow start
        if self._ramp is not None:
            self._ramp.cancel()
            await asyncio.gather(self._ramp, return_exceptions=True)

    async def _ramped(self) -> None:
        """Raise the weights of deployments that are back, step by step."""
        try:
            while self._manager.ramping:
                await asyncio.sleep(_RAMP_SECONDS)
                for change in self._manager.tick(time.monotonic()):
                    self.follow(change)
        finally:
            self._ramp = None

    def _tell_health(self, change: HealthChange, revision: int) -> None:
        say = self._log.info if change.new.usable else self._log.warning
        say(
            "health.changed",
            endpoint=change.endpoint,
            was=change.old.state,
            now=change.new.state,
            revision=revision,
            **_said(change.new.reason, change.problem),
        )

    def _tell_breaker(self, change: BreakerChange, revision: int) -> None:
        say = self._log.error if change.lasting else self._log.warning if change.new == "open" else self._log.info
        say(
            "breaker.changed",
            model=change.deployment.model,
            deployment=change.deployment.name,
            was=change.old,
            now=change.new,
            revision=revision,
            **_said(change.reason, change.problem),
        )


def _said(reason: str | None, problem: str | None) -> Mapping[str, str]:
    return {name: text for name, text in (("reason", reason), ("problem", problem)) if text}
