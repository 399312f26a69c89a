"""`/routing` and `/health`: what the gateway is doing, for people and for load balancers. No key is in them."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.api.context import GENERATION
from gateway.execution.executor import Executor
from gateway.observe.traffic import Served, Traffic
from gateway.routing.manager import RoutingManager
from gateway.routing.snapshot import Deployment, Route, Snapshot


class Reloads(Protocol):
    """What `/routing` says of the configuration's last reading."""

    def as_dict(self) -> Mapping[str, object]:
        """Give it JSON-ready."""
        ...


class Admin:
    """The handlers of `/routing` and `/health`."""

    def __init__(
        self,
        *,
        manager: RoutingManager,
        executor: Executor,
        traffic: Traffic,
        reloads: Reloads,
        draining: Callable[[], bool],
        log_dropped: Callable[[], int],
        ledger: Callable[[], Mapping[str, object]],
    ) -> None:
        """Tell of these."""
        self._manager = manager
        self._executor = executor
        self._traffic = traffic
        self._reloads = reloads
        self._draining = draining
        self._log_dropped = log_dropped
        self._ledger = ledger

    def routes(self) -> list[web.RouteDef]:
        """Give the routes to register."""
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
        down = [endpoint for endpoint in unusable if endpoint not in loading]
        more = {name: found for name, found in (("loading", loading), ("out", out)) if found}
        return _json({"status": state, "down": down, **more, "version": __version__})

    async def ready(self, _: web.Request) -> web.Response:
        """Answer 503 while draining or without a configuration."""
        reason = "draining" if self._draining() else "no_configuration" if self._manager.snapshot is None else None
        return _json({"status": reason or "ready"}, status=503 if reason else 200)

    async def routing(self, request: web.Request) -> web.Response:
        """Tell how requests are routed now, and how the configuration came about."""
        snapshot = self._manager.snapshot
        request[GENERATION] = snapshot.generation if snapshot else 0
        answer: dict[str, object] = {
            "generation": snapshot.generation if snapshot else 0,
            "revision": snapshot.revision if snapshot else 0,
            "hash": snapshot.digest if snapshot else None,
            "strategy": snapshot.settings.strategy if snapshot else None,
            "parameters": dict(snapshot.settings.parameters) if snapshot else {},
            "reload": self._reloads.as_dict(),
            "log": {"dropped": self._log_dropped()},
            "ledger": self._ledger(),
            "models": [self._model(snapshot, model.id) for model in snapshot.models] if snapshot else [],
        }
        return _json(answer)

    def _model(self, snapshot: Snapshot, model: str) -> dict[str, object]:
        route = snapshot.routes[model]
        served = self._traffic.served(model, tuple(deployment.name for deployment in route.chain))
        return {
            "id": model,
            "selection": route.selection,
            "fallbacks": route.fallbacks,
            "deployments": [
                self._deployment(route, place, deployment, served[deployment.name])
                for place, deployment in enumerate(route.chain)
            ],
            "inactive": [
                {"group": inactive.group, "waits_for": inactive.variable}
                for inactive in snapshot.inactive
                if inactive.model == model
            ],
        }

    def _deployment(self, route: Route, place: int, deployment: Deployment, served: Served) -> dict[str, object]:
        health = self._manager.health(deployment.endpoint.identity)
        breaker = self._manager.breaker(deployment)
        return {
            "name": deployment.name,
            "group": deployment.group,
            "endpoint": deployment.endpoint.identity,
            "kind": deployment.kind,
            "provider_model_id": deployment.served_model,
            "configured_weight": round(float(route.configured[place]), 6),
            "effective_weight": round(float(route.weights[place]), 6),
            "delivered_share": None if served.share is None else round(served.share, 6),
            "requests": served.requests,
            "failures": served.failures,
            "in_flight": self._executor.in_flight[deployment.identity],
            "health": {"state": health.state, "since": _time(health.since), "reason": health.reason},
            "breaker": {"state": breaker.state, "since": _time(breaker.since), "reason": breaker.reason},
        }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value, enc_hook=dict), status=status, content_type="application/json")
