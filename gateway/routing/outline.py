"""An outline: what a plan says, as plain data and without its keys.

Two configurations are compared by their outlines, in one process or in two: an outline can be serialised as JSON, so a
running gateway can publish its own. It says whether there is a key, and nothing else about it: anything that can be
compared with a key, such as a hash, would let a reader guess keys.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec

from gateway.routing.clients import Clients
from gateway.routing.snapshot import Clocks, Deployment, Group, Inactive, Model, RescuePolicy, Route, Settings


class DeploymentOutline(msgspec.Struct, frozen=True):
    """A deployment; `weight` is its part of 1 with everything healthy, 0 a fallback. URLs contain no key."""

    name: str
    group: Group
    kind: str
    endpoint: str
    base_url: str
    health_url: str
    provider_model_id: str
    weight: float
    pricing: str
    has_key: bool


class InactiveOutline(msgspec.Struct, frozen=True):
    """A deployment that waits for an environment variable."""

    name: str
    group: Group
    variable: str


class ModelOutline(msgspec.Struct, frozen=True):
    """A model: its metadata, and its deployments in the order they are tried. Clocks are in seconds."""

    id: str
    aliases: tuple[str, ...]
    metadata: Mapping[str, Any]
    clocks: Clocks
    fallbacks: tuple[str, ...]
    rescue: RescuePolicy
    deployments: tuple[DeploymentOutline, ...]
    inactive: tuple[InactiveOutline, ...]


class Outline(msgspec.Struct, frozen=True):
    """A plan. `split` says whether there is a routing.yaml; `settings` have their names in that file."""

    split: bool
    settings: Mapping[str, Any]
    parameters: Mapping[str, Any]
    clocks: Clocks
    models: tuple[ModelOutline, ...]


_WRITTEN: Final[Mapping[str, Callable[[Settings], object]]] = {
    name: attrgetter(part)
    for name, part in {
        "routing_strategy": "strategy",
        "timeout": "clocks.connect",
        "timeouts.first_token": "clocks.first_token",
        "timeouts.answer": "clocks.answer",
        "timeouts.idle": "clocks.idle",
        "timeouts.total": "clocks.total",
        "retries.attempts": "bounds.attempts",
        "retries.ratio": "retry_ratio",
        "retries.retry_after_max": "bounds.retry_after_max",
        "breaker.failures": "breaker.failures",
        "breaker.hold": "breaker.hold",
        "breaker.longest_hold": "breaker.longest_hold",
        "health_check.interval": "health_interval",
        "health_check.unhealthy_after": "unhealthy_after",
        "health_check.healthy_after": "healthy_after",
        "logging.output": "log_output",
        "logging.level": "log_level",
    }.items()
} | {
    "ledger.url": lambda settings: settings.ledger.place and str(settings.ledger.place),
    "ledger.retention_days": lambda settings: settings.ledger.retention_days,
    "clients": lambda settings: _named(settings.clients),
}
"""The settings by their names in routing.yaml."""


def outline(
    models: Iterable[Model], routes: Mapping[str, Route], inactive: Iterable[Inactive], settings: Settings
) -> Outline:
    """Outline a configuration; `routes` are by model id, with everything healthy."""
    waiting: dict[str, list[InactiveOutline]] = {}
    for each in inactive:
        waiting.setdefault(each.model, []).append(InactiveOutline(each.name, each.group, each.variable))
    return Outline(
        split=settings.split,
        settings={name: of(settings) for name, of in _WRITTEN.items()},
        parameters=_plain(settings.parameters),
        clocks=settings.clocks,
        models=tuple(_model(model, routes[model.id], tuple(waiting.get(model.id, ()))) for model in models),
    )


def _model(model: Model, route: Route, inactive: tuple[InactiveOutline, ...]) -> ModelOutline:
    return ModelOutline(
        id=model.id,
        aliases=model.aliases,
        metadata=_plain(model.metadata),
        clocks=route.clocks,
        fallbacks=route.fallbacks,
        rescue=route.rescue,
        deployments=tuple(
            _deployment(deployment, float(weight))
            for deployment, weight in zip(route.chain, route.configured, strict=True)
        ),
        inactive=inactive,
    )


def _deployment(deployment: Deployment, weight: float) -> DeploymentOutline:
    return DeploymentOutline(
        name=deployment.name,
        group=deployment.group,
        kind=deployment.kind,
        endpoint=deployment.endpoint.identity,
        base_url=deployment.urls["chat/completions"].removesuffix("/chat/completions"),
        health_url=deployment.endpoint.health_url,
        provider_model_id=deployment.served_model,
        weight=weight,
        pricing="unknown" if deployment.prices is None else str(deployment.prices),
        has_key=deployment.key is not None,
    )


def _named(clients: Clients | None) -> str:
    return "everybody" if clients is None else ", ".join(clients.names) or "nobody"


def _plain(values: Mapping[str, object]) -> Mapping[str, Any]:
    """Return frozen JSON as plain JSON: encoded and decoded again."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values, enc_hook=dict))
    return plain
