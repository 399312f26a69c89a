"""The immutable result of one configuration, and of what is known to be healthy.

A request takes the current snapshot once and keeps it until it ends. Nothing in it changes: a reload and a health
change each build a new one, which shares with the old one whatever did not change.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

import msgspec
from pydantic import SecretStr

from gateway.adapters.openai_compatible import Operation
from gateway.config.ledger_place import Place
from gateway.routing.clients import Clients
from gateway.routing.pricing import Prices

Group = Literal["local", "remote", "unlisted"]
Selection = Literal["random", "smooth"]
RescuePolicy = Literal["off", "replay", "on"]
"""What to do with a broken stream: nothing, replay it, or have it continued where the deployment can."""
Identity = tuple[str, str]
"""What identifies a deployment: its model, and its name, which is unique within the model."""


class Clocks(msgspec.Struct, frozen=True):
    """How long an attempt may take, in seconds; 0 means no limit.

    `connect`: to open a connection. `first_token`: from the request's last byte to the first content of a stream.
    `answer`: from there to the first byte of an answer that is not streamed. `idle`: from one content to the next.
    `total`: the whole request, all its attempts together.
    """

    connect: float = 2.0
    first_token: float = 120.0
    answer: float = 600.0
    idle: float = 120.0
    total: float = 0.0


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of a request: `attempts` in all, and the longest Retry-After, in seconds, that it waits for."""

    attempts: int = 6
    retry_after_max: float = 3.0


class BreakerLimits(msgspec.Struct, frozen=True):
    """When a breaker opens, and for how long.

    It opens after this many `failures` in a row. It stays open for `hold` seconds, and for twice as long after each
    failed trial, up to `longest_hold`.
    """

    failures: int = 5
    hold: float = 15.0
    longest_hold: float = 60.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A box or a provider. `identity` is its origin and path: health and connections are keyed by it."""

    identity: str
    health_url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model on one endpoint.

    `served_model` is the name the endpoint knows the model by. `weight` is the one written for it; its share of the
    traffic is in the route. `context_length` is its model's, in tokens; `prices` are what it costs, if known. `urls`
    and `headers` are prepared for requests; `headers` carry the key and appear in no repr.
    """

    model: str
    name: str
    endpoint: Endpoint
    kind: str
    group: Group
    weight: Fraction
    served_model: str
    key: SecretStr | None = field(repr=False)
    urls: Mapping[Operation, str] = field(repr=False, compare=False)
    headers: Mapping[str, str] = field(repr=False, compare=False)
    context_length: int | None = None
    prices: Prices | None = None
    identity: Identity = field(init=False, repr=False, compare=False)
    """What lives on across snapshots is keyed by this: the model, and the name, which is unique within the model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", (self.model, self.name))

    def __hash__(self) -> int:
        """Hash by identity: hashing all that is compared would be costly."""
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"<{self.name} {self.group} {float(self.weight):g} of {self.model!r} at {self.endpoint.identity}>"


class Inactive(msgspec.Struct, frozen=True):
    """A deployment that waits for an environment variable.

    `name` is what it will be called; if it was given none and its address waits, it is `${VARIABLE}`.
    """

    model: str
    group: Group
    variable: str
    name: str


@dataclass(frozen=True, slots=True)
class Route:
    """One model's deployments with their weights, in the order they are tried.

    `chain` holds the weighted deployments by descending weight, then those of weight 0 in the order written, then those
    that are not usable, by their configured weight. `weights` are parallel to the chain and sum to 1; `configured` are
    the weights with everything healthy. `cumulative` are the running sums over the weighted head of the chain, for the
    draw; the last one is exactly 1. `fallbacks` are the ids of the models to turn to when all of the chain has failed,
    in order. `rescue` is what to do with its streams when they break.
    """

    model: str
    selection: Selection
    chain: tuple[Deployment, ...]
    weights: tuple[Fraction, ...]
    configured: tuple[Fraction, ...]
    cumulative: tuple[float, ...] = field(repr=False)
    clocks: Clocks = field(repr=False)
    fallbacks: tuple[str, ...] = field(repr=False)
    rescue: RescuePolicy = field(repr=False)

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{deployment.name}={float(weight):.4g}"
            for deployment, weight in zip(self.chain, self.weights, strict=True)
        )
        return f"<{self.model} {self.selection} {shares or 'nothing'}>"


@dataclass(frozen=True, slots=True)
class Model:
    """A model as `/v1/models` presents it. `metadata` is frozen JSON."""

    id: str
    aliases: tuple[str, ...]
    metadata: Mapping[str, object] = field(repr=False)


class Catalogue(msgspec.Struct, frozen=True):
    """All that a configuration names, whatever is healthy.

    `names` are each model's public names, by its id. `deployments` are by identity, model by model, and each model's in
    the order they are tried with everything healthy. `endpoints` are by identity, and `users`, by the same, the ids of
    the models that have a deployment there. What is precomputed from a catalogue is valid as long as it is in force.
    """

    models: tuple[Model, ...]
    names: Mapping[str, tuple[str, ...]]
    deployments: Mapping[Identity, Deployment]
    endpoints: Mapping[str, Endpoint]
    users: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, models: tuple[Model, ...], routes: Mapping[str, Route]) -> "Catalogue":
        """List the deployments and endpoints of the models' routes, which are by id."""
        deployments = [deployment for model in models for deployment in routes[model.id].chain]
        users: dict[str, dict[str, None]] = {}
        for deployment in deployments:
            users.setdefault(deployment.endpoint.identity, {})[deployment.model] = None
        return cls(
            models=models,
            names=MappingProxyType({model.id: (model.id, *model.aliases) for model in models}),
            deployments=MappingProxyType({deployment.identity: deployment for deployment in deployments}),
            endpoints=MappingProxyType({each.endpoint.identity: each.endpoint for each in deployments}),
            users=MappingProxyType({endpoint: tuple(found) for endpoint, found in users.items()}),
        )

    def named(self, routes: Mapping[str, Route]) -> Iterator[tuple[str, Route]]:
        """Yield routes, which are by id, under each of their model's names."""
        return ((name, route) for model, route in routes.items() for name in self.names[model])


class LedgerSettings(msgspec.Struct, frozen=True):
    """Where ledger rows are kept, if at all, and for how many days; 0 means for ever."""

    place: Place | None = None
    retention_days: float = 30.0


class Settings(msgspec.Struct, frozen=True):
    """What routing.yaml sets besides the split.

    `parameters` are safe to show: frozen JSON, with `${NAME}` for the value of a variable. `split` says whether
    there is a routing.yaml. Times are in seconds; a health interval of 0 means no active checks. `clocks` are those of
    the models that have none of their own. `retry_ratio` is the share of a model's requests that may be tried again
    where they failed. `clients` are those who may ask; None means everybody.
    """

    strategy: str = "fixed"
    parameters: Mapping[str, object] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    split: bool = False
    clocks: Clocks = Clocks()
    bounds: Bounds = Bounds()
    retry_ratio: float = 0.2
    breaker: BreakerLimits = BreakerLimits()
    health_interval: float = 0.0
    unhealthy_after: int = 1
    healthy_after: int = 1
    log_output: str = "stdout"
    log_level: str = "info"
    ledger: LedgerSettings = LedgerSettings()
    clients: Clients | None = None

    @property
    def probe_timeout(self) -> float:
        """How long a health probe may take, in seconds."""
        return self.clocks.connect


class Snapshot(msgspec.Struct, frozen=True):
    """One configuration in force.

    `routes` are by id and by alias. `generation` counts accepted configurations, `revision` the changes of weights
    within one. `down` holds the identities of the endpoints that are down or loading, `out` those of the deployments
    whose breaker is not closed. `digest` identifies the files' content.
    """

    generation: int
    revision: int
    digest: str
    routes: Mapping[str, Route]
    catalogue: Catalogue
    inactive: tuple[Inactive, ...]
    down: frozenset[str]
    settings: Settings
    out: frozenset[Identity] = frozenset()

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model, in the order written."""
        return self.catalogue.models

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """Every deployment, model by model, in the order they are tried."""
        return tuple(deployment for model in self.models for deployment in self.routes[model.id].chain)

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Every endpoint, by identity."""
        return self.catalogue.endpoints

    def __repr__(self) -> str:
        routes = ", ".join(repr(self.routes[model.id]) for model in self.models)
        down = f" down={sorted(self.down)}" if self.down else ""
        out = f" out={sorted(map('/'.join, self.out))}" if self.out else ""
        return f"<Snapshot {self.generation}.{self.revision}{down}{out} {routes}>"
