"""`GET /routing/plan`: the plan in force, for comparing another one with it. It shows no keys."""

import msgspec
from aiohttp import web

from gateway.api.context import GENERATION
from gateway.routing.manager import RoutingManager
from gateway.routing.outline import Outline

PATH = "/routing/plan"


class InForce(msgspec.Struct, frozen=True):
    """The plan in force; without a configuration, generation 0 and no plan. `hash` identifies the files' content."""

    generation: int
    hash: str | None
    plan: Outline | None


def plan_routes(manager: RoutingManager) -> list[web.RouteDef]:
    """Return the routes to register."""

    async def plan(request: web.Request) -> web.Response:
        snapshot = manager.snapshot
        request[GENERATION] = snapshot.generation if snapshot else 0
        answer = InForce(request[GENERATION], snapshot.digest if snapshot else None, manager.outline)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    return [web.get(PATH, plan)]
