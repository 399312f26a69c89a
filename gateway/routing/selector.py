"""Turns a route into an attempt order: one weighted draw, then the fallback chain.

`random` draws by the weights. `smooth` is smooth weighted round-robin. Its time is counted in draws: a deployment with
the share w has its k-th turn in the window from (k - 1)/w to k/w, widened to whole draws, and each draw goes to the
open window that closes first.

No window is missed. If draws could be divided, each deployment could take a share w of each draw. That is a fractional
matching of turns to draws inside the windows, so there is an integral one too, and earliest deadline first finds it.
Hence after any number n of draws a deployment has had n * w turns, rounded down or up. When n * w is whole for all of
them, a cycle ends and repeats: any n consecutive draws give each deployment exactly its share. Times are integers, so
nothing drifts; two heaps make a draw O(log n) for n deployments.

The chain after the draw is the route's own order without the deployment drawn. It is walked lazily: most requests need
only its head.
"""

from bisect import bisect
from collections.abc import Callable, Iterator
from fractions import Fraction
from heapq import heappop, heappush
from math import lcm

from gateway.routing.snapshot import Deployment, Route, Snapshot


class Selector:
    """Draws attempt orders. `dice` returns a float in [0, 1), as `random.random` does.

    Mutable: the position of each smoothly drawn model in its cycle. It is kept across snapshots as long as the same
    deployments share the model's traffic in the same way.
    """

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._cycles: dict[str, _Cycle] = {}

    def adopt(self, snapshot: Snapshot) -> None:
        """Forget the cycles that a snapshot ends. A new cycle begins with its first draw."""
        self._cycles = {model: cycle for model, cycle in self._cycles.items() if _goes_on(cycle, model, snapshot)}

    def order(self, route: Route) -> Iterator[Deployment]:
        """Yield the deployments in the order to try them: the one drawn, then the rest of the chain."""
        first = self.first(route)
        if first is not None:
            yield first
            yield from rest(route, first)

    def first(self, route: Route) -> Deployment | None:
        """Draw the deployment to try first, if there is any."""
        return route.chain[self._draw(route)] if route.chain else None

    def _draw(self, route: Route) -> int:
        if len(route.cumulative) == 1:
            return 0
        if route.selection == "random":
            return bisect(route.cumulative, self._dice())
        cycle = self._cycles[route.model] = self._cycle(route)
        return cycle.draw()

    def _cycle(self, route: Route) -> "_Cycle":
        known = self._cycles.get(route.model)
        return known if known is not None and known.goes_on_as(route) else _Cycle(route)


def rest(route: Route, first: Deployment) -> Iterator[Deployment]:
    """Yield the chain without the deployment that was drawn."""
    return (deployment for deployment in route.chain if deployment is not first)


def _goes_on(cycle: "_Cycle", model: str, snapshot: Snapshot) -> bool:
    route = snapshot.routes.get(model)
    if route is None or route.model != model or route.selection != "smooth":
        return False
    return len(route.cumulative) > 1 and cycle.goes_on_as(route)


class _Cycle:
    """The position of a smoothly drawn route in its cycle.

    Mutable: `_draws`, the number so far; `_turns`, how many of them each weighted place of the chain has had; `_open`
    and `_waiting`, each place's next turn, by the time its window closes or opens.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._shares = _shares(route)
        self._length = lcm(*(weight.denominator for _, weight in self._shares))
        self._counts = [int(weight * self._length) for _, weight in self._shares]
        self._draws = 0
        self._turns = [0] * len(self._counts)
        self._open: list[tuple[int, int]] = []
        self._waiting = [(0, place) for place in range(len(self._counts))]

    def goes_on_as(self, route: Route) -> bool:
        """Return whether the route is drawn like the previous one; if so, it takes its place."""
        if route is not self._route and _shares(route) != self._shares:
            return False
        self._route = route
        return True

    def draw(self) -> int:
        """Return the place in the chain whose turn it is, and count the draw."""
        while self._waiting and self._waiting[0][0] <= self._draws:
            _, place = heappop(self._waiting)
            closes = -(-(self._turns[place] + 1) * self._length // self._counts[place])
            heappush(self._open, (closes, place))
        _, place = heappop(self._open)
        self._turns[place] += 1
        self._draws += 1
        heappush(self._waiting, (self._turns[place] * self._length // self._counts[place], place))
        return place


def _shares(route: Route) -> list[tuple[str, Fraction]]:
    """Return the names and weights of the weighted head of the chain."""
    return [(deployment.name, weight) for deployment, weight in zip(route.chain, route.weights, strict=True) if weight]
