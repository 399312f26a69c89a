"""Active health checks: one task per endpoint, side by side, each of which ends with the endpoint that it watches.

The first probe of an endpoint runs at once, the second at a random time within an interval, so that a thousand boxes
are not probed in the same instant, and later ones up to a tenth of the interval early, so that they stay apart. In one
turn of the event loop, at most one probe begins and one is reported: a thousand boxes that are lost together, each of
which is a change of its own, would otherwise block the loop for seconds. Results do not wait for probes that have yet
to begin. A fault of our own (no file descriptor left) says nothing about the endpoint, and ends no task.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from gateway.execution.answer import AttemptFailedError
from gateway.execution.upstream import Upstream
from gateway.routing.failures import Cause
from gateway.routing.health import LOADING_INTERVAL, ProbeResult
from gateway.routing.snapshot import Endpoint, Snapshot
from gateway.routing.wordings import says_loading

_JITTER: Final = 0.1
_log: Final = logging.getLogger(__name__)
_Watched = tuple[Endpoint, float, float]


async def _turn(one: asyncio.Lock) -> None:
    """Wait for a turn of the loop that no other user of this lock gets."""
    async with one:
        await asyncio.sleep(0)


class Prober:
    """Keeps a probe running for each endpoint of the current snapshot.

    `report` is called with an endpoint's identity and what a probe found. `dice` returns a float in [0, 1). Mutable:
    the tasks, by what they watch (endpoint, interval and time limit); and what is being followed.
    """

    def __init__(
        self,
        upstream: Upstream,
        report: Callable[[str, ProbeResult], None],
        dice: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Start without tasks."""
        self._upstream = upstream
        self._report = report
        self._dice = dice
        self._sleep = sleep
        self._tasks: dict[_Watched, asyncio.Task[None]] = {}
        self._followed: tuple[Mapping[str, Endpoint], float, float] = ({}, 0.0, 0.0)
        self._begins = asyncio.Lock()
        self._tells = asyncio.Lock()

    def follow(self, snapshot: Snapshot) -> None:
        """Watch this snapshot's endpoints and no others; those that did not change keep their schedule."""
        settings = snapshot.settings
        followed = (snapshot.endpoints, settings.health_interval, settings.probe_timeout)
        if followed == self._followed:
            return
        self._followed = followed
        endpoints = snapshot.endpoints.values() if settings.health_interval else ()
        wanted = {(endpoint, settings.health_interval, settings.probe_timeout) for endpoint in endpoints}
        for watched in self._tasks.keys() - wanted:
            self._tasks.pop(watched).cancel()
        for watched in wanted - self._tasks.keys():
            self._tasks[watched] = asyncio.create_task(self._watch(*watched), name=f"probe {watched[0].identity}")

    def hurry(self, endpoint: str) -> None:
        """Probe an endpoint again soon: it said that it is loading."""
        for watched, task in list(self._tasks.items()):
            if watched[0].identity == endpoint and task is not asyncio.current_task():
                task.cancel()
                self._tasks[watched] = asyncio.create_task(self._watch(*watched, delay=LOADING_INTERVAL))

    async def close(self) -> None:
        """Stop every probe."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, endpoint: Endpoint, interval: float, timeout: float, delay: float = 0.0) -> None:  # noqa: ASYNC109 - a setting
        if delay:
            await self._sleep(delay)
        early = 1.0
        while True:
            await _turn(self._begins)
            result = await self._probe(endpoint, timeout)
            if result is not None:
                await _turn(self._tells)
                self._tell(endpoint, result)
            soon = result is not None and result.loading
            await self._sleep(LOADING_INTERVAL if soon else interval * (1 - early * self._dice()))
            early = _JITTER

    def _tell(self, endpoint: Endpoint, result: ProbeResult) -> None:
        """Report what a probe found; a report that fails ends no probe."""
        try:
            self._report(endpoint.identity, result)
        except Exception:  # noqa: BLE001 - it asks the strategy and the observers
            _log.exception("the report of a probe of %s failed", endpoint.identity)

    async def _probe(self, endpoint: Endpoint, timeout: float) -> ProbeResult | None:  # noqa: ASYNC109 - a setting
        try:
            status, body = await self._upstream.probe(endpoint.health_url, timeout=timeout)
        except AttemptFailedError as error:
            cause = error.failure.cause
            if cause is Cause.LOCAL_FAULT:
                return None
            return ProbeResult("timeout" if cause is Cause.CONNECT_TIMEOUT else cause.value)
        except Exception:  # noqa: BLE001 - it is our fault, and must not end the probes of this endpoint
            _log.exception("a probe of %s failed", endpoint.identity)
            return None
        if status == 503 and says_loading(body):  # noqa: PLR2004 - RFC 9110 15.6.4
            return ProbeResult("loading", loading=True)
        return ProbeResult(f"status {status}") if status >= 500 else ProbeResult()  # noqa: PLR2004 - RFC 9110 15.6
