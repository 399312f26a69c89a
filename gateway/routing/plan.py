"""A plan: everything about a configuration that can be worked out without knowing what is healthy.

Making one may take long, and happens in a thread. From a plan, routes can be weighed for any state of health
(`weighing`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType

from gateway.config.documents import ModelsDocument, RoutingDocument, Timeouts
from gateway.config.environment import Interpolated
from gateway.config.faults import ConfigError, Fault
from gateway.config.fields import is_nothing
from gateway.config.load import Loaded
from gateway.config.shown import Path, is_secret
from gateway.config.strict_yaml import Broken
from gateway.routing.clients import Clients, waiting
from gateway.routing.contract import ResolvedStrategy, resolve
from gateway.routing.matching import Matched, match
from gateway.routing.outline import Outline, outline
from gateway.routing.snapshot import (
    Bounds,
    BreakerLimits,
    Catalogue,
    Clocks,
    Inactive,
    LedgerSettings,
    Model,
    Route,
    Settings,
)
from gateway.routing.strategies import BUILT_IN, StrategyError
from gateway.routing.weighing import Pattern, Standing, Weighing, Weights, filled, numbered, shared


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration worked out, except for what is usable.

    `configured` are the weights, by model id, and `routes` the routes, by id and alias, with everything healthy.
    `split` are the models that routing.yaml lists; `shapes` give models that are weighed alike the same number.
    `notices` are warnings for the author of the files. `outline` is the plan as plain data, without its keys.
    """

    documents: tuple[ModelsDocument, RoutingDocument | None] = field(repr=False)
    digest: str
    settings: Settings
    strategy: ResolvedStrategy
    catalogue: Catalogue = field(repr=False)
    split: frozenset[str]
    shapes: Mapping[str, int] = field(repr=False)
    configured: Mapping[str, Weights] = field(repr=False)
    routes: Mapping[str, Route]
    inactive: tuple[Inactive, ...]
    notices: tuple[Fault, ...]
    outline: Outline = field(repr=False)

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model, in the order written."""
        return self.catalogue.models

    def parts(self) -> list[object]:
        """Return the objects that hold most of its memory, to be freed in pieces."""
        return [*self.documents[0].models, *self.outline.models, *self.routes.values(), *self.configured.values()]

    def weighing(self, standing: Standing) -> Weighing:
        """Return a weighing of models for this standing."""
        return Weighing(
            strategy=self.strategy,
            configured=self.configured,
            healthy=self.routes,
            split=self.split,
            shapes=self.shapes,
            standing=standing,
        )


def plan(loaded: Loaded, digest: str) -> Plan:
    """Make a plan of a configuration.

    Raises:
        ConfigError: with every fault of both files.

    """
    faults = list(loaded.faults)
    strategy = _strategy(loaded, faults)
    if loaded.models is None or loaded.faults:
        raise ConfigError(_in_order(faults))
    routing = loaded.routing or RoutingDocument()  # a missing file is treated like an empty one
    matched = match(loaded, loaded.models, routing)
    faults += matched.faults
    if strategy is None or faults:
        raise ConfigError(_in_order(faults))
    shapes = numbered(strategy, matched.members, matched.split)
    configured = _configured(strategy, matched, shapes, loaded, faults)
    if faults:
        raise ConfigError(_in_order(faults))
    notices = [*matched.notices, *(loaded.fault("routing", *each) for each in waiting(routing.clients or ()))]
    settings = _settings(routing, split=loaded.routing is not None)
    models = tuple(Model(entry.id, entry.aliases, entry.metadata()) for entry in loaded.models.models)
    routes = _healthy(loaded.models, routing, strategy, configured, shapes)
    catalogue = Catalogue.of(models, routes)
    return Plan(
        documents=(loaded.models, loaded.routing),
        digest=digest,
        settings=settings,
        strategy=strategy,
        catalogue=catalogue,
        split=matched.split,
        shapes=MappingProxyType(shapes),
        configured=MappingProxyType(configured),
        routes=MappingProxyType(dict(catalogue.named(routes))),
        inactive=matched.inactive,
        notices=(*loaded.notices, *_in_order(notices)),
        outline=outline(models, routes, matched.inactive, settings),
    )


def _in_order(faults: Iterable[Fault]) -> list[Fault]:
    return sorted(faults, key=attrgetter("file", "line", "column"))


def _strategy(loaded: Loaded, faults: list[Fault]) -> ResolvedStrategy | None:
    """Make the strategy, if it can be worked out, even from a routing.yaml that has other faults."""
    name, written = _named(loaded), loaded.at("routing", ("routing_parameter",))
    written = {} if written is None or is_nothing(written) else written
    if name is None or not isinstance(written, Mapping) or (name not in BUILT_IN and _is_broken(written)):
        return None
    try:
        return resolve(name, written)
    except StrategyError as error:
        known = {(fault.file, fault.line, fault.column) for fault in faults}
        found = [loaded.fault("routing", path, message) for path, message in error.problems]
        faults.extend(fault for fault in found if (fault.file, fault.line, fault.column) not in known)
        return None


def _named(loaded: Loaded) -> str | None:
    """Return the strategy's name, marked if it comes from a variable; None if the name has a fault."""
    name = loaded.at("routing", ("routing_strategy",))
    if name is None or is_nothing(name):
        return "fixed"
    return name if isinstance(name, str) and name.isprintable() else None


def _is_broken(value: object) -> bool:
    """Return whether plain data contains something with a known fault: a user's strategy never gets it."""
    if isinstance(value, dict | list):
        return any(map(_is_broken, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Broken)


def _configured(
    strategy: ResolvedStrategy, matched: Matched, shapes: Mapping[str, int], loaded: Loaded, faults: list[Fault]
) -> dict[str, Weights]:
    """Return each model's weights with everything healthy; only a model that waits for a variable may have none."""
    waiting = {inactive.model for inactive in matched.inactive}
    configured: dict[str, Weights] = {}
    alike: dict[int, Weights] = {}
    for position, (model, members) in enumerate(matched.members.items()):
        split, shape = model in matched.split, shapes.get(model)
        if shape in alike:
            configured[model] = MappingProxyType(dict(zip(members, alike[shape].values(), strict=True)))
            continue
        try:
            shares = shared(strategy, members, split=split)
        except StrategyError as error:
            faults.extend(loaded.fault("routing", path, message) for path, message in error.problems)
            continue
        if not shares and model not in waiting:
            faults.append(_without_weight(loaded, strategy.name if split else None, model, position))
        configured[model] = filled(shares, members, members)
        if shape is not None and shares:
            alike[shape] = configured[model]
    return configured


def _without_weight(loaded: Loaded, strategy: str | None, model: str, position: int) -> Fault:
    if strategy:
        told = f"{strategy} gives no deployment of {model} a weight, expected at least one above 0"
        return loaded.fault("routing", ("routing_strategy",), told)
    told = f"every deployment of {model} has the weight 0, expected at least one above 0"
    return loaded.fault("models", ("models", position, "route"), told)


def _healthy(
    models: ModelsDocument,
    routing: RoutingDocument,
    strategy: ResolvedStrategy,
    configured: Mapping[str, Weights],
    shapes: Mapping[str, int],
) -> dict[str, Route]:
    clocks, fallbacks = _clocks(routing), _fallbacks(models)
    patterns: dict[int | str, Pattern] = {}
    routes: dict[str, Route] = {}
    for entry in models.models:
        weights, shape = configured[entry.id], shapes.get(entry.id, entry.id)
        pattern = patterns.get(shape)
        if pattern is None:
            pattern = patterns[shape] = Pattern.of(strategy.selection, weights, weights, ())
        own = _clocks(routing, entry.timeouts) if entry.timeouts.model_fields_set else clocks
        routes[entry.id] = pattern.route(entry.id, tuple(weights), own, fallbacks[entry.id], entry.rescue)
    return routes


def _fallbacks(models: ModelsDocument) -> Mapping[str, tuple[str, ...]]:
    """Return each model's fallbacks: those that it names itself, then those that they name, and so on."""
    ids = {name: entry.id for entry in models.models for name in (entry.id, *entry.aliases)}
    named = {entry.id: [ids[name] for name in entry.fallbacks] for entry in models.models}
    found: dict[str, tuple[str, ...]] = {}
    for model, level in named.items():
        reached: dict[str, None] = {}
        while level := [each for each in level if each not in reached]:
            reached |= dict.fromkeys(level)
            level = [further for each in level for further in named[each]]  # noqa: PLW2901 - the next level
        found[model] = tuple(reached)
    return found


def _clocks(routing: RoutingDocument, own: Timeouts | None = None) -> Clocks:
    """Return the clocks that routing.yaml sets, overridden by a model's `own`."""
    told: dict[str, float] = {"connect": routing.timeout}
    for timeouts in (routing.timeouts, own):
        told |= timeouts.model_dump(exclude_none=True) if timeouts else {}
    return Clocks(**{"answer": told["first_token"], **told} if "first_token" in told else told)


def _settings(routing: RoutingDocument, *, split: bool) -> Settings:
    parameters = {name: _shown(value, (name,)) for name, value in routing.routing_parameter.items()}
    return Settings(
        strategy=routing.routing_strategy,
        parameters=MappingProxyType(parameters),
        split=split,
        clocks=_clocks(routing),
        bounds=Bounds(routing.retries.attempts, routing.retries.retry_after_max),
        retry_ratio=routing.retries.ratio,
        breaker=BreakerLimits(routing.breaker.failures, routing.breaker.hold, routing.breaker.longest_hold),
        health_interval=routing.health_check.interval,
        unhealthy_after=routing.health_check.unhealthy_after,
        healthy_after=routing.health_check.healthy_after,
        log_output=routing.logging.output,
        log_level=routing.logging.level,
        ledger=LedgerSettings(routing.ledger.url, routing.ledger.retention_days),
        clients=Clients.of(routing.clients),
    )


def _shown(value: object, path: Path) -> object:
    """Return a parameter as it may be shown: text from a variable as its source, text named like a secret masked."""
    if isinstance(value, Mapping):
        return MappingProxyType({name: _shown(item, (*path, name)) for name, item in value.items()})
    if isinstance(value, tuple):
        return tuple(_shown(item, path) for item in value)
    if isinstance(value, Interpolated):
        return value.source
    return "***" if isinstance(value, str) and is_secret(path) else value
