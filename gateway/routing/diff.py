"""What a new configuration changed: for the log, and for whoever asks what the last save did."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from operator import attrgetter
from typing import Final

import msgspec

from gateway.routing.snapshot import Clocks, Deployment, Model, Settings, Snapshot


@dataclass(frozen=True, slots=True)
class Diff:
    """Lines about models, deployments, weights (from -> to) and settings. No key is in them."""

    models_added: tuple[str, ...] = ()
    models_removed: tuple[str, ...] = ()
    models_changed: tuple[str, ...] = ()
    deployments_added: tuple[str, ...] = ()
    deployments_removed: tuple[str, ...] = ()
    deployments_changed: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, list[str]]:
        """Give the parts that say something."""
        return {part.name: list(value) for part in fields(self) if (value := getattr(self, part.name))}


def diff(old: Snapshot | None, new: Snapshot) -> Diff:
    """Compare the snapshot of the last configuration, if there was one, with the new one. Health does not count."""
    was, now = _models(old), _models(new)
    before, after = _weighted(old), _weighted(new)
    kept = [identity for identity in after if identity in before]
    return Diff(
        models_added=tuple(id_ for id_ in now if id_ not in was),
        models_removed=tuple(id_ for id_ in was if id_ not in now),
        models_changed=tuple(_models_changed(old, new)) if old else (),
        deployments_added=tuple(_added(*after[identity]) for identity in after if identity not in before),
        deployments_removed=tuple("/".join(identity) for identity in before if identity not in after),
        deployments_changed=tuple(line for each in kept for line in _changes(before[each][0], after[each][0])),
        weights=tuple(
            f"{'/'.join(each)}: {_number(before[each][1])} -> {_number(after[each][1])}"
            for each in kept
            if before[each][1] != after[each][1]
        ),
        settings=tuple(_settings(old.settings, new.settings)) if old else (),
    )


def _models(snapshot: Snapshot | None) -> Mapping[str, Model]:
    return {model.id: model for model in snapshot.models} if snapshot else {}


_Weighted = Mapping[tuple[str, str], tuple[Deployment, Fraction]]


def _weighted(snapshot: Snapshot | None) -> _Weighted:
    """Give the deployments with their configured weights, by identity."""
    routes = (snapshot.routes[model.id] for model in snapshot.models) if snapshot else ()
    return {
        deployment.identity: (deployment, weight)
        for route in routes
        for deployment, weight in zip(route.chain, route.configured, strict=True)
    }


def _number(weight: Fraction) -> str:
    return f"{float(weight):.6g}"


def _model_changes(old: Model, new: Model) -> Iterator[str]:
    if old.aliases != new.aliases:
        yield f"{new.id}: aliases {', '.join(old.aliases) or 'none'} -> {', '.join(new.aliases) or 'none'}"
    names = {**old.metadata, **new.metadata}
    changed = [name for name in names if old.metadata.get(name) != new.metadata.get(name)]
    if changed:
        yield f"{new.id}: {', '.join(changed)} changed"


def _models_changed(old: Snapshot, new: Snapshot) -> Iterator[str]:
    was = _models(old)
    for model in new.models:
        if model.id in was:
            yield from _model_changes(was[model.id], model)
            yield from _route_changes(old, new, model.id)


def _route_changes(old: Snapshot, new: Snapshot, model: str) -> Iterator[str]:
    """Tell of the clocks that a model has of its own, of its fallbacks, and of its rescue."""
    was, now = old.routes[model], new.routes[model]
    for part in fields(Clocks):
        clock = attrgetter(part.name)
        change = clock(was.clocks), clock(now.clocks)
        if len(set(change)) > 1 and change != (clock(old.settings.clocks), clock(new.settings.clocks)):
            yield f"{model}: timeouts.{part.name} {_text(change[0])} -> {_text(change[1])}"
    if was.fallbacks != now.fallbacks:
        yield f"{model}: fallbacks {', '.join(was.fallbacks) or 'none'} -> {', '.join(now.fallbacks) or 'none'}"
    if was.rescue != now.rescue:
        yield f"{model}: rescue {was.rescue} -> {now.rescue}"


def _added(deployment: Deployment, weight: Fraction) -> str:
    place = f"{deployment.group} at {deployment.endpoint.identity}"
    return f"{'/'.join(deployment.identity)}: {place}, weight {_number(weight)}"


_COMPARED: Final[Mapping[str, Callable[[Deployment], str]]] = {
    "base_url": lambda deployment: deployment.urls["chat/completions"].removesuffix("/chat/completions"),
    "kind": lambda deployment: deployment.kind,
    "group": lambda deployment: deployment.group,
    "provider_model_id": lambda deployment: deployment.served_model,
}


def _changes(old: Deployment, new: Deployment) -> Iterator[str]:
    name = "/".join(new.identity)
    for part, of in _COMPARED.items():
        if of(old) != of(new):
            yield f"{name}: {part} {of(old)} -> {of(new)}"
    was, now = old.endpoint, new.endpoint
    if was.identity == now.identity and was.health_url != now.health_url:
        yield f"{name}: health at {was.health_url} -> {now.health_url}"
    if old.key != new.key:
        yield f"{name}: api_key changed"


_WRITTEN: Final[Mapping[str, str]] = {
    "strategy": "routing_strategy",
    "clocks.connect": "timeout",
    "clocks.first_token": "timeouts.first_token",
    "clocks.idle": "timeouts.idle",
    "clocks.total": "timeouts.total",
    "bounds.attempts": "retries.attempts",
    "retry_ratio": "retries.ratio",
    "bounds.retry_after_max": "retries.retry_after_max",
    "breaker.failures": "breaker.failures",
    "breaker.hold": "breaker.hold",
    "breaker.longest_hold": "breaker.longest_hold",
    "health_interval": "health_check.interval",
    "unhealthy_after": "health_check.unhealthy_after",
    "healthy_after": "health_check.healthy_after",
    "log_output": "logging.output",
    "log_level": "logging.level",
}
"""What the settings are called in routing.yaml."""


def _settings(old: Settings, new: Settings) -> Iterator[str]:
    if old.split != new.split:
        yield "routing.yaml: " + ("added" if new.split else "removed")
    for part, name in _WRITTEN.items():
        was, now = map(attrgetter(part), (old, new))
        if was != now:
            yield f"{name}: {_text(was)} -> {_text(now)}"
    for name in {**old.parameters, **new.parameters}:
        was, now = (settings.parameters.get(name) for settings in (old, new))
        if was != now:
            yield f"routing_parameter.{name}: {_text(was)} -> {_text(now)}"


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=dict).decode()
