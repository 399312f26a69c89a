"""Routes weighed for the present state: what is down, what is out, what is coming back.

A box that fails may serve a thousand models, and the event loop is blocked while they are weighed again. Most of them
are alike: as many deployments, in the same groups, with the same weights. The result for one of them holds for the
others, so that each costs only a tuple (measured with 1,000 models on 4 boxes: 9 ms instead of 71). This does not apply
to a user's own strategy, which may look at more than groups and weights.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from msgspec import Struct, field

from gateway.routing.contract import ResolvedStrategy
from gateway.routing.snapshot import Catalogue, Clocks, Deployment, Group, Identity, RescuePolicy, Route, Selection
from gateway.routing.strategies import BUILT_IN

Weights = Mapping[Deployment, Fraction]
"""A model's deployments in the order written, each with its share; shares sum to 1."""
Shape = tuple[bool, tuple[tuple[Group, Fraction], ...]]
"""What a built-in strategy looks at: whether routing.yaml lists the model, and its deployments' groups and weights."""
_Part = int | Fraction
_WHOLE: Final = 1
_NONE: Final = 0


class Standing(Struct, frozen=True):
    """The endpoints and deployments that do not get all of their weight now.

    `down` are endpoints, `out` deployments; both get none. `returning` are deployments on their slow start, each with
    the part of its weight that it gets.
    """

    down: frozenset[str] = frozenset()
    out: frozenset[Identity] = frozenset()
    returning: Mapping[Identity, Fraction] = field(default_factory=lambda: MappingProxyType({}))

    def part(self, deployment: Deployment) -> _Part:
        """Return the part of its weight that a deployment gets; 0 means that it is not usable."""
        identity = deployment.identity
        if deployment.endpoint.identity in self.down or identity in self.out:
            return _NONE
        return self.returning.get(identity, _WHOLE)

    def touched(self, catalogue: Catalogue) -> tuple[str, ...]:
        """Return the ids of the models whose weights may differ from those with everything healthy."""
        at = (model for endpoint in self.down for model in catalogue.users.get(endpoint, ()))
        of = (model for model, name in (*self.out, *self.returning) if (model, name) in catalogue.deployments)
        return tuple(dict.fromkeys((*at, *of)))


class Pattern(Struct, frozen=True):
    """What the routes of similar models share; `places` lists the chain as positions in the order written."""

    selection: Selection
    places: tuple[int, ...]
    weights: tuple[Fraction, ...]
    configured: tuple[Fraction, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, selection: Selection, configured: Weights, effective: Weights, out: Container[int]) -> "Pattern":
        """Order a model's deployments into a chain.

        Both weights cover all of them; `out` are the places of those that are not usable, whose effective weight is 0.
        """
        written, now = tuple(configured.values()), tuple(effective.values())

        def rank(place: int) -> tuple[bool, Fraction]:
            is_out = place in out
            return (is_out, -(written if is_out else now)[place])

        places = tuple(sorted(range(len(written)), key=rank))
        weights = tuple(now[place] for place in places)
        return cls(
            selection=selection,
            places=places,
            weights=weights,
            configured=tuple(written[place] for place in places),
            cumulative=tuple(float(total) for total in accumulate(weight for weight in weights if weight)),
        )

    def route(
        self,
        model: str,
        members: Sequence[Deployment],
        clocks: Clocks,
        fallbacks: tuple[str, ...],
        rescue: RescuePolicy,
    ) -> Route:
        """Make a model's route; `members` are its deployments in the order written."""
        return Route(
            model,
            self.selection,
            tuple(members[place] for place in self.places),
            self.weights,
            self.configured,
            self.cumulative,
            clocks,
            fallbacks,
            rescue,
        )


class Weighing(Struct):
    """Weighs models of one plan for one standing.

    `configured` are the weights and `healthy` the routes with everything healthy, both by model id; `split` are the
    models that routing.yaml lists; `shapes` are shape numbers, for models that may share a pattern.

    Mutable: the `patterns` so far, by shape number (or model id, if it has none) and by the part of its weight that
    each deployment gets.
    """

    strategy: ResolvedStrategy
    configured: Mapping[str, Weights]
    healthy: Mapping[str, Route]
    split: frozenset[str]
    shapes: Mapping[str, int]
    standing: Standing
    patterns: dict[tuple[int | str, tuple[_Part, ...]], Pattern] = {}

    def route(self, model: str) -> Route:
        """Return a model's route; with none of its deployments usable, it is the route with everything healthy.

        Raises:
            StrategyError: the strategy fails for the usable deployments.

        """
        healthy = self.healthy[model]
        members = tuple(self.configured[model])
        parts = tuple(map(self.standing.part, members))
        if not any(parts) or parts.count(_WHOLE) == len(parts):
            return healthy
        key = self.shapes.get(model, model), parts
        pattern = self.patterns.get(key)
        if pattern is None:
            pattern = self.patterns[key] = self._weighed(model, dict(zip(members, parts, strict=True)))
        return pattern.route(model, members, healthy.clocks, healthy.fallbacks, healthy.rescue)

    def _weighed(self, model: str, parts: Mapping[Deployment, _Part]) -> Pattern:
        configured = self.configured[model]
        usable = tuple(deployment for deployment, part in parts.items() if part)
        all_of_them = len(usable) == len(configured)
        shares = configured if all_of_them else shared(self.strategy, usable, split=model in self.split)
        effective = filled(_scaled(shares, parts), configured, usable)
        out = [place for place, part in enumerate(parts.values()) if not part]
        return Pattern.of(self.strategy.selection, configured, effective, out)


def numbered(
    strategy: ResolvedStrategy, members: Mapping[str, Iterable[Deployment]], split: frozenset[str]
) -> Mapping[str, int]:
    """Return a number for each model's shape, by model id; a model without one may not share a pattern."""
    numbers: dict[Shape, int] = {}
    found: dict[str, int] = {}
    for model, deployments in members.items():
        if model not in split or strategy.name in BUILT_IN:
            shape = model in split, tuple((each.group, each.weight) for each in deployments)
            found[model] = numbers.setdefault(shape, len(numbers))
    return found


def shared(strategy: ResolvedStrategy, usable: Iterable[Deployment], *, split: bool) -> Weights:
    """Share a model's traffic among usable deployments; return nothing when none of them has a weight."""
    if split:
        return strategy.assign(deployment for deployment in usable if deployment.group != "unlisted")
    weights = {deployment: deployment.weight for deployment in usable}
    total = sum(weights.values())
    return {deployment: weight / total for deployment, weight in weights.items()} if total else {}


def filled(shares: Weights, members: Iterable[Deployment], usable: Sequence[Deployment]) -> Weights:
    """Return a weight for every member; without shares, the first usable one in the order written gets everything."""
    chosen = shares or dict.fromkeys(usable[:1], Fraction(_WHOLE))
    return MappingProxyType({deployment: chosen.get(deployment, Fraction(_NONE)) for deployment in members})


def _scaled(shares: Weights, parts: Mapping[Deployment, _Part]) -> Weights:
    """Scale down the shares of deployments that are coming back; the sum stays 1, so the others get the rest."""
    scaled = {deployment: share * parts[deployment] for deployment, share in shares.items()}
    total = sum(scaled.values())
    return {deployment: part / total for deployment, part in scaled.items()} if total else {}
