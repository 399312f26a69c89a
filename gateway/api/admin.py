"""`/routing` and `/health`: what the gateway is doing, for people and for load balancers. They show no keys.

Describing a thousand models takes about twenty milliseconds: other tasks run in between.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.api.context import GENERATION
from gateway.observe.models import Models
from gateway.routing.manager import RoutingManager
from gateway.routing.snapshot import Snapshot

_SLICE: Final = 50
"""Deployments after which other tasks run; those of one model are described together."""


class Admin:
    """The handlers of `/routing` and `/health`."""

    def __init__(
        self,
        *,
        manager: RoutingManager,
        models: Models,
        reloads: Callable[[], Mapping[str, object]],
        draining: Callable[[], bool],
        log_dropped: Callable[[], int],
        ledger: Callable[[], Mapping[str, object]],
    ) -> None:
        """Report on these; `reloads` and `ledger` return JSON-ready data."""
        self._manager = manager
        self._models = models
        self._reloads = reloads
        self._draining = draining
        self._log_dropped = log_dropped
        self._ledger = ledger

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to register."""
        return [
            web.get("/routing", self.routing),
            web.get("/health", self.health),
            web.get("/health/ready", self.ready),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """Answer 200 while the process serves, with what is down, loading, or out."""
        snapshot = self._manager.snapshot
        unusable = sorted(snapshot.down) if snapshot else []
        loading = [endpoint for endpoint in unusable if self._manager.health(endpoint).state == "loading"]
        out = [f"{model}/{name}" for model, name in sorted(snapshot.out)] if snapshot else []
        state = "degraded" if unusable or out or snapshot is None else "ok"
        down = sorted({*unusable} - {*loading})
        more = {name: found for name, found in (("loading", loading), ("out", out)) if found}
        return _json({"status": state, "down": down, **more, "version": __version__})

    async def ready(self, _: web.Request) -> web.Response:
        """Answer 503 while draining or without a configuration."""
        reason = "draining" if self._draining() else "no_configuration" if self._manager.snapshot is None else None
        return _json({"status": reason or "ready"}, status=503 if reason else 200)

    async def routing(self, request: web.Request) -> web.Response:
        """Report how requests are routed now, and how the configuration came about."""
        snapshot = self._manager.snapshot
        request[GENERATION] = snapshot.generation if snapshot else 0
        answer: dict[str, object] = {
            "generation": snapshot.generation if snapshot else 0,
            "revision": snapshot.revision if snapshot else 0,
            "hash": snapshot.digest if snapshot else None,
            "strategy": snapshot.settings.strategy if snapshot else None,
            "parameters": dict(snapshot.settings.parameters) if snapshot else {},
            "reload": self._reloads(),
            "log": {"dropped": self._log_dropped()},
            "ledger": self._ledger(),
            "models": await self._described(snapshot) if snapshot else [],  # last: a reload may come in between
        }
        return _json(answer)

    async def _described(self, snapshot: Snapshot) -> list[dict[str, object]]:
        models, some = [], 0
        for model in snapshot.models:
            models.append(self._models.of(snapshot, model.id))
            some += len(snapshot.routes[model.id].chain)
            if some >= _SLICE:
                some = 0
                await asyncio.sleep(0)
        return models


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value, enc_hook=dict), status=status, content_type="application/json")
