"""`/metrics`, for Prometheus.

The answer is written in slices, and other tasks run in between: for a thousand models on four deployments each, it is
20 MB. A deployment's lines of one metric are of the same moment; those of two metrics may not be.
"""

import asyncio
from collections.abc import Iterator

from aiohttp import web
from aiohttp.hdrs import METH_HEAD

from gateway.observe.metrics.observer import Metrics
from gateway.observe.metrics.state import State
from gateway.observe.metrics.text import OPENMETRICS, PLAIN, Told, slices, wants_openmetrics


class Scrape:
    """The handler of `/metrics`."""

    def __init__(self, metrics: Metrics, state: State) -> None:
        """Report on these."""
        self._metrics = metrics
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to register."""
        return [web.get("/metrics", self.scrape)]

    async def scrape(self, request: web.Request) -> web.StreamResponse:
        """Answer in the format that the client prefers."""
        openmetrics = wants_openmetrics(request.headers.getall("Accept", ()))
        rest = await asyncio.to_thread(self._rest, openmetrics=openmetrics)
        response = web.StreamResponse(headers={"Content-Type": OPENMETRICS if openmetrics else PLAIN})
        await response.prepare(request)
        if request.method != METH_HEAD:
            for part in slices(self._told(), rest, openmetrics=openmetrics):
                await response.write(part)
                await asyncio.sleep(0)
        await response.write_eof()
        return response

    def _rest(self, *, openmetrics: bool) -> bytes:
        """Return the metrics that are not the gateway's own. Blocking; the first call imports prometheus-client."""
        from prometheus_client import exposition  # noqa: PLC0415 - see `Metrics.registry`
        from prometheus_client.openmetrics import exposition as modern  # noqa: PLC0415 - as above

        generate = modern.generate_latest if openmetrics else exposition.generate_latest
        return generate(self._metrics.registry)

    def _told(self) -> Iterator[Told]:
        yield from self._metrics.told()
        yield from self._state.told(self._metrics.tracked())
