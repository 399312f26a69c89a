"""The state that the page shows, made once a second for all who watch, and not at all when nobody does.

A *full* state comes first; those that follow, one a second, hold only what changed: rows of models and endpoints that
differ, the seconds that are over, the requests that ended. Reading a state twice does no harm.

With thousands of deployments the cost is bounded twice: only models that something happened to are described again, at
most `ROWS` of them a second, and the loop gets a turn after every few. All models are described when somebody starts
watching, and when the configuration changes.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from gateway import __version__
from gateway.observe.chart import Chart
from gateway.observe.live import REQUESTS, Live
from gateway.observe.models import Models
from gateway.observe.rows import endpoint_row, request_row, shortened
from gateway.observe.shares import Recent, Share, explain
from gateway.routing.manager import RoutingManager
from gateway.routing.snapshot import Identity, Route, Snapshot

ROWS: Final = 100
"""The most models that are described again in one second."""
_SLICE: Final = 40
"""Deployments after which the loop gets a turn; a model is never split."""
Money = Mapping[str, float]


class Board:
    """Makes the states.

    Mutable: each model's and endpoint's row as last sent; the models whose row must be made again; and what has been
    seen of the sources.
    """

    def __init__(
        self,
        *,
        manager: RoutingManager,
        models: Models,
        live: Live,
        in_flight: Mapping[Identity, int],
        reloads: Callable[[], Mapping[str, object]],
        money: Callable[[], Money | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Show these; `reloads` returns the configuration's readings JSON-ready, `clock` seconds since the epoch.

        `money` returns USD `spent` and `avoided`, or None without prices. None of them may block.
        """
        self._manager, self._models, self._live = manager, models, live
        self._in_flight, self._reloads, self._money, self._clock = in_flight, reloads, money, clock
        self._recent, self._chart = Recent(live), Chart(live)
        self._rows: dict[str, bytes] = {}
        self._endpoints: dict[str, tuple[object, ...]] = {}
        self._places: dict[str, tuple[Identity, ...]] = {}
        self._at: dict[Identity, str] = {}
        self._waiting: dict[str, None] = {}
        self._snapshot: Snapshot | None = None
        self._busy: dict[Identity, int] = {}
        self._reload: Mapping[str, object] = {}
        self._seen = 0
        self._full: bytes | None = None

    async def tick(self) -> bytes:
        """Look at everything and return what changed since the last tick, as JSON."""
        self._live.settle()
        now, snapshot = self._clock(), self._manager.snapshot
        renewed = self._follow(snapshot)
        self._waiting |= dict.fromkeys(model for model, _ in self._recent.advance(now))
        busy = {identity: number for identity, number in self._in_flight.items() if number}
        self._waiting |= dict.fromkeys(model for model, _ in dict(busy.items() ^ self._busy.items()))
        self._busy = busy
        endpoints = self._look_at_endpoints()
        models = await self._describe(snapshot, now, None if renewed else ROWS) if snapshot else []
        state = self._head(snapshot, now) | {
            "endpoints": [endpoint_row(name, self._endpoints[name]) for name in endpoints],
            "models": [msgspec.Raw(self._rows[model]) for model in models],
            "seconds": self._chart.advance(now),
            "requests": self._requests(self._seen),
        }
        if renewed:
            state["order"] = self._order()
        reload = self._reloads()
        if reload != self._reload:
            state["reload"], self._reload = shortened(reload), reload
        self._seen, self._full = self._live.number, None
        return msgspec.json.encode(state, enc_hook=dict)

    def full(self) -> bytes:
        """Return everything as of the last tick, as JSON."""
        if self._full is None:
            state = self._head(self._snapshot, self._clock()) | {
                "full": True,
                "version": __version__,
                "began": self._live.began,
                "order": self._order(),
                "endpoints": [endpoint_row(name, row) for name, row in self._endpoints.items()],
                "models": [msgspec.Raw(row) for row in self._rows.values()],
                "seconds": list(self._chart.rows),
                "requests": self._requests(0),
                "reload": shortened(self._reload),
            }
            self._full = msgspec.json.encode(state, enc_hook=dict)
        return self._full

    def rest(self) -> None:
        """Forget what was sent, because nobody is watching."""
        self._snapshot, self._full = None, None
        self._rows.clear()
        self._endpoints.clear()

    def _head(self, snapshot: Snapshot | None, now: float) -> dict[str, Any]:
        return {
            "at": now,
            "generation": snapshot.generation if snapshot else 0,
            "revision": snapshot.revision if snapshot else 0,
            "hash": snapshot.digest if snapshot else None,
            "strategy": snapshot.settings.strategy if snapshot else None,
            "parameters": dict(snapshot.settings.parameters) if snapshot else {},
            "probed": bool(snapshot and snapshot.settings.health_interval),
            "in_flight": sum(self._busy.values()),
            "ended": self._live.number,
            "since": self._live.since,
            "money": self._money(),
        }

    def _order(self) -> dict[str, list[str]]:
        models = [model.id for model in self._snapshot.models] if self._snapshot else []
        return {"models": models, "endpoints": list(self._endpoints)}

    def _follow(self, snapshot: Snapshot | None) -> bool:
        """Note the models whose route changed; return whether models or endpoints may have come or gone."""
        old, self._snapshot = self._snapshot, snapshot
        if snapshot is None or snapshot is old:
            self._waiting |= dict.fromkeys(model for model, _ in snapshot.out) if snapshot else {}
            return False
        if old is None or old.generation != snapshot.generation:
            self._learn(snapshot)
            self._waiting = dict.fromkeys(model.id for model in snapshot.models)
            return True
        routes, before = snapshot.routes, old.routes
        changed = (model.id for model in snapshot.models if routes[model.id] is not before[model.id])
        # changed weights go first: they are what an operator waits to see
        self._waiting = {**dict.fromkeys(changed), **self._waiting}
        return False

    def _learn(self, snapshot: Snapshot) -> None:
        kept = {model.id for model in snapshot.models}
        self._rows = {model: row for model, row in self._rows.items() if model in kept}
        places: dict[str, list[Identity]] = {}
        for deployment in snapshot.deployments:
            places.setdefault(deployment.endpoint.identity, []).append(deployment.identity)
        self._places = {endpoint: tuple(found) for endpoint, found in places.items()}
        self._at = {identity: endpoint for endpoint, found in places.items() for identity in found}
        self._endpoints = {name: self._endpoints.get(name, ()) for name in self._places}

    def _look_at_endpoints(self) -> list[str]:
        """Return the endpoints that changed; if its health changed, mark an endpoint's models to be described again."""
        changed = []
        busy = Counter[str]()
        for identity, number in self._busy.items():
            busy[self._at.get(identity, "")] += number
        for name, old in self._endpoints.items():
            health = self._manager.health(name)
            new = (health.state, health.since, health.reason, busy[name], len(self._places[name]))
            if new != old:
                changed.append(name)
                self._endpoints[name] = new
                if new[:3] != old[:3]:
                    self._waiting |= dict.fromkeys(model for model, _ in self._places[name])
        return changed

    async def _describe(self, snapshot: Snapshot, now: float, most: int | None) -> list[str]:
        """Make rows for at most `most` of the models that wait; return the models whose row changed."""
        chosen = tuple(islice(self._waiting, most))
        changed, some = [], 0
        for model in chosen:
            del self._waiting[model]
            route = snapshot.routes.get(model)
            if route is None or route.model != model:
                continue  # the model is gone
            row = msgspec.json.encode(self._row(snapshot, route, now), enc_hook=dict)
            if row != self._rows.get(model):
                self._rows[model] = row
                changed.append(model)
            some += len(route.chain)
            if some >= _SLICE:
                some = 0
                await asyncio.sleep(0)
        return changed

    def _row(self, snapshot: Snapshot, route: Route, now: float) -> dict[str, object]:
        row = self._models.of(snapshot, route.model)
        explained = explain([self._share(route, place, now) for place in range(len(route.chain))])
        deployments: Any = row["deployments"]
        for each in deployments:
            share, why = explained[each["name"]]
            each["recent_share"] = None if share is None else round(share, 4)
            each["recent"] = self._recent.answers[route.model, each["name"]]
            each["why"] = why
        return row

    def _share(self, route: Route, place: int, now: float) -> Share:
        deployment = route.chain[place]
        breaker = self._manager.breaker(deployment)
        return Share(
            name=deployment.name,
            planned=float(route.configured[place]),
            eligible=float(route.weights[place]),
            answers=self._recent.answers[deployment.identity],
            failures=self._recent.failures[deployment.identity],
            cut=self._recent.cut[deployment.identity],
            stood_in=self._recent.stood_in[deployment.identity],
            late=self._recent.late[deployment.identity],
            health=self._manager.health(deployment.endpoint.identity).state,
            breaker=breaker.state,
            back=None if breaker.since is None else now - breaker.since,
        )

    def _requests(self, after: int) -> list[dict[str, object]]:
        new = min(self._live.number - after, REQUESTS)
        ended = self._live.requests
        return [request_row(*each) for each in islice(ended, max(0, len(ended) - new), None)]
